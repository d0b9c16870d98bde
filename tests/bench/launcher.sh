#!/usr/bin/env bash
# bench of `fabric run`: times of whole runs, in turn with what they are compared with; minima count. Takes the program
# fabric as its argument.
set -euo pipefail
fabric=${1:?usage: launcher.sh FABRIC [ROUNDS]}
rounds=${2:-15}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1
unset RANK WORLD_SIZE LOCAL_RANK

# best NAME COMMAND…: keeps the least time in microseconds.
declare -A least=()
best() {
  local name=$1 begin end took
  shift
  begin=${EPOCHREALTIME/./}
  "$@" >/dev/null 2>&1
  end=${EPOCHREALTIME/./}
  took=$((end - begin))
  if ((took < ${least[$name]:-1000000000})); then least[$name]=$took; fi
}
sixty_four() { bash -c 'for ((i = 0; i < 64; ++i)); do /bin/true & done; wait'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }
milliseconds() { awk -v a="$1" 'BEGIN { printf "%.1f ms", a / 1000 }'; }

mpirun=
command -v mpirun >/dev/null && mpirun=yes
for ((i = 0; i < rounds; ++i)); do
  best two "$fabric" run -n 2 /bin/true
  [[ -z $mpirun ]] || best mpirun mpirun -n 2 --oversubscribe --bind-to none /bin/true
  best sixty_four "$fabric" run -n 64 /bin/true
  best shell sixty_four
done
echo "fabric run -n 2 /bin/true: $(milliseconds "${least[two]}") (bar: 25 ms)"
if [[ $mpirun ]]; then
  echo "  of mpirun -n 2 /bin/true ($(milliseconds "${least[mpirun]}")): $(ratio "${least[two]}" "${least[mpirun]}") (bar: 0.5)"
else
  echo "  mpirun is not on this machine"
fi
echo "fabric run -n 64 /bin/true: $(milliseconds "${least[sixty_four]}") (bar: 100 ms)"
echo "  of a shell that starts 64 /bin/true and waits ($(milliseconds "${least[shell]}")): $(ratio "${least[sixty_four]}" "${least[shell]}")"

"$fabric" run -n 2 sleep 1 &
launcher=$!
sleep 0.5
peak() { awk '/^VmHWM:/ { print $2 }' "/proc/$1/status" 2>/dev/null || echo 0; }
total=$(peak $launcher)
for child in /proc/[0-9]*; do
  [[ $(cat "$child/comm" 2>/dev/null) == fabric-guardian ]] || continue
  [[ $(awk '/^PPid:/ { print $2 }' "$child/status") == "$launcher" ]] && total=$((total + $(peak "${child#/proc/}")))
done
wait $launcher
echo "peak memory of launcher and guardian: $total kB (bar: 8192 kB)"

# One rank is killed; all others must be gone and the report printed.
begin=${EPOCHREALTIME/./}
# shellcheck disable=SC2016
"$fabric" run -n 4 sh -c '[ $RANK = 1 ] && kill -KILL $$; exec sleep 100' >/dev/null 2>&1 || true
end=${EPOCHREALTIME/./}
echo "start, one rank killed, all others gone, report printed: $(milliseconds $((end - begin))) (bar: 1000 ms)"

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
  kill -KILL "${pids[1]}"
  until grep -q 'stopping the workers' "$log/0"; do sleep 0.005; done
  end=${EPOCHREALTIME/./}
  echo "a machine is gone, the other acts: $(milliseconds $((end - begin))) at heartbeat_interval $interval s (bar: $(awk -v a="$interval" 'BEGIN { printf "%.0f ms", 3000 * a }'))"
  kill "${pids[0]}"
  wait "${pids[@]}" 2>/dev/null || true
  kill "${holders[@]}"
  wait "${holders[@]}" 2>/dev/null || true
  rm -rf "$log"
}
machine_gone 1
machine_gone 5
