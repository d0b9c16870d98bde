#!/usr/bin/env bash
# Runs the benchmarks: fabric_bench [--peer PYTHON] [step|dispatch|ranks|launch|launcher|checkpoint|async_checkpoint|sharded_checkpoint|sharding|finetuning|sim …]. Each figure stands next to what it is
# compared with, measured in turn in the same run; minima are compared. --peer names a Python with torch and lightning, and
# runs the same work there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
peer=
names=()
while (($#)); do
  case $1 in
    --peer) peer=${2:?--peer needs a Python}; shift 2 ;;
    step | dispatch | ranks | launch | launcher | checkpoint | async_checkpoint | sharded_checkpoint | sharding | finetuning | sim) names+=("$1"); shift ;;
    *) echo "fabric_bench: unknown argument '$1'; valid: --peer PYTHON, step, dispatch, ranks, launch, launcher, checkpoint, async_checkpoint, sharded_checkpoint, sharding, finetuning, sim" >&2; exit 2 ;;
  esac
done
((${#names[@]})) || names=(step dispatch ranks launch launcher checkpoint async_checkpoint sharded_checkpoint sharding finetuning sim)
export OMP_NUM_THREADS=1 FABRIC_LOG_LEVEL=error
for name in "${names[@]}"; do
  echo "== $name"
  if [[ $name == ranks ]]; then
    if [[ ! -x $here/bench_ranks ]] || ! command -v mpirun >/dev/null; then
      echo "left out: this build or machine has no Open MPI"
      continue
    fi
    port=$((20000 + RANDOM % 10000))
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    mpirun -n 2 --oversubscribe --bind-to none \
      -x OMP_NUM_THREADS -x MASTER_ADDR=127.0.0.1 -x MASTER_PORT=$port "$here/bench_ranks"
    mpirun -n 8 --oversubscribe --bind-to none \
      -x OMP_NUM_THREADS -x MASTER_ADDR=127.0.0.1 -x MASTER_PORT=$port "$here/bench_ranks" crowd
  elif [[ $name == launcher ]]; then
    "$here/launcher.sh" "$here/../../launcher/fabric" "$here/bench_launch_bare" $peer
  else
    "$here/bench_$name"
    [[ $name != sharded_checkpoint ]] || "$here/checkpoint_tools.sh" "$here/../../launcher/fabric-checkpoint"
  fi
done
if [[ -n $peer && " ${names[*]} " == *" step "* ]]; then
  echo "== the same work in Python"
  "$peer" "$here/peer.py" "$here"
fi
if [[ -n $peer && " ${names[*]} " == *" sharded_checkpoint "* ]]; then
  echo "== checkpoints in parts in Python"
  "$peer" "$here/peer_checkpoint.py" "$here"
fi
if [[ -n $peer && " ${names[*]} " == *" sharding "* ]]; then
  echo "== sharding in Python"
  "$peer" "$here/peer_sharding.py" "$here"
fi
