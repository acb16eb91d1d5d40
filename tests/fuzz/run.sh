#!/usr/bin/env bash
# Fuzzes everything that parses: `tests/fuzz/run.sh [EXECUTIONS [TARGET…]]`, EXECUTIONS for each target (default 1,300,000: ten million
# in all), and a quarter of that for those that price what they read, or read it from files or through a library.
# Prints a line for each target and ends with the first crash: a panic (overflows among them), an abort, more than 1 GiB, or ten
# seconds for one input. What it finds goes to tests/fuzz/regressions/TARGET/, where `cargo test --test parsers` runs it too.
set -euo pipefail

cd "$(dirname "$0")"
executions="${1:-1300000}"
shift || true
targets=("$@")
if [ "${#targets[@]}" = 0 ]; then
    mapfile -t targets < <(sed -n 's/^    ("\([a-z]*\)", [a-z]*),$/\1/p' targets.rs)
fi
host="$(rustc -vV | sed -n 's/^host: //p')"
build="${CARGO_TARGET_DIR:-$PWD/../../target}/fuzz"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# What cargo-fuzz sets, without a sanitizer: the stable toolchain has all of it. `--target` keeps it away from build scripts.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares"
RUSTFLAGS="$(tr -s '\n ' ' ' <<<"$RUSTFLAGS")"
CARGO_TARGET_DIR="$build" cargo build --locked --release --target "$host"
program="$build/$host/release/parse"

total=0
printf '%12s %9s %8s  %s\n' executions seconds crashes target
for target in "${targets[@]}"; do
    mkdir -p "$work/$target" "regressions/$target"
    began=$SECONDS
    case "$target" in
        config | card | log | receipt | cgroup | detail | proc | nvml) runs=$((executions / 4)) ;;
        *) runs="$executions" ;;
    esac
    seeds=("$work/$target")
    for folder in "corpus/$target" "regressions/$target"; do
        if [ -d "$folder" ]; then seeds+=("$folder"); fi
    done
    if ! METERD_FUZZ_TARGET="$target" "$program" -runs="$runs" -max_len=4096 -timeout=10 -rss_limit_mb=1024 \
        -malloc_limit_mb=512 -detect_leaks=0 -verbosity=0 -print_final_stats=1 -artifact_prefix="regressions/$target/" "${seeds[@]}" >"$work/output" 2>&1; then
        tail -n 40 "$work/output"
        echo "CRASH in $target: the input is in tests/fuzz/regressions/$target/" >&2
        exit 1
    fi
    done_count="$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/output")"
    rmdir --ignore-fail-on-non-empty "regressions/$target"
    printf '%12d %9d %8d  %s\n' "$done_count" $((SECONDS - began)) 0 "$target"
    total=$((total + done_count))
done
printf '%12d %9d %8d  %s\n' "$total" "$SECONDS" 0 "in all"
