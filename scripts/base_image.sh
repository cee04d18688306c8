#!/usr/bin/env bash
# Make a base image without a registry: Debian bookworm with its own Python 3.11, by debootstrap, into buildah's storage.
#
#   base_image.sh [NAME]     default pyrite-base:bookworm; does nothing where an image of that name is there
#
# For machines that reach Debian's packages but no image registry. `make images ARGS='--base NAME'` builds on it.
# Needs root (debootstrap makes a system's files), buildah and debootstrap: scripts/install_buildah.sh installs them.
set -euo pipefail
name=${1:-pyrite-base:bookworm}
buildah inspect --type image "$name" >/dev/null 2>&1 && exit 0

container=$(buildah from scratch)
trap 'buildah rm "$container" >/dev/null' EXIT
root=$(buildah mount "$container")
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" >&2
chroot "$root" apt-get clean
# The mirror's name is this machine's business, and nobody installs packages into a finished image.
rm -rf "$root"/etc/apt/sources.list "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/var/cache/* \
  "$root"/debootstrap "$root"/usr/share/{doc,man,locale,info}/*
buildah umount "$container" >/dev/null
buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --env LANG=C.UTF-8 --cmd python3 "$container"
buildah commit --quiet "$container" "$name" >/dev/null
