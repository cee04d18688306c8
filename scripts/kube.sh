#!/usr/bin/env bash
# A one-node Kubernetes for tests and first steps: the one that lies beside this checkout, else kind, else words on how
# to get one.
#
#   kube.sh        start it, and say what to export; PODS_REACH is this machine's address, as its pods know it
#   kube.sh load   build our images, copy them to its node, and say what helm is to call them
set -euo pipefail
cd "$(dirname "$0")/.."
beside=../shared/kube/up
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
options=()
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
      bin=$(dirname "$config")/bin
      address=$("$bin/kubectl" --kubeconfig "$config" get nodes \
        -o 'jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}')
      echo "export KUBECONFIG=$config PATH=$bin:\$PATH PODS_REACH=$address"
    else
      kind get clusters 2>/dev/null | grep -qx pyrite || kind create cluster --name pyrite >&2
      kind export kubeconfig --name pyrite >&2
      gateways=$(docker network inspect kind --format '{{range .IPAM.Config}}{{.Gateway}} {{end}}')
      echo "export PODS_REACH=$(tr ' ' '\n' <<<"$gateways" | grep -m 1 -F .)"
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
        "$beside" --load "localhost/pyrite-$image:$version" # buildah's name for what comes from no registry
        options+=("--set $image.image.repository=localhost/pyrite-$image")
      else
        kind load docker-image --name pyrite "pyrite-$image:$version"
      fi
    done
    echo "what helm install needs to know: ${options[*]:-nothing, these are its own names}"
    ;;
  *) sed -n '2,6p' "$0" >&2; exit 2 ;;
esac
