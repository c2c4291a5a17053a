#!/bin/sh
# Prometheus and promtool for `make test-slow`, unpacked from Debian's package into .local/prometheus. Nothing is installed
# or started on the system, and no root is needed; the package lists have to be there (apt-get update).
set -eu
cd "$(dirname -- "$0")/.."
target=.local/prometheus
if command -v promtool >/dev/null 2>&1 && command -v prometheus >/dev/null 2>&1; then exit 0; fi
if [ -x "$target/usr/bin/promtool" ]; then exit 0; fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "error: neither promtool nor apt-get is here: put prometheus and promtool on the PATH" >&2
    exit 1
fi
mkdir -p "$target"
if [ "$(id -u)" = 0 ]; then apt-get update -qq >/dev/null 2>&1 || true; fi
(cd "$target" && apt-get download -qq prometheus >/dev/null 2>&1 && dpkg -x prometheus_*.deb . && rm prometheus_*.deb)
echo "Prometheus is in $target/usr/bin"
