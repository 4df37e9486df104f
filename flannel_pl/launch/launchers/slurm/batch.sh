#!/usr/bin/env bash
# What sbatch takes a copy of, so that it knows no file beside it: batch.sh SCRIPT [ARGUMENT ...]
exec bash "$@"
