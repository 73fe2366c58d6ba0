#!/usr/bin/env bash
# Compiles requirements/*.txt: names, versions and hashes for every platform, no addresses.
# What is pinned stays so while it fits; `make lock LOCK_ARGS=--upgrade` takes the newest of everything.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export UV_CUSTOM_COMPILE_COMMAND="make lock"
members=(core gpustack_backends gpustack_auth gpustack_gateway plugins/gpustack-demo-model plugins/gpustack-gpu-nvidia plugins/gpustack-system)

compile() { # output, inputs and options
    .tools/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
        --no-emit-index-url --no-emit-find-links "${extra[@]}" -o "requirements/$1.txt" "${@:2}"
}

extra=("$@")
# The runtime's inputs are the members' own dependencies, so that they are written down once.
compile runtime "${members[@]/%//pyproject.toml}" \
    --no-emit-package gpustack-core --no-emit-package gpustack-backends \
    --no-emit-package gpustack-auth --no-emit-package gpustack-gateway
compile dev requirements/dev.in -c requirements/runtime.txt
compile build requirements/build.in -c requirements/dev.txt
compile uv requirements/uv.in
compile fuzz requirements/fuzz.in
# What the default version of an engine is installed from, beside our launcher for it.
compile ../gpustack_backends/src/gpustack_backends/llama_cpp/lock plugins/gpustack-llama-server/pyproject.toml
