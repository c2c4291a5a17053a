#!/bin/sh
# A Chromium for the browser tests of the report: the system's, else Debian's package where we may install one.
# Where neither works the tests that need a browser skip themselves and say so.
set -u
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null 2>&1; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing Chromium for the tests of the report"
    apt-get update -qq >/dev/null 2>&1
    apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1 && exit 0
fi
echo "note: no Chromium here and no right to install one; the browser tests of the report will skip themselves"
