#!/usr/bin/env bash
# Runs a command as a Slurm batch job that loses nothing: task.sh MAX_RETRIES COMMAND [ARGUMENT ...]
# Submit it with --requeue --open-mode=append --signal=B:USR1@120.
job=$SLURM_JOB_ID
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID # the plain number of one task may stand for the whole array
fi
export FLANNEL_PL_STARTS=${SLURM_RESTART_COUNT:-0} FLANNEL_PL_REQUEUE="scontrol requeue $job"
exec bash "${BASH_SOURCE[0]%/*}/../../job.sh" "$@"
