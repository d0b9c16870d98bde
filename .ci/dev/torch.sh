# Read by ./dev: LibTorch and other wheels, in a cache that all clones share.

default_minor=15
# LibTorch's minors, the newest release of each, and the two wheels of the CUDA run-time that its wheel was linked with. All
# that is downloaded stands in wheels/*.txt with its hash.
declare -A torch_version=([11]=2.11.0 [12]=2.12.1 [13]=2.13.0 [14]=2.14.1 [15]=2.15.0)
declare -A cudart_version=([11]=13.0.96 [12]=13.0.96 [13]=13.0.96 [14]=13.0.96 [15]=13.2.86)
declare -A cupti_version=([11]=13.0.85 [12]=13.0.85 [13]=13.0.85 [14]=13.0.85 [15]=13.2.86)

cached() { echo "$cache/libtorch-${torch_version[$1]}"; }

# download FOLDER NAME==VERSION…: wheels for any Python and an old enough system; Python itself is not used at run time.
# None that is not listed in wheels/*.txt, and none whose bytes are not those that were listed.
download() {
  local folder=$1 name listed
  shift
  mkdir -p "$folder"
  listed=$folder/listed.txt
  for name in "$@"; do
    grep -hF -m 1 "$name --hash=sha256:" .ci/dev/wheels/*.txt | head -n 1
  done >"$listed"
  (($(wc -l <"$listed") == $#)) || die "not all of these are listed with their hashes in .ci/dev/wheels: $*"
  download_unlisted "$folder" --require-hashes -r "$listed"
  rm "$listed"
}

# download_unlisted FOLDER REQUIREMENT…: the same of what has no hash.
download_unlisted() {
  local folder=$1 attempt name platforms=()
  shift
  for name in manylinux_2_28 manylinux_2_27 manylinux_2_26 manylinux_2_25 manylinux_2_18 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${name}_$(uname -m)")
  done
  command -v python3 >/dev/null && python3 -m pip --version >/dev/null 2>&1 ||
    die "python3 with pip is needed to download wheels" \
      "or put the wheels into a folder and name it in TORCHFABRIC_WHEELS, or set FABRIC_TORCH_ROOT"
  for attempt in 1 2 3; do
    python3 -m pip download --no-deps --no-cache-dir --disable-pip-version-check --only-binary :all: \
      --python-version 3.11 --implementation cp "${platforms[@]}" --dest "$folder" "$@" && return
    printf 'dev: download %d of 3 failed\n' "$attempt" >&2
    sleep $((attempt * 2))
  done
  die "could not be downloaded: $*" \
    "With no network: put the wheels into a folder and name it in TORCHFABRIC_WHEELS. (LibTorch: or set FABRIC_TORCH_ROOT.)"
}

# unpack FOLDER-OF-WHEELS DESTINATION: what compiling and running C++ needs; no Python files.
unpack() {
  local wheel
  for wheel in "$1"/*.whl; do
    step "unpacking ${wheel##*/}"
    unzip -q -o "$wheel" 'torch/include/*' 'torch/lib/*' 'torch/share/*' 'torch/version.py' '*.dist-info/*' \
      'nvidia/*/lib/*' 'nvidia/*/include/*' -x '*.a' '*.py' 'torch/lib/libtorch_python.so' -d "$2" 2>/dev/null ||
      (($? == 11)) || die "cannot unpack $wheel (a full disk or a broken file?)"
  done
}

# wheels_for MINOR FOLDER: brings LibTorch's wheel and the two that libtorch_cpu.so is linked with into the folder.
wheels_for() {
  local minor=$1 folder=$2 version=${torch_version[$1]} source=${TORCHFABRIC_WHEELS:-} pattern found
  if [[ -z $source ]]; then
    if [[ ${cudart_version[$minor]:-} ]]; then
      download "$folder" "torch==$version" "nvidia-cuda-runtime==${cudart_version[$minor]}" \
        "nvidia-cuda-cupti==${cupti_version[$minor]}"
      return
    fi
    # A pre-release: of other bytes each day, so that no hash is known, and its wheel alone knows its CUDA.
    download_unlisted "$folder" "torch==$version"
    local cuda
    cuda=$(unzip -p "$folder"/torch-*.whl torch/version.py | sed -nE "s/^cuda.*= '([0-9.]+)'.*/\\1/p")
    download_unlisted "$folder" "nvidia-cuda-runtime==$cuda.*" "nvidia-cuda-cupti==$cuda.*"
    return
  fi
  [[ -d $source ]] || die "TORCHFABRIC_WHEELS=$source is not a folder"
  for pattern in "torch-$version" nvidia_cuda_runtime-13 nvidia_cuda_cupti-13; do
    found=$(find "$source" -maxdepth 1 -name "$pattern[-.+]*$(uname -m).whl" | sort | tail -n 1)
    [[ $found ]] || die "TORCHFABRIC_WHEELS=$source holds no wheel $pattern*_$(uname -m).whl"
    ln -s "$(realpath "$found")" "$folder/"
  done
}

# with_scratch PREFIX COMMAND…: runs the command with a new folder of the cache as $scratch, which is gone afterwards.
with_scratch() {
  mkdir -p "$cache" && scratch=$(mktemp -d "$cache/$1-XXXXXX") || die "cannot make a folder in $cache"
  trap remove_scratch EXIT  # again, since a subshell begins without it
  "${@:2}"
  remove_scratch
}

# fetch_torch MINOR FOLDER: what is there is always whole.
fetch_torch() {
  local minor=$1 final=$2
  mkdir "$scratch/wheels" "$scratch/tree"
  step "fetching LibTorch ${torch_version[$minor]} (about 550 MB, once for all clones)"
  wheels_for "$minor" "$scratch/wheels"
  unpack "$scratch/wheels" "$scratch/tree"
  [[ -e $scratch/tree/torch/lib/libtorch_cpu.so ]] || die "the torch wheel holds no lib/libtorch_cpu.so"
  rm -rf "$final"
  mv "$scratch/tree" "$final"
}

# fill_cache MINOR: unpacks beside the final place and renames, under a lock: two runs at a time do not collide.
fill_cache() {
  local minor=$1 final free
  final=$(cached "$minor")
  [[ -e $final/torch/lib/libtorch_cpu.so ]] && return
  mkdir -p "$cache" || die "cannot make $cache; set TORCHFABRIC_CACHE to a folder that can be written"
  exec 9>"$cache/.lock"
  if ! flock -n 9; then
    step "waiting for another run that fills $cache"
    flock 9
  fi
  if [[ ! -e $final/torch/lib/libtorch_cpu.so ]]; then
    free=$(df -Pk "$cache" | awk 'END {print int($4 / 1024)}')
    ((free > 2600)) || die "$cache has $free MB free; LibTorch needs 2600 while it is unpacked" \
      "Free some space, or set TORCHFABRIC_CACHE to another disk."
    rm -rf "$cache"/.new-*  # of runs that were killed: only who holds the lock makes one
    with_scratch .new fetch_torch "$minor" "$final"
    step "LibTorch ${torch_version[$minor]} is in $final"
  fi
  exec 9>&-
}

# Sets torch_root. In the order of fabric/cmake/FabricTorch.cmake: named, active Python environment, cache.
find_torch() {
  torch_root=${FABRIC_TORCH_ROOT:-}
  if [[ -z $torch_root && -n ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]]; then
    torch_root=$(python3 -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])' \
      2>/dev/null) || torch_root=
  fi
  if [[ $torch_root ]]; then
    [[ -e $torch_root/lib/libtorch_cpu.so ]] || die "$torch_root holds no lib/libtorch_cpu.so"
    return
  fi
  require_build_packages $default_minor
  fill_cache $default_minor
  torch_root=$(cached $default_minor)/torch
}

# fetch_cuda_libraries SITE
fetch_cuda_libraries() {
  local wanted
  mapfile -t wanted < <(sed -nE 's/^([a-z0-9-]+==[0-9.]+) .*/\1/p' .ci/dev/wheels/cuda.txt)
  download "$scratch" "${wanted[@]}"
  unpack "$scratch" "$1"
}

# The libraries that libtorch_cuda.so is linked with: for the default minor, whose wheels are listed.
add_cuda_libraries() {
  local site=${torch_root%/torch}
  ldd "$torch_root/lib/libtorch_cuda.so" 2>/dev/null | grep -v 'libcuda\.so' | grep -q 'not found' || return 0
  [[ $site == "$cache"/* ]] || die "libtorch_cuda.so of $torch_root lacks libraries:" \
    "$(ldd "$torch_root/lib/libtorch_cuda.so" | grep 'not found')"
  [[ $site == "$(cached $default_minor)" ]] || die "CUDA's libraries are listed for LibTorch 2.$default_minor alone"
  require_packages unzip python3 python3-pip
  step "fetching the CUDA run-time libraries (about 2 GB)"
  with_scratch .part fetch_cuda_libraries "$site"
}
