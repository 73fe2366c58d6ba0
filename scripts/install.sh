#!/usr/bin/env bash
# Puts GPUStack into the folder PREFIX, an environment of its own, or replaces the one there: scripts/install.sh PREFIX
#
# Third parties come from requirements/runtime.txt, every file checked against its hash, from where pip's settings
# say. PREFIX/bin/gpustack is the command. A GPUStack that runs from there takes the new one by `gpustack restart`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { printf 'install: %s\n' "$*" >&2; exit 1; }

python=${PYTHON:-python3}
prefix=${1:-}
[[ $prefix == /* && $# -eq 1 ]] || fail "name one folder by its whole path, such as /opt/gpustack"
[[ ! -e $prefix || -e $prefix/pyvenv.cfg ]] || fail "$prefix is there and is no environment of Python; name another"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed (PYTHON=...)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
"$python" -m venv "$work/build" || fail "$python lacks its venv module (Debian, Ubuntu: apt install python3-venv)"
pip=("$work/build/bin/python" -m pip --quiet)
[[ -e $prefix ]] || "$python" -m venv --without-pip "$prefix"
into=(--python "$prefix/bin/python" install)

"${pip[@]}" install --only-binary :all: --require-hashes -r requirements/build.txt
"${pip[@]}" "${into[@]}" --only-binary :all: --require-hashes -r requirements/runtime.txt
# The version is the same from one commit to the next: what is there is replaced in any case.
"${pip[@]}" wheel --no-deps --no-index --no-build-isolation --wheel-dir "$work/wheels" \
    . ./core ./gpustack_backends ./gpustack_auth ./gpustack_gateway ./plugins/gpustack-demo-model ./plugins/gpustack-gpu-nvidia ./plugins/gpustack-system
"${pip[@]}" "${into[@]}" --no-deps --no-index --force-reinstall "$work"/wheels/*.whl
printf 'installed %s in %s\n' "$("$prefix/bin/gpustack" version)" "$prefix"
