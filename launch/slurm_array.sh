#!/usr/bin/env bash
#SBATCH --job-name=flannel3
#SBATCH --array=0-9
#SBATCH --gres=gpu:1 --cpus-per-task=2
#SBATCH --time=04:00:00
#SBATCH --requeue --open-mode=append --signal=B:USR1@120
# A job array with a task for every run of an experiment (of ten), and then a job that gathers:
#   sbatch [other options] launch/slurm_array.sh --config configs/flannel3.yaml [--group.key value ...]
#   sbatch --dependency=afterany:JOB launch/slurm_gather.sh runs/flannel3
# `flannel-pl fit --launch.launcher slurm` submits both jobs and shows how far they are.
task=$(python -c 'from flannel_pl.launch.launchers.slurm import TASK_SCRIPT; print(TASK_SCRIPT)') || exit
exec bash "$task" 2 flannel-pl fit "$@" --experiment.run "$SLURM_ARRAY_TASK_ID"
