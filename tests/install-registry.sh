#!/bin/sh
# Installs Debian's registry, its client and its Postgres for the tests, where that is allowed; where it is not, the
# tests that need them are skipped and say so.
set -u
missing=
command -v docker-registry >/dev/null || missing="$missing docker-registry"
command -v skopeo >/dev/null || missing="$missing skopeo"
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Not installed, and not root on Debian: the tests that need$missing will be skipped." >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
{ apt-get update -q && apt-get install -q -y --no-install-recommends $missing; } >/dev/null ||
    echo "apt-get could not install$missing: the tests that need them will be skipped." >&2
exit 0
