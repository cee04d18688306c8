#!/usr/bin/env bash
# A one-node Kubernetes for tests and first steps: the one that lies beside this checkout, else kind, else words on how
# to get one.
#
#   kube.sh        start it, and say what to export
#   kube.sh load   build our images and copy them to its node
set -euo pipefail
cd "$(dirname "$0")/.."
beside=../shared/kube/up
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
python=.venv/bin/python
[[ -x $python ]] || python=python3

if [[ ! -x $beside ]] && ! command -v kind >/dev/null; then
  echo "no Kubernetes here. Install kind (https://kind.sigs.k8s.io) and a container engine, then run make kube again," >&2
  echo "or set KUBECONFIG to a cluster of yours." >&2
  exit 2
fi

case ${1:-} in
  "")
    if [[ -x $beside ]]; then
      config=$("$beside" | tail -n 1)
      echo "export KUBECONFIG=$config PATH=$(dirname "$config")/bin:\$PATH"
    else
      kind get clusters 2>/dev/null | grep -qx pyrite || kind create cluster --name pyrite
      kind export kubeconfig --name pyrite
    fi
    ;;
  load)
    if [[ -x $beside ]]; then # no registry, so the base is made here too
      bash scripts/install_buildah.sh
      bash scripts/base_image.sh pyrite-base:bookworm
      BUILDAH_ISOLATION=chroot "$python" scripts/images.py --tool buildah --base pyrite-base:bookworm
    else
      "$python" scripts/images.py
    fi
    for image in worker controller; do
      if [[ -x $beside ]]; then
        "$beside" --load "localhost/pyrite-$image:$version"
      else
        kind load docker-image --name pyrite "pyrite-$image:$version"
      fi
    done
    ;;
  *) sed -n '2,6p' "$0" >&2; exit 2 ;;
esac
