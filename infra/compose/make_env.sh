#!/bin/sh
# Writes .env beside compose.yaml, readable by you alone: .env.example with a random value for every empty name.
set -eu
cd "$(dirname -- "$0")"
if [ -e .env ]; then
    echo ".env is there already: kept" >&2
    exit 0
fi
umask 077
while IFS= read -r line; do
    case $line in
        *=) printf '%s%s\n' "$line" "$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')" ;;
        *) printf '%s\n' "$line" ;;
    esac
done < .env.example > .env.new
mv .env.new .env
echo ".env written; keep it to yourself"
