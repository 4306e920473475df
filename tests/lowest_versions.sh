#!/usr/bin/env bash
# Installs the lowest versions that pyproject.toml declares into a fresh environment and runs the tests there, before each release.
# Needs uv (pip install uv). PYTHON names another Python than 3.11: the versions are then the lowest with wheels for it.
#
#   tests/lowest_versions.sh [ARGUMENTS OF PYTEST ..]
set -euo pipefail
cd "$(dirname "$0")/.."
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
export NUMBA_CACHE_DIR=$place/numba
uv venv --quiet --python "${PYTHON:-3.11}" "$place/venv"
uv pip install --quiet --python "$place/venv/bin/python" --resolution lowest-direct --only-binary :all: --no-binary uturn \
  -e '.[cluster,dev,images,text,text-to-image,training]'
uv pip list --quiet --python "$place/venv/bin/python"
"$place/venv/bin/python" -m pytest -m "slow or not slow" "$@"
