#!/bin/sh
# Slurm Epilog: tells the metering agent how a job ended. For slurm.conf:
#   Epilog=/etc/slurm/meterd-epilog.sh
# slurmd runs it as root, without PATH. It always ends with 0: anything else would drain the node.
# The agent does not depend on it: it sees the job's cgroup go. The epilog adds the exit code.

name="slurm:${SLURM_JOB_ID:-}"
if [ "${SLURM_JOB_RESTART_COUNT:-0}" != 0 ]; then
    name="$name.r$SLURM_JOB_RESTART_COUNT"
fi

set -- "$name"
# <exit code>:<signal>
case "${SLURM_JOB_EXIT_CODE2:-}" in
    0:0)
        # So ends what completed, and on the node also what was cancelled. A step that SIGTERM or SIGKILL ended (the worst of the steps, as
        # wait(2) gives it or as <exit code>:<signal>) says that it may have been the latter: then nobody knows here.
        steps="${SLURM_JOB_DERIVED_EC:-0}"
        case "$steps" in
            *:*) signal="${steps##*:}" ;;
            *[!0-9]*) signal=0 ;;
            *) signal="$((steps & 127))" ;;
        esac
        case "$signal" in
            9 | 15) set -- "$@" --outcome unknown ;;
            *) set -- "$@" --exit-code 0 ;;
        esac
        ;;
    *:0) set -- "$@" --exit-code "${SLURM_JOB_EXIT_CODE2%%:*}" ;;
    *:*) set -- "$@" --exit-code "$((128 + ${SLURM_JOB_EXIT_CODE2##*:}))" ;;
esac

/usr/bin/timeout -s KILL 1.9 /usr/bin/meterctl job stop --hook "$@" </dev/null
exit 0
