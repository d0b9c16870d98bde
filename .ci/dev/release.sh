# Read by ./dev: what a release needs.

machine() {
  printf '%s, %s, LibTorch %s, %s' "$(sed -nE 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1)" \
    "$(sed -nE 's/^PRETTY_NAME="(.*)"/\1/p' /etc/os-release)" "${torch_version[$default_minor]}" "$(c++ --version | head -n 1)"
}

cmd_numerics() {
  local keep='' options=() page=fabric/docs/numerics.md word status=0
  for word in "$@"; do
    if [[ $word == --keep ]]; then keep=yes; else options+=("$word"); fi
  done
  [[ -z $keep || ${#options[@]} -eq 0 ]] || die "--keep keeps the whole table: no other option goes with it"
  prepare
  compile "$build_dir" fabric_numerics
  step "training"
  mkdir -p build
  "$build_dir/tests/numerics/fabric_numerics" "${options[@]}" | tee build/numerics.txt || status=$?
  ((status == 0)) || die "the numbers are out of bounds, or a run failed (above)"
  [[ $keep ]] || return 0
  {
    sed -n '1,/<!-- table -->/p' "$page"
    printf '\nTorchFabric %s, %s. %s.\n\n' "$(version)" "$(date -u +%F)" "$(machine)"
    cat build/numerics.txt
    printf '\n<!-- /table -->\n'
  } >build/numerics.md
  mv build/numerics.md "$page"
  step "kept in $page"
}

# The tag of the newest release that is an ancestor of HEAD, other than the one of this version.
# Nothing where there is none, which is no failure.
release_before() { git tag --list 'v[0-9]*' --merged HEAD --sort=-v:refname | grep -vx "v$(version)" | head -n 1 || true; }

# library_at REVISION FOLDER: builds the shared library as of a revision, in FOLDER/build.
library_at() {
  local commit
  commit=$(git rev-parse "$1^{commit}")
  if [[ $(cat "$2/commit" 2>/dev/null) != "$commit" ]]; then
    rm -rf "$2/source"
    mkdir -p "$2/source"
    git archive "$commit" | tar -x -C "$2/source"
    echo "$commit" >"$2/commit"
  fi
  (
    cd "$2/source"
    abi_library "$root/$2/build"
  )
}

# abi_library FOLDER: the library of the sources in the present folder, with the debugging data that abidiff reads.
abi_library() {
  DEV_BUILD_TYPE=RelWithDebInfo root=$PWD configure "$1" "$torch_root" -DFABRIC_TESTS=OFF -DFABRIC_EXAMPLES=OFF \
    -DFABRIC_BENCH=OFF -DFABRIC_WITH_CUDA=OFF -DFABRIC_WITH_MPI=OFF -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-g -O1"
  compile "$1" fabric
}

cmd_abi() {
  local base=${1:-} status=0 before now gone
  base=${base:-$(release_before)}
  [[ $base ]] || die "there is no earlier release to compare with" "Name a revision: ./dev abi REVISION"
  git rev-parse --quiet --verify "$base^{commit}" >/dev/null || die "there is no revision '$base'"
  require_packages abigail-tools
  command -v abidiff >/dev/null || die "abidiff is not installed"
  find_torch
  require_build_packages
  step "the library as of $base"
  library_at "$base" build/abi/before
  step "the library of this tree"
  abi_library "$root/build/abi/now"
  before=$(find build/abi/before/build -name 'libtorchfabric.so' | head -n 1)
  now=$(find build/abi/now -name 'libtorchfabric.so' | head -n 1)
  step "public headers: $base and this tree"
  git diff --stat "$base" -- $(public_headers) | tail -n 40
  gone=$(git diff --name-only --no-renames --diff-filter=D "$base" -- 'fabric/*.h' |
    grep -vE '(_internal|_test_support)\.h$|^fabric/torch/' || true)
  [[ -z $gone ]] || printf 'gone: %s\n' $gone
  step "binary interface: $base and this tree"
  compare_libraries "$before" "$now" || status=$?
  ((status & 3)) && die "abidiff could not compare (above)"
  # Once more without what was only added, which breaks nobody.
  if ((status)) && compare_libraries --no-added-syms "$before" "$now" >/dev/null; then
    status=0
    step "the binary interface grew: a new minor version at least"
  elif ((status == 0)); then
    step "the binary interface is the same"
  fi
  [[ $status == 0 && -z $gone ]] ||
    die "programs made for $base may not work with this one: a new major version, or a new minor one before 1.0"
}

# compare_libraries [OPTION…] BEFORE NOW. Types of the public headers only: the library's own are nobody's interface.
compare_libraries() {
  abidiff --headers-dir1 build/abi/before/source/fabric --headers-dir2 fabric --drop-private-types --no-architecture \
    --suppressions tests/package/abi.suppr "$@"
}

# Says what is missing for this release; nothing when all is there.
release_problems() {
  local wanted=$1 minor found result
  [[ $wanted =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || echo "'$wanted' is no version MAJOR.MINOR.PATCH"
  [[ $(version) == "$wanted" ]] || echo "fabric/version.h says $(version)"
  found=$(grep -E "^## ${wanted//./\\.}\b" CHANGELOG.md || true)
  if [[ -z $found ]]; then
    echo "CHANGELOG.md has no section '## $wanted, YYYY-MM-DD'"
  elif [[ ! $found =~ [0-9]{4}-[0-9]{2}-[0-9]{2}$ ]]; then
    echo "CHANGELOG.md's section '$found' has no date at its end"
  fi
  sed -n '/<!-- compatibility -->/,/<!-- \/compatibility -->/p' fabric/docs/versioning.md | grep -q "^| $wanted |" ||
    echo "the table of fabric/docs/versioning.md has no row for $wanted"
  grep -q "^TorchFabric $wanted, " fabric/docs/numerics.md ||
    echo "fabric/docs/numerics.md has no numbers of $wanted: ./dev numerics --keep"
  # One that breaks off says so on stderr alone, which nobody reads here.
  found=$(python3 tests/lifecycle.py . "$wanted" 2>&1) || echo "tests/lifecycle.py: $found"
  for result in launchers python clang $(printf '2.%s ' 11 12 13 14 15); do
    if ! found=$(cat "build/matrix/$result.txt" 2>/dev/null); then
      echo "the matrix was not run with $result: ./dev matrix $result"
    elif [[ $found != "passed	$(git rev-parse HEAD)	"* ]]; then
      echo "the matrix did not pass with $result at this commit: $(cut -f 1,2 <<<"$found" | tr '\t' ' ')"
    fi
  done
  [[ -z $(git status --porcelain --untracked-files=no) ]] || echo "there are changes that are not committed"
  ! git rev-parse --quiet --verify "refs/tags/v$wanted" >/dev/null ||
    [[ $(git rev-parse "v$wanted^{commit}") == "$(git rev-parse HEAD)" ]] ||
    echo "the tag v$wanted exists and is another commit"
}

cmd_release() {
  local wanted=${1:-} problems folder archive
  [[ $wanted && $wanted != -* ]] || die "which version? ./dev release VERSION"
  [[ -z ${2:-} || $2 == --check-only ]] || die "unknown option '$2'; there is: --check-only"
  wanted=${wanted#v}
  problems=$(release_problems "$wanted")
  if [[ $problems ]]; then
    mapfile -t problems <<<"$problems"
    die "$wanted cannot be released yet:" "${problems[@]/#/- }"
  fi
  step "all is in place for $wanted"
  [[ -z ${2:-} ]] || return 0
  folder=build/release-$wanted archive=torchfabric-$wanted.tar.gz
  mkdir -p "$folder"
  # The same bytes from the same commit, whoever makes it.
  git archive --format=tar --prefix="torchfabric-$wanted/" HEAD | gzip -n -9 >"$folder/$archive"
  (cd "$folder" && sha256sum "$archive" | tee "$archive.sha256")
  step "the source archive is $folder/$archive; to tag it: git tag -a v$wanted -m 'TorchFabric $wanted'"
}
