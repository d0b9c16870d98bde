# Read by ./dev: the commands, all but the matrix.

cmd_setup() {
  local minor=${1:-$default_minor}
  minor=${minor#2.}
  [[ ${torch_version[$minor]:-} ]] || die "unknown LibTorch minor '$1'; supported: 11 12 13 14 15"
  if ((minor == default_minor)); then
    find_torch
    require_build_packages
  else
    require_build_packages "$minor"
    fill_cache "$minor"
    torch_root=$(cached "$minor")/torch
  fi
  step "set up; LibTorch is in $torch_root"
}

cmd_build() {
  prepare
  compile "$build_dir" "$@"
}

# An example is examples/NAME.cpp, or a folder examples/NAME with NAME.cpp in it. What a folder's program reads beyond the
# repository, its fetch.sh brings, unless the caller names data of their own.
cmd_example() {
  local name=${1:-} names program example_options=()
  names=$(cd examples && printf '%s\n' *.cpp */*.cpp | awk -F/ 'NF == 1 || $1 ".cpp" == $2 {sub(/\.cpp$/, "", $NF); print $NF}' |
    sort | tr '\n' ' ')
  [[ $name ]] || { echo "examples: $names"; return; }
  [[ " $names " == *" $name "* ]] || die "there is no example '$name'; there are: $names"
  shift
  if [[ -e examples/$name/fetch.sh && ! " $*" =~ ' '(--data|--help|-h) ]]; then
    source "examples/$name/fetch.sh"
    fetch_example
  fi
  prepare
  compile "$build_dir" "$name"
  step "running $name $*"
  program=$(find "$build_dir/examples" -name "$name" -type f -perm -u+x | head -n 1)
  "$program" "${example_options[@]}" "$@"
}

cmd_demo() { cmd_example digits "$@"; }

cmd_test() {
  local options=()
  if (($#)) && [[ $1 != -* ]]; then
    options=(-R "$1")
    shift
  fi
  # A real SLURM for its tests, which root alone can start; without it they say so.
  ((EUID != 0)) || require_packages slurmctld slurmd slurm-client
  prepare
  compile "$build_dir"
  run_tests "$build_dir" -LE gpu "${options[@]}" "$@"
}

cmd_bench() {
  prepare
  compile "$build_dir" fabric_bench
  step "measuring"
  "$build_dir/tests/bench/fabric_bench" "$@"
}

sources() { git ls-files --cached --others --exclude-standard '*.h' '*.cpp' | sort -u | while read -r file; do
  [[ -e $file ]] && echo "$file"
done; }

cmd_format() {
  require_packages clang-format
  sources | xargs clang-format -i
}

cmd_lint() {
  require_packages clang-format
  local status=0 changed file
  step "format"
  sources | xargs clang-format --dry-run --Werror || status=1
  step "layering"
  python3 tests/layering.py "$root" || status=1
  if command -v clang-tidy >/dev/null; then
    find_torch
    require_build_packages
    # clang reads none of GCC's precompiled headers, and looks at one file at a time.
    DEV_UNITY=OFF configure build/lint "$torch_root" -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON
    step "clang-tidy"
    mapfile -t changed < <(if [[ ${1:-} == --all ]]; then sources; else git diff --name-only HEAD~1; fi |
      grep -E '^(fabric|launcher|strategies|accelerators|plugins)/.*\.cpp$' | grep -v _test)
    for file in "${changed[@]}"; do
      [[ -e $file ]] || continue
      clang-tidy --quiet --warnings-as-errors='*' -p build/lint "$file" 2>/dev/null || status=1
    done
  else
    echo "clang-tidy is not installed: skipped"
  fi
  ((status == 0)) || die "lint found something; ./dev format mends the formatting"
  step "nothing to complain about"
}

cmd_arrows() { python3 tests/layering.py "$root" --draw; }

# The part without LibTorch: a sanitizer sees nothing of what LibTorch itself does.
launcher_tests=(fabric_test_launcher fabric_test_launch fabric_test_run fabric_test_run_parts fabric_test_run_program
  fabric_test_run_limits fabric_test_rendezvous fabric_test_rendezvous_nodes)
cmd_sanitize() {
  local kinds=("$@") kind failed=()
  ((${#kinds[@]})) || kinds=(address thread)
  find_torch
  require_build_packages
  for kind in "${kinds[@]}"; do
    [[ $kind == address || $kind == thread ]] || die "unknown sanitizer '$kind'; there are: address thread"
    step "$kind sanitizer"
    (
      DEV_BUILD_TYPE=RelWithDebInfo configure "build/sanitize-$kind" "$torch_root" -DFABRIC_SANITIZE="$kind" \
        -DFABRIC_BENCH=OFF -DFABRIC_EXAMPLES=OFF -DFABRIC_INSTALL=OFF -DFABRIC_WITH_CUDA=OFF -DFABRIC_WITH_MPI=OFF
      compile "build/sanitize-$kind" "${launcher_tests[@]}" fabric_fuzz_launcher_replay
      # Crashes on purpose are part of the tests, and our own handlers are what is tested: after they have written
      # what is safe in any case they try to name functions, which allocates.
      local crashes=handle_segv=0:handle_sigbus=0:handle_sigfpe=0:handle_sigill=0:handle_abort=0
      export ASAN_OPTIONS=$crashes TSAN_OPTIONS=$crashes:halt_on_error=1:report_signal_unsafe=0:atexit_sleep_ms=0
      run_tests "build/sanitize-$kind" -R "^($(IFS='|'; echo "${launcher_tests[*]}")|fabric_fuzz_launcher)\$"
    ) || failed+=("$kind")
  done
  ((${#failed[@]} == 0)) || die "failed: ${failed[*]}"
}

cmd_gpu_check() {
  compgen -G '/dev/nvidia[0-9]*' >/dev/null || die "this machine has no NVIDIA GPU (no /dev/nvidia*)" \
    "./dev test compiles and links the CUDA code and needs no GPU."
  find_torch
  require_build_packages
  add_cuda_libraries
  configure "$build_dir" "$torch_root" -DFABRIC_WITH_CUDA=ON
  compile "$build_dir"
  run_tests "$build_dir" -L gpu "$@"
}
