#!/bin/sh
# Installs what the tests run beside regstat, where that is allowed: Debian's registry, its client and its Postgres, and
# what builds and runs containers. Where it is not allowed, the tests that need it are skipped and say so.
set -u
missing=
# A file that the package brings, and the package.
while read -r file package; do
    # Not quoted: it may be a pattern.
    ls $file >/dev/null 2>&1 || missing="$missing $package"
done <<PACKAGES
/usr/bin/docker-registry docker-registry
/usr/bin/skopeo skopeo
/usr/lib/postgresql/*/bin/initdb postgresql
/usr/sbin/debootstrap debootstrap
/usr/bin/buildah buildah
/usr/bin/podman podman
/usr/sbin/runc runc
/usr/lib/podman/netavark netavark
/usr/lib/podman/aardvark-dns aardvark-dns
/usr/sbin/iptables iptables
/usr/bin/systemd-nspawn systemd-container
/sbin/ip iproute2
PACKAGES
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Not installed, and not root on Debian: the tests that need$missing will be skipped." >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
{ apt-get update -q && apt-get install -q -y --no-install-recommends $missing; } >/dev/null ||
    echo "apt-get could not install$missing: the tests that need them will be skipped." >&2
exit 0
