#!/usr/bin/env bash
# Makes .venv with GPUStack in it; with "dev", also what tests and checks need; with "uv", no more than uv.
# Quick when nothing changed.
#
# Third parties come from requirements/*.txt, every file checked against its hash; the members of this
# repository are then installed editable, without dependencies, built by a hash-checked build back end.
# Nothing is written outside this folder but uv's cache. Mirrors set up for pip or uv are used.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
# gpustack-llama-server is not among them: pipx installs it per engine version, never into .venv.
members=(. core gpustack_backends gpustack_auth gpustack_gateway plugins/gpustack-demo-model plugins/gpustack-gpu-nvidia plugins/gpustack-system)
requirements=(requirements/runtime.txt requirements/build.txt)
if [[ ${1:-} == dev || -e .venv/.setup-dev ]]; then requirements+=(requirements/dev.txt); fi

say() { printf '%s\n' "$*" >&2; }
fail() { say "setup: $*"; exit 1; }

command -v "$python" >/dev/null || fail "no $python here: install Python 3.11 or newer (or name one: make PYTHON=...)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Python 3.11 or newer is needed, $python is $("$python" -V 2>&1) (name another: make PYTHON=python3.12)"

mkdir -p .tools .cache
if command -v flock >/dev/null; then
    exec 9>.cache/setup.lock
    flock -n 9 || { say "setup: another set-up is at work here, waiting for it"; flock 9; }
fi

# What .venv was made from; a moved clone counts as changed, because scripts hold absolute paths.
fingerprint() {
    {
        echo "$PWD"
        "$python" -c 'import sys; print(sys.version, sys.base_prefix)'
        cat "${BASH_SOURCE[0]}" requirements/uv.txt "${requirements[@]}" "${members[@]/%//pyproject.toml}"
    } 2>/dev/null | cksum
}
now=$(fingerprint)
if [[ ${1:-} != uv && -x .venv/bin/gpustack && "$(cat .venv/.setup 2>/dev/null)" == "$now" ]]; then exit 0; fi

# --- uv ---------------------------------------------------------------------------------------------

uv=.tools/uv/bin/uv
if [[ "$(cat .tools/uv/.setup 2>/dev/null)" != "$(echo "$PWD" | cat - requirements/uv.txt | cksum)" ]]; then
    say "setup: fetching uv"
    rm -rf .tools/uv
    "$python" -m venv .tools/uv ||
        { rm -rf .tools/uv; fail "$python cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)"; }
    .tools/uv/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --only-binary :all: \
        --require-hashes -r requirements/uv.txt
    echo "$PWD" | cat - requirements/uv.txt | cksum >.tools/uv/.setup
fi
if [[ ${1:-} == uv ]]; then exit 0; fi

export UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=${UV_NO_PROGRESS:-${CI:+1}}
[[ -n $UV_NO_PROGRESS ]] || unset UV_NO_PROGRESS
if [[ -z ${UV_CACHE_DIR:-} && ! -w ${XDG_CACHE_HOME:-${HOME:-/nonexistent}} ]]; then
    export UV_CACHE_DIR=$PWD/.cache/uv
fi
# uv does not read pip's settings: hand the index and the certificates set there on, unless uv has its own.
pip_settings=$(.tools/uv/bin/python -m pip --disable-pip-version-check config list 2>/dev/null || true)
pip_setting() { sed -n "s/^\(global\|:env:\)\.$1='\(.*\)'\$/\2/p" <<<"$pip_settings" | tail -n 1; }
if [[ -z ${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-} && -n $(pip_setting index-url) ]]; then
    UV_DEFAULT_INDEX=$(pip_setting index-url)
    export UV_DEFAULT_INDEX
fi
if [[ -z ${SSL_CERT_FILE:-} && -n $(pip_setting cert) ]]; then
    SSL_CERT_FILE=$(pip_setting cert)
    export SSL_CERT_FILE
fi

# --- .venv ------------------------------------------------------------------------------------------

base=$("$python" -c 'import sys; print(sys.version_info[:3], sys.base_prefix)')
if [[ "$(.venv/bin/python -c 'import sys; print(sys.version_info[:3], sys.base_prefix)' 2>/dev/null)" != "$base" ||
      "$(cat .venv/.setup-place 2>/dev/null)" != "$PWD" ]]; then
    say "setup: making .venv"
    rm -rf .venv
    "$uv" venv --quiet --python "$("$python" -c 'import sys; print(sys.executable)')" --prompt gpustack .venv
    echo "$PWD" >.venv/.setup-place
fi
rm -f .venv/.setup

say "setup: installing ${requirements[*]}"
# Compiled here and now: else the first start pays for it, and every start where Python may not write bytecode.
"$uv" pip install --quiet --compile-bytecode --python .venv --require-hashes "${requirements[@]/#/-r}"

say "setup: installing the members"
"$uv" pip install --quiet --python .venv --no-deps --no-build-isolation --no-index "${members[@]/#/-e./}"

# A read-only checkout still works, only slower.
.venv/bin/python -m compileall -q "${members[@]:1}" || say "setup: the sources could not be compiled ahead"

if [[ ${requirements[*]} == *dev.txt* ]]; then touch .venv/.setup-dev; fi
echo "$now" >.venv/.setup
