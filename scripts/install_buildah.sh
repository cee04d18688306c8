#!/usr/bin/env bash
# Install the tools for building images without docker, from Debian packages: buildah, its runtime runc (required even
# with chroot isolation), and debootstrap (which creates a base image without a registry).
set -euo pipefail
missing=()
for program in buildah runc debootstrap; do
  command -v "$program" >/dev/null || missing+=("$program")
done
((${#missing[@]})) || exit 0
[[ $EUID == 0 ]] || { echo "install_buildah.sh: installing ${missing[*]} needs root; run sudo $0" >&2; exit 2; }
command -v apt-get >/dev/null || { echo "install_buildah.sh: install ${missing[*]} with your system's package manager" >&2; exit 2; }
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
