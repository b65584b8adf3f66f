# syntax=docker/dockerfile:1
# One image for the api, the workers and the migrations. What it installs is locked with hashes; the base is pinned by its tag
# alone: to pin the digest too, add the one that `docker buildx imagetools inspect python:3.11-slim-bookworm` tells you.
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
