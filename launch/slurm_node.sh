#!/usr/bin/env bash
#SBATCH --job-name=flannel3
#SBATCH --nodes=1 --exclusive --gres=gpu:8
#SBATCH --time=04:00:00
#SBATCH --requeue --open-mode=append --signal=B:USR1@120
# One job with all GPUs of a node: the launcher in it spreads the runs over them and gathers.
#   sbatch [other options] launch/slurm_node.sh --config configs/flannel3.yaml [--group.key value ...]
task=$(python -c 'from flannel_pl.launch.launchers.slurm import TASK_SCRIPT; print(TASK_SCRIPT)') || exit
exec bash "$task" 0 flannel-pl fit "$@"
