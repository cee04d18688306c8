#!/usr/bin/env bash
# Start a one-node Kubernetes for tests and first steps.
#
#   kube.sh        start the cluster and print the exports; PODS_REACH is the address of this machine for pods
#   kube.sh load   build the images, copy them to the node, and print the values for helm install
#
# PYRITE_TEST_CLUSTER names the command that provides the cluster (default: kind). Another command must start the
# cluster and print the path of its kubeconfig as its last line. It may put kubectl and helm into bin/ next to the
# kubeconfig. With --load IMAGE it copies an image from buildah's storage to the node. Fault tests also need a node that
# is this machine, --gpus N (the node offers N GPUs), and run/COMPONENT.pid next to the kubeconfig.
set -euo pipefail
cd "$(dirname "$0")/.."
cluster=${PYRITE_TEST_CLUSTER:-kind}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
options=()
python=.venv/bin/python
[[ -x $python ]] || python=python3

if ! command -v "$cluster" >/dev/null; then
  echo "Cannot start a cluster: $cluster is not installed. Install kind (https://kind.sigs.k8s.io) and a container" >&2
  echo "engine, set PYRITE_TEST_CLUSTER to another command, or set KUBECONFIG to an existing cluster." >&2
  exit 2
fi

case ${1:-} in
  "")
    if [[ $cluster == kind ]]; then
      kind get clusters 2>/dev/null | grep -qx pyrite || kind create cluster --name pyrite >&2
      kind export kubeconfig --name pyrite >&2
      gateways=$(docker network inspect kind --format '{{range .IPAM.Config}}{{.Gateway}} {{end}}')
      echo "export PODS_REACH=$(tr ' ' '\n' <<<"$gateways" | grep -m 1 -F .)"
    else
      config=$("$cluster" | tail -n 1)
      bin=$(dirname "$config")/bin
      address=$(PATH=$bin:$PATH kubectl --kubeconfig "$config" get nodes \
        -o 'jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}')
      echo "export KUBECONFIG=$config PATH=$bin:\$PATH PODS_REACH=$address"
    fi
    ;;
  load)
    if [[ $cluster == kind ]]; then
      "$python" scripts/images.py
    else # buildah needs no container engine and no image registry
      bash scripts/install_buildah.sh
      bash scripts/base_image.sh pyrite-base:bookworm
      BUILDAH_ISOLATION=chroot "$python" scripts/images.py --tool buildah --base pyrite-base:bookworm
    fi
    for image in worker controller; do
      if [[ $cluster == kind ]]; then
        kind load docker-image --name pyrite "pyrite-$image:$version"
      else
        "$cluster" --load "localhost/pyrite-$image:$version" # buildah's name for local images
        options+=("--set $image.image.repository=localhost/pyrite-$image")
      fi
    done
    echo "values for helm install: ${options[*]:-none (default image names)}"
    ;;
  *) sed -n '2,5p' "$0" >&2; exit 2 ;;
esac
