# What ships: the image that BentoML builds (`bentoml build && bentoml containerize`), made fit for a locked-down host.
# `docker run IMAGE` is the Runpod worker, `docker run IMAGE serve` the HTTP service. Nothing of this folder is copied.
ARG BENTO_IMAGE=retouch:bento

# What is in it: every package with its version and licence, as CycloneDX.
FROM ${BENTO_IMAGE} AS sbom
USER 0
RUN uv venv /sbom && \
    uv pip install --python /sbom cyclonedx-bom==7.5.0 && \
    /sbom/bin/cyclonedx-py environment --output-reproducible --output-file /sbom.cdx.json /app/.venv

FROM ${BENTO_IMAGE}
COPY --from=sbom /sbom.cdx.json /

# A numeric user, so that Kubernetes can see that it is not root.
USER 1034:1034

# All that is written at run time lies under /tmp: with a tmpfs there the root file system can be read-only.
# Freed images go back to the system at once: glibc would keep them, and hold a source twice for a while.
# HF_HOME takes weights that are downloaded and code that is compiled: mount a volume, or bake the weights.
ENV HOME=/tmp \
    BENTOML_HOME=/tmp/bentoml \
    LOCAL_STORE_DIR=/tmp/store \
    HF_HOME=/home/bentoml/models \
    PYTHONPATH=/home/bentoml/bento/src \
    BENTOML_DISABLE_GPU_ALLOCATION=1 \
    BENTOML_DO_NOT_TRACK=True \
    HF_HUB_DISABLE_TELEMETRY=1 \
    MALLOC_MMAP_THRESHOLD_=1048576 \
    HF_XET_HIGH_PERFORMANCE=1

# Byte code of what is not a package: the user that runs it cannot always write.
RUN python -m compileall -q "$PYTHONPATH"

# Weights are baked if BAKE_MODEL names a hub id; a token comes as a secret, never as an argument:
#   --build-arg BAKE_MODEL=Qwen/Qwen-Image-Edit-2511 --build-arg BAKE_REVISION=<commit> --secret id=HF_TOKEN,env=HF_TOKEN
# HF_ENDPOINT names a mirror of the hub, for the build alone.
ARG BAKE_MODEL=""
ARG BAKE_REVISION=""
ARG HF_ENDPOINT
ENV MODEL_ID=${BAKE_MODEL} \
    MODEL_REVISION=${BAKE_REVISION}
RUN --mount=type=secret,id=HF_TOKEN,uid=1034,mode=0400 \
    mkdir "$HF_HOME" && \
    if [ -n "$BAKE_MODEL" ]; then \
        if [ -s /run/secrets/HF_TOKEN ]; then HF_TOKEN="$(cat /run/secrets/HF_TOKEN)" && export HF_TOKEN; fi && \
        python -c "import os; from retouch.engine.checkpoint.find import CheckpointSettings, find; find(os.environ['MODEL_ID'], CheckpointSettings(revision=os.environ['MODEL_REVISION']))"; \
    fi

# A worker has no port, the platform hears of it by its pings: only the service is asked.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request as http; b'retouch.worker' in open('/proc/1/cmdline', 'rb').read() or http.urlopen(f\"http://127.0.0.1:{os.environ.get('PORT', 3000)}/livez\", timeout=4)"]

ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="retouch" \
      org.opencontainers.image.description="Edits images by instruction with the Qwen-Image-Edit family: an HTTP service and a Runpod worker" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

CMD ["python", "-u", "-m", "retouch.worker"]
