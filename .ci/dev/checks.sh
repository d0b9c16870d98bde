# Read by ./dev: what looks at the sources, and what runs them under a sanitizer.

# One clang-format for all machines: other versions break lines elsewhere. Debian 12's is this one, too.
clang_format_version=14.0.6

fetch_clang_format() {
  step "fetching clang-format $clang_format_version"
  download "$scratch" "clang-format==$clang_format_version"
  python3 -m zipfile -e "$scratch"/clang_format-*.whl "$scratch/tree"
  chmod u+x "$scratch/tree/clang_format/data/bin/clang-format"
  mkdir -p "$(dirname "$1")"
  mv "$scratch/tree/clang_format/data/bin/clang-format" "$1"
}

# Sets clang_format: the system's own, if it is of that very version, else the one in the cache.
find_clang_format() {
  if clang-format --version 2>/dev/null | grep -q "version $clang_format_version\b"; then
    clang_format=$(command -v clang-format)
    return
  fi
  clang_format=$cache/clang-format-$clang_format_version/clang-format
  [[ ! -x $clang_format ]] || return 0
  require_packages python3 python3-pip
  with_scratch .part fetch_clang_format "$clang_format"
}

sources() { git ls-files --cached --others --exclude-standard '*.h' '*.cpp' | sort -u | while read -r file; do
  [[ -e $file ]] && echo "$file"
done; }

cmd_format() {
  local options=(-i)
  case ${1:-} in
    '') ;;
    --check) options=(--dry-run --Werror) ;;
    *) die "unknown option '$1'; there is: --check" ;;
  esac
  find_clang_format
  sources | xargs -P "$(jobs)" -n 100 "$clang_format" "${options[@]}" ||
    die "some files are formatted otherwise (above); ./dev format mends that"
}

# The commit that changes are counted from: the newest one that the main branch of `origin` has, too, else the one before.
default_base() {
  local base
  for base in origin/main origin/HEAD; do
    base=$(git merge-base HEAD "$base" 2>/dev/null) || continue
    [[ $base == "$(git rev-parse HEAD)" ]] || { echo "$base"; return; }
  done
  echo HEAD~1
}

# changed_sources BASE: the library's sources that changed, and for each header that did one source that includes it.
changed_sources() {
  local rooms='^(fabric|launcher|strategies|accelerators|plugins)/' file
  git diff --name-only --diff-filter=d "$1" | grep -E "$rooms" | grep -vE '_test(_support)?\.(cpp|h)$' |
    while read -r file; do
      case $file in
        *.cpp) echo "$file" ;;
        *.h) git grep -lF -e "<$file>" -e "\"$file\"" -- '*.cpp' | awk -v rooms="$rooms" \
          '!found && $0 ~ rooms && !/_test\.cpp$/ {print; found = 1}' || true ;;
      esac
    done | sort -u
}

cmd_lint() {
  local base='' all='' files=()
  while (($#)); do
    case $1 in
      --all) all=yes ;;
      --since) base=${2:?--since wants a commit}; shift ;;
      *) die "unknown option '$1'; there are: --all --since" ;;
    esac
    shift
  done
  step "format"
  cmd_format --check
  step "layering"
  python3 tests/layering.py "$root" || die "the layering is broken (above)"
  if [[ $all ]]; then
    mapfile -t files < <(sources | grep -E '^(fabric|launcher|strategies|accelerators|plugins)/.*\.cpp$' | grep -v _test)
  else
    base=${base:-$(default_base)}
    git rev-parse --quiet --verify "$base^{commit}" >/dev/null ||
      die "there is no commit '$base' to compare with" "Name one with --since, or look at everything with --all."
    mapfile -t files < <(changed_sources "$base")
  fi
  if ((${#files[@]} == 0)); then
    step "clang-tidy: no source of the library differs from $base"
  else
    run_clang_tidy "${files[@]}"
  fi
  step "nothing to complain about"
}

# run_clang_tidy FILE…: fails with the first complaint; what it says is shown.
run_clang_tidy() {
  require_packages clang-tidy
  command -v clang-tidy >/dev/null || die "clang-tidy is not installed: the sources were not looked at"
  find_torch
  require_build_packages
  # clang reads none of GCC's precompiled headers, and looks at one file at a time.
  DEV_UNITY=OFF configure build/lint "$torch_root" -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON
  local file unbuilt=() built=()
  for file in "$@"; do
    # Of a plug-in that this machine cannot build nobody knows how it is compiled.
    if grep -qF "\"file\": \"$root/$file\"" build/lint/compile_commands.json; then built+=("$file"); else unbuilt+=("$file"); fi
  done
  ((${#unbuilt[@]} == 0)) || printf 'not looked at, since it is not built here: %s\n' "${unbuilt[@]}"
  ((${#built[@]})) || return 0
  step "clang-tidy: ${#built[@]} files"
  printf '%s\n' "${built[@]}" | xargs -P "$(jobs)" -n 1 clang-tidy --quiet --warnings-as-errors='*' -p build/lint \
    2> >(grep -vE '^[0-9]+ warnings? (and [0-9]+ errors? )?(generated|treated)' >&2) ||
    die "clang-tidy found something (above)"
}

# Is each wait between streams needed, and its loss noticed?
cmd_waits() {
  prepare
  step "removing each wait between streams"
  DEV_JOBS=$(jobs) python3 tests/sim/remove_waits.py "$root" "$@" --run "$build_dir" ||
    die "some removals are not noticed, or the list is not complete (above)"
}

# The part without LibTorch: all three sanitizers see everything there.
launcher_tests=(fabric_test_base fabric_test_config fabric_test_environments fabric_test_launcher fabric_test_launch
  fabric_test_run fabric_test_run_parts fabric_test_run_hosts fabric_test_run_program fabric_test_run_limits fabric_test_rendezvous
  fabric_test_rendezvous_nodes)
# With LibTorch, which is not instrumented: the address and undefined-behaviour sanitizers then watch our code alone. The
# thread sanitizer cannot: it sees none of LibTorch's atomic reference counts and takes each release for a race.
library_tests=(fabric_test_state fabric_test_optim fabric_test_checkpoint_io fabric_test_data fabric_test_loggers
  fabric_test_metrics fabric_test_early_stopping fabric_test_lr)

# A test that the build no longer has is not a test that passed.
require_targets() {
  local folder=$1 target
  shift
  for target in "$@"; do
    ninja -C "$folder" -t query "$target" >/dev/null 2>&1 || die "there is no test program '$target' in $folder"
  done
}

# names FILE…: a pattern for ctest that these names match, and no others.
names() {
  local IFS='|'
  echo "^($*)\$"
}

# sanitize KIND, in a subshell.
sanitize() {
  local kind=$1 folder=build/sanitize-$1 status=0
  local parsers=(fabric_fuzz_launcher fabric_fuzz_rendezvous fabric_fuzz_store) library=("${library_tests[@]}")
  if [[ $kind == thread ]]; then
    library=()
    echo "thread sanitizer: the library's tests are left out, since LibTorch is not instrumented"
  else
    parsers+=(fabric_fuzz_values fabric_fuzz_checkpoint fabric_fuzz_sharded fabric_fuzz_dcp fabric_fuzz_weights)
  fi
  DEV_BUILD_TYPE=RelWithDebInfo configure "$folder" "$torch_root" -DFABRIC_SANITIZE="$kind" -DFABRIC_BENCH=OFF \
    -DFABRIC_EXAMPLES=OFF -DFABRIC_INSTALL=OFF -DFABRIC_WITH_CUDA=OFF -DFABRIC_WITH_MPI=OFF
  local programs=("${launcher_tests[@]}" "${library[@]}" "${parsers[@]/%/_replay}")
  require_targets "$folder" "${programs[@]}"
  compile "$folder" "${programs[@]}"
  # Crashes on purpose are part of the tests, and our own handlers are what is tested: after they have written
  # what is safe in any case they try to name functions, which allocates.
  local crashes=handle_segv=0:handle_sigbus=0:handle_sigfpe=0:handle_sigill=0:handle_abort=0
  export TSAN_OPTIONS=$crashes:halt_on_error=1:report_signal_unsafe=0:atexit_sleep_ms=0
  export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
  ASAN_OPTIONS=$crashes run_tests "$folder" -R "$(names "${launcher_tests[@]}" "${parsers[@]:0:3}")" || status=1
  ((${#library[@]})) || return $status
  # LibTorch keeps what it made until the process ends, and hands over containers that it did not annotate.
  ASAN_OPTIONS=$crashes:detect_container_overflow=0 LSAN_OPTIONS=suppressions=$root/tests/support/leaks_of_libtorch.txt \
    run_tests "$folder" -R "$(names "${library[@]}" "${parsers[@]:3}")" || status=1
  return $status
}

cmd_sanitize() {
  local kinds=("$@") kind failed=()
  ((${#kinds[@]})) || kinds=(address thread undefined)
  for kind in "${kinds[@]}"; do
    [[ $kind == address || $kind == thread || $kind == undefined ]] ||
      die "unknown sanitizer '$kind'; there are: address thread undefined"
  done
  find_torch
  require_build_packages
  for kind in "${kinds[@]}"; do
    step "$kind sanitizer"
    (sanitize "$kind") || failed+=("$kind")
  done
  step "models of what ranks in shared memory do"
  tests/model/run.sh || failed+=(models)
  ((${#failed[@]} == 0)) || die "failed: ${failed[*]}"
}
