# syntax=docker/dockerfile:1
# One image for the api, the workers and the migrations. What it installs of Python is locked with hashes; the base is pinned by
# its tag alone: docs/deploy.md says how to pin its digest too.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ENV UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
RUN pip install --no-cache-dir --disable-pip-version-check uv==0.13.9
WORKDIR /src
RUN uv venv /opt/graft
# first what seldom changes: PyTorch and its CUDA libraries are most of the image
COPY requirements-prod.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --python /opt/graft/bin/python --compile-bytecode --require-hashes -r requirements-prod.lock
COPY . .
RUN --mount=type=cache,target=/root/.cache/uv \
    uv build --wheel --build-constraints requirements.lock --require-hashes \
    && uv pip install --python /opt/graft/bin/python --compile-bytecode --no-deps dist/*.whl

FROM ${PYTHON}
# For torch.compile: gcc with it, and the headers of libc; those of Python are in the base.
# hadolint ignore=DL3008 # Debian keeps no version but the newest, with its security fixes
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 graft \
    && useradd --uid 10001 --gid graft --no-create-home --home-dir /tmp --shell /usr/sbin/nologin graft \
    && install --directory --owner=graft --group=graft /data /inputs /plugins
COPY --from=build /opt/graft /opt/graft
ENV PATH=/opt/graft/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 \
    GRAFT_DATA_DIR=/data GRAFT_INPUTS_DIR=/inputs GRAFT_PLUGINS_DIR=/plugins
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
CMD ["python", "-m", "api", "--host", "0.0.0.0"]
