#!/bin/sh
# Slurm Prolog: tells the metering agent that a job begins. For slurm.conf:
#   Prolog=/etc/slurm/meterd-prolog.sh      PrologFlags=Alloc
# slurmd runs it as root, without PATH. It always ends with 0: anything else would drain the node.
# meterctl writes the call down before it makes it: when the agent does not answer, or meterctl is ended by timeout, the agent reads it later.

name="slurm:${SLURM_JOB_ID:-}"
if [ "${SLURM_JOB_RESTART_COUNT:-0}" != 0 ]; then
    # The same job id runs again: another attempt, with a bill of its own.
    name="$name.r$SLURM_JOB_RESTART_COUNT"
fi

# Without accounting Slurm names no account: then the user's own pays.
account="${SLURM_JOB_ACCOUNT:-${SLURM_JOB_USER:-}}"

set -- --job "$name" --account "$account" --uid "${SLURM_JOB_UID:-}" --slurm-job "${SLURM_JOB_ID:-}"
if [ -n "${SLURM_JOB_SLUID:-}" ]; then
    set -- "$@" --slurm-sluid "$SLURM_JOB_SLUID"
fi
if [ -n "${SLURM_JOB_GPUS:-}" ]; then
    set -- "$@" --gpus "$SLURM_JOB_GPUS"
fi
# A job on several nodes: its parts freeze and thaw together, and have one bill. All of them say the same name and run.
nodes="${SLURM_JOB_NUM_NODES:-${SLURM_NNODES:-}}"
case "$nodes:${SLURM_JOB_NODELIST:-}" in
    0:* | 1:* | *[!0-9]*:*) gang= ;;
    [1-9]*:*) gang=yes ;;
    # An older slurmd gives only the list of nodes, such as n[1-4] or a,b.
    :*[[,]*) gang=yes ;;
    *) gang= ;;
esac
if [ -n "$gang" ]; then
    set -- "$@" --gang "slurm:${SLURM_CLUSTER_NAME:+$SLURM_CLUSTER_NAME/}${SLURM_JOB_ID:-}" --gang-attempt "${SLURM_JOB_RESTART_COUNT:-0}"
    if [ -n "$nodes" ]; then
        set -- "$@" --gang-size "$nodes"
    fi
fi

/usr/bin/timeout -s KILL 1.9 /usr/bin/meterctl job start --hook "$@" </dev/null
exit 0
