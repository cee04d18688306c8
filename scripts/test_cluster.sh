#!/usr/bin/env bash
# Run the tests that need a real Kubernetes. Arguments are passed to pytest, such as a file or -k NAME.
#
# Starts a cluster with kube.sh unless KUBECONFIG is set, and installs the S3 server. The tests build the images and
# copy them to the node; PYRITE_IMAGES=loaded skips this if the node has the current images.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -z ${KUBECONFIG:-} ]]; then
  exports=$(bash scripts/kube.sh)
  eval "$exports"
fi
.venv/bin/python scripts/real_s3.py --install-only
exec .venv/bin/python -m pytest -m real "${@:-tests/real/cluster}"
