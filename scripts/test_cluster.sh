#!/usr/bin/env bash
# The tests on a real Kubernetes: starts one where KUBECONFIG names none, installs the S3 server, builds our images and
# copies them to the node. What is said after the script's name goes to pytest: a file, -k name.
#
# PYRITE_IMAGES=loaded skips the images, where they are on the node as they should be.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -z ${KUBECONFIG:-} ]]; then
  exports=$(bash scripts/kube.sh)
  eval "$exports"
fi
.venv/bin/python scripts/real_s3.py --install-only
exec .venv/bin/python -m pytest -m real "${@:-tests/real/cluster}"
