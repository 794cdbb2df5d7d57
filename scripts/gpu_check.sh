#!/usr/bin/env bash
# Builds, proves and measures the kernels on the GPU of this machine, in under nine minutes and without a network:
#   scripts/gpu_check.sh [build] [test] [sanitize] [bench] [train] [sample] [step] [--rehearse]      (default: all stages)
# Needs only a Python with torch: PYTHON=… says which. scripts/gpu_check.py describes the stages.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" scripts/gpu_check.py "$@"
