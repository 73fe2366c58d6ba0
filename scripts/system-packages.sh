#!/usr/bin/env bash
# Installs the system packages that tests use, where root and apt are at hand. Tests find them where the
# distribution puts them; no service is set up or started. Quick when all are there.
#
#   postgresql       an external database server, whatever version the distribution has
#   iproute2         the command ip: machines of their own as network namespaces
#   docker.io        a Docker engine for our image, run by the tests themselves
#   docker-registry  a registry that engines' images are really pulled from
#   mmdebstrap       the base of that image, made without a registry
#   docker-compose   checks the compose files
#   nginx            what our gateway is compared with, in bytes and in processor time
#   curl             asks as the documents do
set -euo pipefail

say() { printf 'system packages: %s\n' "$*" >&2; }

wanted=()
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || wanted+=(postgresql-common postgresql)
here() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null; }
here ip || wanted+=(iproute2)
here dockerd || wanted+=(docker.io)
here docker-registry || wanted+=(docker-registry)
here mmdebstrap || wanted+=(mmdebstrap)
here docker-compose || wanted+=(docker-compose)
here nginx || wanted+=(nginx)
here curl || wanted+=(curl)
[[ ${#wanted[@]} -gt 0 ]] || exit 0

[[ $EUID -eq 0 ]] || { say "not root, nothing installed; tests that miss one are skipped"; exit 0; }
here apt-get || { say "no apt here, nothing installed; tests that miss one are skipped"; exit 0; }

apt() { apt-get -qq -o Dpkg::Use-Pty=0 "$@" </dev/null; }
install() { apt install -y --no-install-recommends "$@" >/dev/null; }
export DEBIAN_FRONTEND=noninteractive

say "installing ${wanted[*]}"
apt update || say "the package lists could not be refreshed, trying with what is there"
# Newer distributions have the client and its builder apart.
if [[ " ${wanted[*]} " == *" docker.io "* ]]; then
    for part in docker-cli docker-buildx; do
        if apt-cache show "$part" >/dev/null 2>&1; then wanted+=("$part"); fi
    done
fi

made=()
trap 'rm -f "${made[@]}"' EXIT
# Only while installing: without this the package makes a cluster and starts it on port 5432.
switch=/etc/postgresql-common/createcluster.d/gpustack-tests.conf
mkdir -p "${switch%/*}"
made+=("$switch")
echo "create_main_cluster = false" >"$switch"
# The distribution's way to say that nothing is to be started.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    made+=("$policy")
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

install "${wanted[@]}" && exit 0
missing=()
for package in "${wanted[@]}"; do install "$package" || missing+=("$package"); done
[[ ${#missing[@]} -gt 0 ]] || exit 0
say "could not be installed: ${missing[*]}; the tests that use them are skipped"
# In CI a test that is skipped unseen is worse than a failure.
[[ -z ${CI:-} ]]
