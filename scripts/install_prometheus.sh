#!/usr/bin/env bash
# Install Prometheus and promtool from Debian packages for the tests of alerts and dashboards, without a service.
set -euo pipefail
command -v prometheus >/dev/null && command -v promtool >/dev/null && exit 0
[[ $EUID == 0 ]] || { echo "install_prometheus.sh: installing prometheus needs root; run sudo $0" >&2; exit 2; }
command -v apt-get >/dev/null || { echo "install_prometheus.sh: install prometheus with your system's package manager" >&2; exit 2; }
# Debian starts services on installation unless policy-rc.d forbids it.
no_service=/usr/sbin/policy-rc.d
if [[ ! -e $no_service ]]; then
  trap 'rm -f "$no_service"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$no_service"
  chmod 755 "$no_service"
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null
if [[ -d /run/systemd/system ]]; then
  systemctl disable --quiet prometheus
fi
