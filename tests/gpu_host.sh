#!/bin/bash
# The whole agent on a machine with a real GPU: a PyTorch job under `meterctl run --gpus` is charged for held device time, frozen at zero,
# thawed by a top-up, and finishes with the right result. As root, with Python and PyTorch.
#
#   tests/gpu_host.sh FOLDER_WITH_meterd_AND_meterctl
#
# Ends with 0 only if every step was seen; each figure that it prints was measured.
set -euo pipefail
bin=$(cd "${1:?folder with meterd and meterctl}" && pwd)
here=$(mktemp -d)
socket="$here/run/meterd.sock"
ctl() { "$bin/meterctl" --socket "$socket" "$@"; }
json() { python3 -c "import json,sys; d=json.load(sys.stdin); print($1)"; }
fail() { echo "FAILED: $*"; tail -40 "$here/log" || true; exit 1; }
wait_for() { # wait_for SECONDS WHAT COMMAND…
  local until=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $until ] || fail "not in time: $what"; sleep 0.1; done
}
job_is() { [ "$(ctl jobs --all --output json | json "next((j['phase'] for j in d['jobs'] if j['job']=='train'),'')")" = "$1" ]; }
agent=
trap '[ -z "$agent" ] || kill "$agent" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$here"' EXIT

cat >"$here/card.toml" <<'CARD'
card = "gpu-host"
version = 1
effective_from = "2026-01-01T00:00:00Z"
[[line]]
id = "gpu"
meter = "gpu_held"
price = "1"
unit = "gpu-second"
[[line]]
id = "cpu"
meter = "cpu_time"
price = "0"
unit = "core-second"
CARD
cat >"$here/meterd.toml" <<CONFIG
node = "gpu-host"
state_dir = "$here/state"
runtime_dir = "$here/run"
rate_card = "$here/card.toml"
enforcement = "enforce"
[status]
listen = "off"
CONFIG
cat >"$here/train.py" <<'TRAIN'
import sys, time, torch
torch.manual_seed(0)
weight = torch.randn(2048, 2048, device="cuda") / 45
held = torch.zeros(1 << 28, device="cuda")          # 1 GiB that must survive the freeze
held[::4096] = 7
state, count, began = torch.eye(2048, device="cuda"), 0, time.monotonic()
while time.monotonic() - began < float(sys.argv[1]):
    for _ in range(50):
        state = torch.tanh(state @ weight)
        count += 1
    torch.cuda.synchronize()
assert held[::4096].eq(7).all().item(), "memory was lost"
assert torch.isfinite(state).all().item()
print(f"train: {count} steps in {time.monotonic() - began:.1f} s, memory intact", flush=True)
TRAIN

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
stat -fc 'cgroup file system: %T' /sys/fs/cgroup
"$bin/meterd" --config "$here/meterd.toml" >"$here/log" 2>&1 &
agent=$!
wait_for 20 "the agent is ready" curl -fsS --unix-socket "$socket" http://meterd/readyz
gpu_seen() { curl -fsS --unix-socket "$socket" http://meterd/v1/status | grep -q '"GPU-\|"count":1\|H100\|H200\|NVIDIA'; }
wait_for 20 "the agent sees the GPU" gpu_seen
curl -fsS --unix-socket "$socket" http://meterd/v1/status | json "json.dumps(d['gpus'])"
ctl account create gpu-user
ctl account topup gpu-user 12

began=$(date +%s.%N)
ctl run --account gpu-user --job train --gpus 0 -- python3 "$here/train.py" 25 &
run=$!
wait_for 30 "the job runs" job_is running
sleep 5
echo "--- while it runs"
ctl jobs
curl -fsS --unix-socket "$socket" http://meterd/metrics | grep -E '^meterd_gpu' || true
nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader
wait_for 60 "the job is frozen at zero" job_is frozen
sleep 2
echo "--- frozen"
ctl jobs
nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader
[ "$(nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits)" -le 1 ] || fail "the GPU works on while the job is frozen"
charge=$(ctl receipt train --output json | json "d['charge']")
sleep 3
[ "$charge" = "$(ctl receipt train --output json | json "d['charge']")" ] || fail "frozen time was charged"
echo "--- top-up"
ctl account topup gpu-user 60
wait_for 20 "the job runs again" job_is running
wait "$run" || fail "the job ended with $?"
ended=$(date +%s.%N)
final() { [ "$(ctl receipt train --output json | json "d['state']")" = final ]; }
wait_for 20 "the receipt is final" final
echo "--- receipt"
ctl receipt train
ctl why train
ctl receipt train --output json >"$here/receipt.json"
ctl verify --receipt "$here/receipt.json" --card "$here/card.toml"
python3 - "$here/receipt.json" "$began" "$ended" <<'CHECK'
import json, sys
r = json.load(open(sys.argv[1])); whole = float(sys.argv[3]) - float(sys.argv[2])
held = sum(int(g["held_ns"]) for s in r["segments"] for g in s["gpus"]) / 1e9
frozen = sum(int(s["frozen_ns"]) for s in r["segments"]) / 1e9
print(f"held {held:.3f} s + frozen {frozen:.3f} s = {held + frozen:.3f} s of {whole:.3f} s from the call to its end; charge {r['charge']}")
assert abs(held + frozen - whole) < 3, "held and frozen time do not add up"
assert abs(float(r["charge"]) - held) < 1e-6, "the charge is not the held time"
assert r["outcome"] == "completed", r["outcome"]
CHECK
kill "$agent"; wait "$agent" || fail "the agent ended with $?"; agent=
echo "PASSED on a real GPU"
