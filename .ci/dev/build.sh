# Read by ./dev: configure, build, test.

build_dir=build/release

jobs() {
  local cores memory
  cores=$(nproc)
  memory=$(awk '/MemAvailable/ {print int($2 / 1600000)}' /proc/meminfo)
  ((memory < 1)) && memory=1
  echo "${DEV_JOBS:-$((cores < memory ? cores : memory))}"
}

# configure FOLDER TORCH-ROOT [CMAKE-OPTION…]
configure() {
  local folder=$1 torch=$2 log
  shift 2
  if [[ -e $folder/CMakeCache.txt ]] && ! grep -qx "CMAKE_HOME_DIRECTORY:INTERNAL=$root" "$folder/CMakeCache.txt"; then
    rm -rf "$folder"
  fi
  mkdir -p "$folder"
  log=$folder/configure.log
  step "configuring $folder with LibTorch from $torch"
  if ! cmake -S . -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE="${DEV_BUILD_TYPE:-Release}" -DFABRIC_TORCH_ROOT="$torch" \
    -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DCMAKE_UNITY_BUILD="${DEV_UNITY:-ON}" -DCMAKE_UNITY_BUILD_BATCH_SIZE=6 \
    "$@" >"$log" 2>&1; then
    grep -vE '^-- (Check|Detect|Looking|Performing)' "$log" | tail -n 40 >&2
    die "configuring failed; all of it is in $log"
  fi
  grep -E '^-- .*(not built|plug-in)' "$log" || true
}

compile() {
  local folder=$1
  shift
  step "building ${*:-everything} with $(jobs) compilers at a time"
  cmake --build "$folder" -j "$(jobs)" ${1:+--target "$@"} || die "the build failed (first error above)"
}

prepare() {
  find_torch
  require_build_packages
  configure "$build_dir" "$torch_root"
}

# More than there are processors, since many of them wait.
test_jobs() { echo "${DEV_TEST_JOBS:-$(($(jobs) + 2))}"; }

# run_tests FOLDER [CTEST-OPTION…]
run_tests() {
  local folder=$1 status=0
  shift
  step "testing"
  export FABRIC_TEST_STAMPS=$cache/compiled  # what need not be compiled again (tests/stamps.py)
  ctest --test-dir "$folder" --output-on-failure --no-tests=error --parallel "$(test_jobs)" --timeout 900 "$@" || status=$?
  awk '/^All tests passed \(/ {gsub(/[(]/, ""); assertions += $4; cases += $7}
       /^test cases: / {cases += $3} /^assertions: / {assertions += $2}
       END {if (cases) printf "%d test cases with %d assertions in them\n", cases, assertions}' \
    "$folder/Testing/Temporary/LastTest.log" 2>/dev/null || true
  step "tests ended, $( ((status == 0)) && echo 'all passed' || echo 'NOT ALL PASSED')"
  return $status
}
