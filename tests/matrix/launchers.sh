#!/usr/bin/env bash
# `fabric run` with what does not come from Debian: a Python with torch, and Open MPI 5.
#   launchers.sh FABRIC PYTHON MPI-FOLDER TEST
# MPI-FOLDER holds bin/mpirun; TEST is the program with the tests of `fabric run`.
set -euo pipefail
fabric=$1 python=$2 mpi=$3 test=$4
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset RANK WORLD_SIZE LOCAL_RANK
PATH=$(dirname "$python"):$PATH

fail() {
  echo "launchers.sh: $1" >&2
  cat "$work/out" >&2
  exit 1
}
# expect CODE COMMAND…: what it prints is in $work/out.
expect() {
  local code=$1 got=0
  shift
  timeout 120 "$@" >"$work/out" 2>&1 || got=$?
  ((got == code)) || fail "$* ended with $got and not with $code:"
}
says() { grep -q -- "$1" "$work/out" || fail "'$1' is not in this:"; }

expect 0 "$fabric" run -n 2 "$here/ddp_script.py"
says 'rank 0 of 2 began at step 0, restart 0'
says 'rank 1 of 2 began at step 0, restart 0'
expect 0 "$fabric" run -n 2 --max-restarts 2 "$here/ddp_script.py" "$work/checkpoint.pt"
says 'rank 1 .* was killed by signal 9 (SIGKILL)'
says 'rank 0 of 2 began at step 30, restart 1'
says 'rank 1 of 2 began at step 30, restart 1'
expect 1 env FAIL=1 "$fabric" run -n 2 "$here/ddp_script.py"
says 'error: ValueError: deliberate'
echo "a script for torchrun runs unchanged, is started again where it was killed, and its errors are read"

PATH=$mpi/bin:$PATH
mpirun --version | grep -q 'Open MPI) 5' || { echo "$mpi/bin/mpirun is not Open MPI 5" >&2; exit 1; }
expect 0 "$fabric" run --mpi -n 3 sh -c "echo local \$OMPI_COMM_WORLD_LOCAL_RANK of \$OMPI_COMM_WORLD_SIZE at \$MASTER_ADDR:\$MASTER_PORT"
for rank in 0 1 2; do says "local $rank of 3 at 127.0.0.1:"; done
[[ $(sed -n 's/.* at //p' "$work/out" | sort -u | wc -l) == 1 ]] || fail "the ranks disagree about the address:"
expect 5 "$fabric" run --mpi -n 2 sh -c "exit \$((OMPI_COMM_WORLD_RANK * 5))"
"$test" '[mpi]' >"$work/out" 2>&1 || fail "the tests of --mpi fail:"
echo "$(mpirun --version | head -n 1): more ranks than cores, exit codes, and nothing left of a launcher that was killed"
