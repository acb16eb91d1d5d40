#!/usr/bin/env bash
# Plants bugs of the grant protocol, one after another, into a copy of the product code, and requires that the fleet simulation finds each.
#
#   tests/pool/bugs/run.sh [NAME…]     all patches here and those of tests/sim/bugs that a fleet can show; or those named
#
#   METERD_POOL_SEEDS=300    fleets tried for each bug, from METERD_POOL_FIRST=1
# How it is done is told in tests/sim/bugs/run.sh.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
of_the_protocol=(
    answer_number_not_compared close_releases_all closes_too_early deadline_from_the_answer deadline_ignored epoch_kept_over_a_reboot
    grants_before_merging last_words_forgotten ledger_adds_spent node_adds_grants question_before_durable returned_credit_spent
    settled_twice_at_close
)
if [ $# -eq 0 ]; then
    set -- "${of_the_protocol[@]}"
    for patch in "$here"/*.patch; do
        set -- "$@" "$(basename "$patch" .patch)"
    done
fi
METERD_BUGS_OF=pool exec "$here/../../sim/bugs/run.sh" "$@"
