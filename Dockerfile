# syntax=docker/dockerfile:1
# Shoal's image, in two targets: `cpu`, the last, and `gpu`. From the repository's root:
#   docker build --tag shoal:VERSION .
#   docker build --target gpu --tag shoal:VERSION-gpu .
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# The extra `otel`, which needs the others that it names.
ENV TRACES=opentelemetry-exporter-otlp-proto-http
COPY requirements.lock deploy/image/requirements deploy/image/requirements-gpu.lock ./
RUN ./requirements requirements.lock hatchling > build.txt \
    && pip install --require-hashes --requirement build.txt
COPY pyproject.toml README.md LICENSE ./
COPY shard shard
COPY cluster cluster
COPY router router
RUN pip wheel --no-deps --no-build-isolation --wheel-dir wheels .

FROM build AS build-cpu
RUN ./requirements requirements.lock --with=${TRACES} > run.txt \
    && python -m venv --without-pip /opt/shoal \
    && pip --python /opt/shoal/bin/python install --require-hashes --requirement run.txt \
    && pip --python /opt/shoal/bin/python install --no-deps wheels/*.whl

FROM build AS build-gpu
RUN ./requirements requirements.lock --with=${TRACES} --without=faiss-cpu > run.txt \
    && python -m venv --without-pip /opt/shoal \
    && pip --python /opt/shoal/bin/python install --require-hashes --requirement run.txt \
        --requirement requirements-gpu.lock \
    && pip --python /opt/shoal/bin/python install --no-deps wheels/*.whl

FROM python:${PYTHON} AS run
RUN pip uninstall --yes --root-user-action=ignore setuptools wheel pip \
    && groupadd --gid 10001 shoal \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp shoal \
    && install --directory --owner=10001 --group=10001 /scratch
ENV PATH=/opt/shoal/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# As of cluster/settings.py, which says why.
ENV RAY_USAGE_STATS_ENABLED=0 \
    RAY_DEDUP_LOGS=0 \
    RAY_worker_niceness=0 \
    OMP_WAIT_POLICY=PASSIVE \
    MALLOC_ARENA_MAX=2 \
    MALLOC_MMAP_THRESHOLD_=524288 \
    MALLOC_TRIM_THRESHOLD_=1048576 \
    ARROW_DEFAULT_MEMORY_POOL=system
USER 10001:10001
WORKDIR /tmp
EXPOSE 6333 6334
CMD ["shoal", "serve", "--host=0.0.0.0"]

FROM run AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-gpu /opt/shoal /opt/shoal

FROM run AS cpu
COPY --from=build-cpu /opt/shoal /opt/shoal
