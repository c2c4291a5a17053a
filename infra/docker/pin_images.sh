#!/bin/sh
# Prints NAME=image:tag@sha256:… for every image that the Dockerfile, compose.yaml and the Kubernetes manifests name.
# Needs docker with buildx and the network. Use it as `sh infra/docker/pin_images.sh > infra/compose/images.env`, then
# `docker compose --env-file .env --env-file images.env …`, and BASE_IMAGE and UV_IMAGE as --build-arg of docker build.
set -eu
cd "$(dirname -- "$0")/../.."

pin() {
    digest=$(docker buildx imagetools inspect "$2" --format '{{.Manifest.Digest}}')
    echo "$1=$2@$digest"
}

sed -n 's/^ARG \([A-Z]*_IMAGE\)=\(.*\)$/\1 \2/p' infra/docker/Dockerfile | while read -r name image; do
    pin "$name" "$image"
done
sed -n 's/.*\${\([A-Z0-9]*_IMAGE\):-\([^}]*\)}.*/\1 \2/p' infra/compose/compose.yaml | sort -u |
    grep -v '^EMOBENCH_IMAGE ' | while read -r name image; do
        pin "$name" "$image"
    done
