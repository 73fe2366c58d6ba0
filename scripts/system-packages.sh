#!/usr/bin/env bash
# Installs the system packages that tests use, where root and apt are at hand. Tests find them under
# /usr/lib; no service is set up or started.
#
#   postgresql   an external database server, whatever version the distribution has
set -euo pipefail

say() { printf 'system packages: %s\n' "$*" >&2; }
missing() { # in CI a test that is skipped unseen is worse than a failure
    say "$*; the tests that use PostgreSQL from the system are skipped"
    [[ -z ${CI:-} ]] || exit 1
    exit 0
}

for server in /usr/lib/postgresql/*/bin/postgres; do
    if [[ -x $server ]]; then exit 0; fi
done

[[ $EUID -eq 0 ]] || { say "not root, nothing installed; tests that miss one are skipped"; exit 0; }
command -v apt-get >/dev/null || { say "no apt here, nothing installed; tests that miss one are skipped"; exit 0; }

apt() { apt-get -qq -o Dpkg::Use-Pty=0 "$@" </dev/null; }
export DEBIAN_FRONTEND=noninteractive

say "installing postgresql"
apt update || say "the package lists could not be refreshed, trying with what is there"
apt install -y --no-install-recommends postgresql-common >/dev/null || missing "postgresql-common could not be installed"

# Only while installing: without this the package makes a cluster and starts it on port 5432.
switch=/etc/postgresql-common/createcluster.d/gpustack-tests.conf
mkdir -p "${switch%/*}"
trap 'rm -f "$switch"' EXIT
echo "create_main_cluster = false" >"$switch"
apt install -y --no-install-recommends postgresql >/dev/null || missing "postgresql could not be installed"
