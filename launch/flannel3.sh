#!/usr/bin/env bash
# The notebook's experiment on every device of this host. The same command again goes on where it stopped.
#   launch/flannel3.sh [--group.key value ...]
set -euo pipefail
exec flannel-pl fit --config "$(dirname "$0")/../configs/flannel3.yaml" "$@"
