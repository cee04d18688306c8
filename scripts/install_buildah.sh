#!/usr/bin/env bash
# Install what building images without docker needs, from Debian's packages: buildah (which builds), runc (its runtime,
# which buildah looks for even where it only uses chroot), and debootstrap (which makes a base image without a registry).
set -euo pipefail
missing=()
for program in buildah runc debootstrap; do
  command -v "$program" >/dev/null || missing+=("$program")
done
((${#missing[@]})) || exit 0
[[ $EUID == 0 ]] || { echo "install_buildah.sh: ${missing[*]} must be installed, which needs root: sudo $0" >&2; exit 2; }
command -v apt-get >/dev/null || { echo "install_buildah.sh: install ${missing[*]} with your system's package manager" >&2; exit 2; }
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
