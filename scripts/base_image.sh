#!/usr/bin/env bash
# Create a base image without an image registry: Debian bookworm with Python 3.11, in buildah's storage.
#
#   base_image.sh [NAME]     default: pyrite-base:bookworm; does nothing if the image exists
#
# For machines with access to Debian packages but to no image registry; build with `make images ARGS='--base NAME'`.
# Needs root, buildah and debootstrap; scripts/install_buildah.sh installs the tools.
set -euo pipefail
name=${1:-pyrite-base:bookworm}
buildah inspect --type image "$name" >/dev/null 2>&1 && exit 0

container=$(buildah from scratch)
trap 'buildah rm "$container" >/dev/null' EXIT
root=$(buildah mount "$container")
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" >&2
chroot "$root" apt-get clean
# Remove the local mirror's name and files that a finished image does not need.
rm -rf "$root"/etc/apt/sources.list "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/var/cache/* \
  "$root"/debootstrap "$root"/usr/share/{doc,man,locale,info}/*
buildah umount "$container" >/dev/null
buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --env LANG=C.UTF-8 --cmd python3 "$container"
buildah commit --quiet "$container" "$name" >/dev/null
