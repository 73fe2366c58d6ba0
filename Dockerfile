# GPUStack in a container: the server with its database and worker, or a worker of another server.
#
#   docker build --tag gpustack .
#
# The base image needs Python 3.11 or newer with its venv module, and glibc. Packages come from where pip's
# settings say, and those are the builder's own: give them as secrets, which no layer keeps.
#
#   docker build --secret id=pip.conf,src=/etc/pip.conf --secret id=ca.crt,src=company-ca.crt --tag gpustack .
#
# HTTP_PROXY, HTTPS_PROXY and NO_PROXY are passed on with --build-arg, and are not kept either.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
# The second environment is what the image keeps, so it has no pip of its own.
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/gpustack
COPY requirements/build.txt requirements/runtime.txt requirements/
# hadolint ignore=DL3042
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/run/secrets/ca.crt \
    --mount=type=cache,target=/root/.cache/pip \
    set -eu; \
    if [ -e /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    /build/bin/pip install --quiet --only-binary :all: --require-hashes -r requirements/build.txt; \
    /build/bin/pip --python /opt/gpustack/bin/python install --quiet --only-binary :all: --require-hashes \
        -r requirements/runtime.txt
COPY . .
RUN set -eu; \
    /build/bin/pip wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir /wheels \
        . ./core ./gpustack_backends ./gpustack_auth ./gpustack_gateway ./plugins/gpustack-demo-model ./plugins/gpustack-gpu-nvidia ./plugins/gpustack-system; \
    /build/bin/pip --python /opt/gpustack/bin/python install --quiet --no-deps --no-index /wheels/*.whl

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="GPUStack" \
      org.opencontainers.image.description="Serves AI models on one machine or many" \
      org.opencontainers.image.licenses="Apache-2.0"
# The engine llama.cpp is parallel through OpenMP, whose library slim images leave out.
RUN python3 -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null || { \
        apt-get update && apt-get install --yes --no-install-recommends libgomp1 && \
        rm -rf /var/lib/apt/lists/*; \
    }
# The numbers are fixed: whoever mounts a folder of the host gives it to them.
RUN groupadd --gid 10150 gpustack && \
    useradd --uid 10150 --gid 10150 --home-dir /var/lib/gpustack --no-create-home gpustack && \
    install --directory --owner 10150 --group 10150 /var/lib/gpustack
COPY --from=build /opt/gpustack /opt/gpustack
ENV PATH=/opt/gpustack/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    GPUSTACK_DATA_DIR=/var/lib/gpustack \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10150:10150
WORKDIR /var/lib/gpustack
VOLUME /var/lib/gpustack
EXPOSE 80 10150
# The first start of all makes a database cluster; a restored backup or a migration may take longer.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s CMD ["gpustack", "status"]
ENTRYPOINT ["gpustack"]
CMD ["start"]
