# Read by ./dev: the commands of every day.

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
  require_test_packages
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

cmd_soak() {
  prepare
  compile "$build_dir" fabric_test_shm
  step "ranks in shared memory, mixed operations"
  FABRIC_SOAK_OPERATIONS=${1:-10000000} FABRIC_SOAK_SEED=${2:-$RANDOM} FABRIC_SOAK_RANKS=${3:-4} \
    "$build_dir/plugins/collectives/fabric_test_shm" "[soak]"
}

cmd_arrows() { python3 tests/layering.py "$root" --draw; }

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
