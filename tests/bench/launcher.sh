#!/usr/bin/env bash
# bench of `fabric run`: times of whole runs, in turn with what they are compared with; minima count.
#   launcher.sh FABRIC BARE [PYTHON]
# BARE is a plain LibTorch program whose two ranks meet in a barrier; PYTHON has torch, and its torchrun starts the same.
set -euo pipefail
fabric=${1:?usage: launcher.sh FABRIC BARE [PYTHON]}
bare=${2:?usage: launcher.sh FABRIC BARE [PYTHON]}
python=${3:-}
rounds=${ROUNDS:-15}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1
unset RANK WORLD_SIZE LOCAL_RANK

# best NAME COMMAND…: keeps the least time in microseconds.
declare -A least=()
keep() { if (($2 < ${least[$1]:-1000000000})); then least[$1]=$2; fi; }
best() {
  local name=$1 begin end
  shift
  begin=${EPOCHREALTIME/./}
  "$@" >/dev/null 2>&1 || { echo "launcher.sh: $* failed" >&2; exit 1; }
  end=${EPOCHREALTIME/./}
  keep "$name" $((end - begin))
}
# row WHAT OURS COMPARED UNIT BAR [least]: figures with the ratio, which must be at most BAR (or at least); COMPARED may be
# empty, and then the bar is for our figure.
row() {
  awk -v what="$1" -v ours="$2" -v other="$3" -v unit="$4" -v bar="$5" -v least="${6:-}" 'BEGIN {
    if (other == "") { value = ours; compared = ratio = "" }
    else { value = least ? other / ours : ours / other; compared = sprintf("%.2f %s", other, unit); ratio = sprintf("%.3f", value) }
    status = bar == "" ? "" : (least ? value >= bar : value <= bar) ? "ok" : "OVER"
    printf "%-52s %9.2f %-2s %12s %8s %8s %s\n", what, ours, unit, compared, ratio, (least ? ">= " : "") bar, status }'
}
ms() { awk -v a="${least[$1]}" 'BEGIN { printf "%.3f", a / 1000 }'; }

sixty_four() { bash -c 'for ((i = 0; i < 64; ++i)); do /bin/true & done; wait'; }
pids_of() { awk -v name="$1" '$2 == "(" name ")" { print $1 " " $4 }' /proc/[0-9]*/stat 2>/dev/null; }
peak_of() { awk '/^VmHWM:/ { print $2 }' "/proc/$1/status" 2>/dev/null || echo 0; }

# How much memory launcher and guardian have had, together.
measure_memory() {
  "$fabric" run -n 2 sleep 1 &
  local launcher=$! total pid parent
  sleep 0.5
  total=$(peak_of $launcher)
  while read -r pid parent; do
    if ((parent == launcher)); then total=$((total + $(peak_of "$pid"))); fi
  done < <(pids_of fabric-guardian)
  wait $launcher
  memory=$(awk -v kilobytes="$total" 'BEGIN { print kilobytes / 1024 }')
}

# From the death of one rank to the end of the launcher: the others are gone, the report is printed.
measure_kill() {
  local folder launcher begin end
  folder=$(mktemp -d)
  # shellcheck disable=SC2016
  "$fabric" run -n 4 sh -c 'echo $$ > $0/$RANK.new; mv $0/$RANK.new $0/$RANK; sleep 100 & exec sleep 100' "$folder" \
    >/dev/null 2>&1 &
  launcher=$!
  until [[ -e $folder/0 && -e $folder/1 && -e $folder/2 && -e $folder/3 ]]; do sleep 0.01; done
  begin=${EPOCHREALTIME/./}
  kill -KILL "$(<"$folder/1")"
  wait $launcher || true
  end=${EPOCHREALTIME/./}
  rm -r "$folder"
  keep killed $((end - begin))
}

# A machine is gone: two network namespaces, one cable pulled, the launcher behind it killed.
in_namespace() { local holder=$1; shift; nsenter -t "$holder" -n "$@"; }
machine_gone() {
  local interval=$1 holders=() log pids=() begin end
  log=$(mktemp -d)
  for i in 0 1; do
    unshare -n sleep 600 &
    holders+=($!)
  done
  sleep 0.3
  if ! in_namespace "${holders[0]}" ip link add eth0 type veth peer name eth0 netns "${holders[1]}" 2>/dev/null; then
    echo "a machine is gone: cannot be measured here, network namespaces need root and the program ip"
    kill "${holders[@]}"
    return
  fi
  for i in 0 1; do
    in_namespace "${holders[$i]}" sh -c "ip link set lo up; ip link set eth0 up; ip address add 10.77.0.$((i + 1))/24 dev eth0"
  done
  for i in 0 1; do
    in_namespace "${holders[$i]}" "$fabric" run --nnodes 1:2 --rdzv-endpoint 10.77.0.1:29400 --rdzv-id bench \
      --rdzv-conf "heartbeat_interval=$interval,last_call_timeout=20" --grace 0.2 sh -c 'echo up; exec sleep 100' \
      >"$log/$i" 2>&1 &
    pids+=($!)
    sleep 0.2
  done
  until grep -q '] up' "$log/0" && grep -q '] up' "$log/1"; do sleep 0.02; done
  sleep 1
  begin=${EPOCHREALTIME/./}
  in_namespace "${holders[1]}" ip link set eth0 down
  disown "${pids[1]}"  # so that the shell says nothing of its end
  kill -KILL "${pids[1]}"
  until grep -q 'stopping the workers' "$log/0"; do sleep 0.005; done
  end=${EPOCHREALTIME/./}
  row "a machine is gone, the other acts (interval $interval s)" \
    "$(awk -v a=$((end - begin)) 'BEGIN { printf "%.3f", a / 1000000 }')" '' s $((3 * interval))
  kill "${pids[0]}"
  wait "${pids[0]}" 2>/dev/null || true
  kill "${holders[@]}"
  wait "${holders[@]}" 2>/dev/null || true
  rm -rf "$log"
}

mpirun=
command -v mpirun >/dev/null && mpirun=yes
for ((i = 0; i < rounds; ++i)); do
  best two "$fabric" run -n 2 /bin/true
  [[ -z $mpirun ]] || best mpirun mpirun -n 2 --oversubscribe --bind-to none /bin/true
  best sixty_four "$fabric" run -n 64 /bin/true
  best shell sixty_four
  ((i > 5)) || best barrier "$fabric" run -n 2 "$bare"
  ((i > 5)) || best load "$bare" load
  ((i > 2)) || measure_kill
done
[[ -z $python ]] || for ((i = 0; i < 3; ++i)); do
  best torchrun "$python" -m torch.distributed.run --nproc-per-node 2 --no-python "$bare"
done
measure_memory

printf '%-52s %12s %12s %8s %8s\n' what ours compared ratio bar
[[ -z $mpirun ]] || row 'fabric run -n 2 /bin/true / mpirun' "$(ms two)" "$(ms mpirun)" ms 0.5
row 'fabric run -n 2 /bin/true' "$(ms two)" '' ms 25
row 'peak memory of launcher and guardian' "$memory" '' MB 8
row 'first barrier of 2 ranks / one process with LibTorch' "$(ms barrier)" "$(ms load)" ms 1.5
[[ -z $python ]] || row 'the same under torchrun / ours' "$(ms barrier)" "$(ms torchrun)" ms 8 least
row 'fabric run -n 64 /bin/true' "$(ms sixty_four)" '' ms 100
row '  of a shell that starts 64 /bin/true and waits' "$(ms sixty_four)" "$(ms shell)" ms ""
row 'rank killed, others gone, report printed' "$(ms killed)" '' ms 1000
machine_gone 1
machine_gone 5
[[ $mpirun ]] || echo "mpirun is not on this machine"
[[ $python ]] || echo "torchrun: give --peer PYTHON"
