#!/usr/bin/env bash
#SBATCH --job-name=flannel-gather
#SBATCH --time=04:00:00
#SBATCH --requeue --open-mode=append
# Joins the finished recordings of an experiment into one file.
#   sbatch --dependency=afterany:JOB launch/slurm_gather.sh runs/flannel3
exec flannel-pl gather "$@"
