#!/usr/bin/env bash
# checkpoint_tools.sh FABRIC-CHECKPOINT: the memory that `fabric shard` and `fabric consolidate` take for 4 GB, above what the
# program takes for a small file. Needs 8 GB of room where TMPDIR lies.
set -euo pipefail
program=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 - "$folder" <<'PYTHON'
import json, os, struct, sys
for name, count in (("small", 1), ("large", 64)):
    size = 64 << 20
    header = {f"t{i}": {"dtype": "F32", "shape": [4096, 4096], "data_offsets": [i * size, (i + 1) * size]} for i in range(count)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(sys.argv[1], name + ".safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + count * size)  # holes, which read as zeros
PYTHON
peak() { # the most memory in MB that a command had in its pages
  python3 - "$@" <<'PYTHON'
import os, resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1))
PYTHON
}
base=$(peak "$program" inspect "$folder/small.safetensors")
for step in "shard $folder/large.safetensors $folder/parts -n 4" "consolidate $folder/parts $folder/again.safetensors"; do
  most=$(peak "$program" $step)
  above=$(python3 -c "print(round($most - $base, 1))")
  verdict=$(python3 -c "print('ok' if $above <= 64 else 'OVER')")
  printf '%-52s %9.2f MB %12s %8s %8.2f %s\n' "fabric ${step%% *} of 4 GB: memory above ${base%.*} MB" "$above" "" "" 64 "$verdict"
done
cmp <(tail -c 4294967296 "$folder/large.safetensors") <(tail -c 4294967296 "$folder/again.safetensors")
