#!/usr/bin/env bash
# Checks the models of the barrier and of the mailbox in shared memory with spin: every order in which the ranks can go on.
# A model with a known fault has to fail, so that the check is known to look. With "quick", what takes longest is left out.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if ! command -v spin >/dev/null; then
  echo "left out: there is no spin (Debian: spin)"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# check MODEL [FAULT|GIVE_UP]: prints what came of it; fails where that is not what it should be.
check() {
  local model=$1 fault=${2:-} said
  spin ${fault:+-D$fault} -a "$here/$model.pml" >spin.log || { cat spin.log; return 1; }
  [[ $fault != GIVE_UP ]] || fault=
  ${CC:-cc} -x c -O2 -w -DSAFETY -DMEMLIM=2000 -o pan pan.c
  said=$(./pan -m200000 | grep -E "errors: [0-9]+") || { echo "$model: spin said nothing"; return 1; }
  if [[ $said == *"max search depth too small"* ]]; then echo "$model: not searched through"; return 1; fi
  if [[ -z $fault && $said == *"errors: 0"* ]]; then
    echo "$model: nothing found"
  elif [[ -n $fault && $said != *"errors: 0"* ]]; then
    echo "$model with $fault: found, as it should be"
  else
    echo "$model ${fault:+with $fault}: ${said}"
    return 1
  fi
}

[[ ${1:-} == quick ]] || check barrier
check barrier GIVE_UP
check barrier LATE_COUNT
check barrier LATE_LOOK
check barrier EARLY_RING
check mailbox
check mailbox NO_SECOND_LOOK
check mailbox NO_FULL
