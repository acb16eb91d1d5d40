#!/usr/bin/env bash
# Plants one bug after another into a copy of the product code, and requires that a test finds each.
#
#   tests/sim/bugs/run.sh [NAME…]     all patches here, or those named (NAME or NAME.patch)
#
# A bug is found when a seed fails with it that passes without it; with a line `# test: ARGUMENTS` in its patch, when
# `cargo test ARGUMENTS` fails with it and passes without it. A patch that does not apply or does not compile is missed.
#
#   METERD_SIM_SEEDS=300    seeds tried for each bug, from METERD_SIM_FIRST=1
# The fleet simulation's bugs are planted by tests/pool/bugs/run.sh, which calls this with METERD_BUGS_OF=pool: seeds and bugs are then its own.
# Builds go to the folder `planted` of the usual target folder, one for all bugs, since cargo takes what it built of a copy for its own.
# The copy and the logs are in `planted/bugs`. What the usual folder holds of dependencies is linked, not built again.
set -euo pipefail

root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
suite=${METERD_BUGS_OF:-sim}
bugs=$root/tests/$suite/bugs
usual=${CARGO_TARGET_DIR:-$root/target}
export CARGO_TARGET_DIR=$usual/planted
export METERD_SIM_SEEDS=${METERD_SIM_SEEDS:-300} METERD_SIM_FIRST=${METERD_SIM_FIRST:-1}
export METERD_SIM_LINES=0 CARGO_PROFILE_DEV_DEBUG=0
unset METERD_SIM_SEED
case $suite in
    sim) filter=fresh ;;
    pool)
        filter=small
        export METERD_POOL_SEEDS=${METERD_POOL_SEEDS:-300} METERD_POOL_FIRST=${METERD_POOL_FIRST:-1}
        METERD_SIM_SEEDS=$METERD_POOL_SEEDS METERD_SIM_FIRST=$METERD_POOL_FIRST
        unset METERD_POOL_SEED METERD_POOL_NODES
        ;;
    *) echo "no simulation is called $suite" >&2; exit 2 ;;
esac
seconds_max=600 # a run that takes longer hangs, and that is a failure too

# The copy has the same place each time, so that only what changed is compiled again.
work=$CARGO_TARGET_DIR/bugs
tree=$work/tree
logs=$work/logs
rm -rf "$work"
mkdir -p "$tree" "$logs"
(cd "$root" && git ls-files -z | xargs -0 cp --parents --target-directory="$tree")
if [ ! -d "$CARGO_TARGET_DIR/debug" ] && [ -d "$usual/debug/.fingerprint" ]; then
    mkdir -p "$CARGO_TARGET_DIR"/debug/{.fingerprint,build,deps}
    (
        cd "$usual/debug"
        for kind in .fingerprint build; do
            find "$kind" -mindepth 1 -maxdepth 1 ! -name 'meterd-*' -exec cp -al -t "$CARGO_TARGET_DIR/debug/$kind" {} +
        done
        find deps -maxdepth 1 \( -name '*.rlib' -o -name '*.rmeta' -o -name '*.so' \) ! -name 'libmeterd-*' \
            -exec cp -al -t "$CARGO_TARGET_DIR/debug/deps" {} +
    )
fi
cd "$tree"
export GIT_CEILING_DIRECTORIES=$work # the copy is no repository, even if it lies in one

# The simulations need the core alone; to build the edges and the programs too for each bug would take several times as long.
cp Cargo.toml "$work/manifest"
cp src/lib.rs "$work/lib"
core_alone() {
    sed '/^\[\[bin\]\]/,/^$/d; /^default-run/d; s/^\[package\]/&\nautobins = false/' "$work/manifest" >Cargo.toml
    sed -E '/^(pub )?mod /{/^pub mod domain;/!d}' "$work/lib" >src/lib.rs
}
whole() {
    cp "$work/manifest" Cargo.toml
    cp "$work/lib" src/lib.rs
}

patches=()
for name in "$@"; do
    patch=$bugs/$(basename "$name" .patch).patch
    [ -e "$patch" ] || patch=$root/tests/sim/bugs/$(basename "$patch")
    patches+=("$patch")
done
[ $# -gt 0 ] || patches=("$bugs"/*.patch)

# Builds the simulation; prints the path of the program. It is optimised a little, since hundreds of seeds are run.
build() {
    CARGO_PROFILE_DEV_OPT_LEVEL=1 cargo test --quiet --test "$suite" --no-run --message-format=json 2>"$logs/$1.build" |
        sed -n 's/.*"target":{"kind":\["test"\].*"name":"'"$suite"'".*"executable":"\([^"]*\)".*/\1/p'
}

# simulate LOG PROGRAM FIRST COUNT: the first of so many seeds that fails, or what else went wrong; nothing if nothing did.
simulate() {
    local status=0
    METERD_POOL_FAILURES=0 METERD_SIM_FAILURES=0 METERD_POOL_FIRST=$3 METERD_SIM_FIRST=$3 METERD_POOL_SEEDS=$4 METERD_SIM_SEEDS=$4 \
        timeout "$seconds_max" "$2" "$filter" --nocapture >"$1" 2>&1 || status=$?
    sed -n 's/^seed=\([0-9]*\) failed.*/\1/p' "$1" | head -n 1
    case $status in
        0 | 101) ;;
        124) echo hangs ;;
        *) echo "status $status" ;;
    esac
}

# first_found LOG PROGRAM: the first seed that fails with this program, and passes without a bug.
first_found() {
    local first=$METERD_SIM_FIRST end=$((METERD_SIM_FIRST + METERD_SIM_SEEDS)) seed count
    while [ "$first" -lt "$end" ]; do
        seed=$(simulate "$1" "$2" "$first" $((end - first)) | head -n 1)
        case $seed in
            "") return ;;
            *[!0-9]*) count=$((end - first)) ;; # nobody knows in which
            *) count=1 first=$seed ;;
        esac
        if [ -z "$(simulate "$logs/clean" "$work/clean" "$first" "$count")" ]; then
            echo "$seed"
            return
        fi
        echo "seed $seed" >>"$work/unclean"
        [ "$count" -eq 1 ] || return
        first=$((seed + 1))
    done
}

# The first sentence of the first failure, or of the failure of one seed.
why() {
    tr -d '\000' <"$1" | awk -v seed="${2:-}" '
        /panicked at/ { getline line; why = line; sub(/^assertion .* failed: /, "", why) }
        why != "" && (seed == "" || index($0, "seed=" seed " failed") == 1) { print substr(why, 1, 90); exit }'
}

# What the one simulation cannot find the other may: the tests named in a patch stand for the one that it lies beside.
tests_of() { [ "$(dirname "$1")" != "$bugs" ] || sed -n 's/^# test: //p' "$1"; }

row() { printf '%-32s %-8s %6s %7s  %s\n' "$@"; }

missed=0
miss() {
    row "$1" MISSED - - "$2"
    missed=$((missed + 1))
}

echo "without a bug" >&2
core_alone
program=$(build clean) || true
[ -n "$program" ] || { cat "$logs/clean.build" >&2; echo "the tree does not compile" >&2; exit 2; }
cp "$program" "$work/clean"
whole
for patch in "${patches[@]}"; do
    [ -e "$patch" ] || continue
    while read -r -a arguments; do
        if ! cargo test --quiet "${arguments[@]}" >"$logs/clean.test" 2>&1 </dev/null ||
            ! grep -q 'test result: ok\. [1-9]' "$logs/clean.test"; then
            echo "NOT CLEAN: cargo test ${arguments[*]} fails, or runs nothing, without any bug"
            missed=$((missed + 1))
        fi
    done < <(tests_of "$patch" | sort -u)
done

row BUG FOUND SEEDS SECONDS BY
for patch in "${patches[@]}"; do
    name=$(basename "$patch" .patch)
    log=$logs/$name
    begun=$SECONDS
    if ! git apply -p1 "$patch" 2>"$log"; then
        miss "$name" "the patch does not apply"
        continue
    fi
    mapfile -t arguments < <(tests_of "$patch" | tr ' ' '\n')
    if [ ${#arguments[@]} -gt 0 ]; then
        whole
        if ! cargo test --quiet "${arguments[@]}" --no-run >"$log" 2>&1; then
            miss "$name" "does not compile"
        elif cargo test --quiet "${arguments[@]}" >"$log" 2>&1; then
            miss "$name" "cargo test ${arguments[*]}"
        else
            row "$name" yes - $((SECONDS - begun)) "cargo test ${arguments[*]}"
        fi
    else
        core_alone
        program=$(build "$name") || true
        if [ -z "$program" ]; then
            miss "$name" "does not compile"
        else
            seed=$(first_found "$log" "$program")
            case $seed in
                "") miss "$name" "$METERD_SIM_SEEDS seeds in $((SECONDS - begun)) s" ;;
                *[!0-9]*) row "$name" yes - $((SECONDS - begun)) "$seed" ;;
                *) row "$name" yes $((seed - METERD_SIM_FIRST + 1)) $((SECONDS - begun)) "$(why "$log" "$seed")" ;;
            esac
        fi
    fi
    git apply -p1 -R "$patch"
done
if [ -e "$work/unclean" ]; then
    echo "NOT CLEAN: these fail without any bug and prove nothing: $(sort -u "$work/unclean" | tr '\n' ' ')"
    missed=$((missed + 1))
fi
[ "$missed" -eq 0 ]
