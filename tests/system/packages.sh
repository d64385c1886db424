#!/bin/sh
# Installs what the system tests need and the machine lacks, from Debian's packages.
# No service of theirs may start (sshd on port 22, a KDC): policy-rc.d forbids it meanwhile.
set -eu
missing=
need() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing="$missing $2"; }
need sshd openssh-server
need ssh openssh-client
need ip iproute2
need curl curl
need perl perl
need cc gcc
need runsv runit
need systemd-analyze systemd
need tcsh tcsh
need valgrind valgrind
need fish fish
need krb5kdc krb5-kdc
need kadmin.local krb5-admin-server
need kinit krb5-user
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "The system tests need these packages, please install them:$missing" >&2
    exit 1
fi
echo "installing$missing"
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod 755 $policy
    trap 'rm -f $policy' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -q update >/dev/null
# shellcheck disable=SC2086
apt-get -qy install --no-install-recommends $missing >/dev/null
