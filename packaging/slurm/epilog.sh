#!/bin/sh
# Slurm Epilog: tells the metering agent how a job ended. For slurm.conf:
#   Epilog=/etc/slurm/epilog.d/50-meterd
# slurmd runs it as root, without PATH. It always ends with 0: anything else would drain the node.
# The agent does not depend on it: it sees the job's cgroup go. The epilog adds the exit code.

name="slurm:${SLURM_JOB_ID:-}"
if [ "${SLURM_JOB_RESTART_COUNT:-0}" != 0 ]; then
    name="$name.r$SLURM_JOB_RESTART_COUNT"
fi

set -- "$name"
# <exit code>:<signal>
case "${SLURM_JOB_EXIT_CODE2:-}" in
    *:0) set -- "$@" --exit-code "${SLURM_JOB_EXIT_CODE2%%:*}" ;;
    *:*) set -- "$@" --exit-code "$((128 + ${SLURM_JOB_EXIT_CODE2##*:}))" ;;
esac

/usr/bin/timeout -s KILL 1.9 /usr/bin/meterctl job stop --hook "$@" </dev/null
exit 0
