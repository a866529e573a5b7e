# syntax=docker/dockerfile:1
# One image, four roles by their names: serve, worker, beat, engine; migrate is a job of its own.
# `make image` builds it, starts each of them, and says how large it is.

FROM docker.io/library/python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
# `strip`, for what packages compiled; whichever version, it does not reach the image.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends binutils \
    && rm -rf /var/lib/apt/lists/*
# pip fills the environment from outside, so none is in it.
RUN python -m venv --without-pip /venv
WORKDIR /app
# The pins first: while they stay, a change of code reuses this layer.
COPY requirements/base.txt requirements/engine.txt requirements/otel.txt requirements/s3.txt requirements/
RUN python -m pip --python /venv/bin/python install --no-cache-dir --no-compile --require-hashes \
        --only-binary=:all: -r requirements/base.txt
# EXTRA="engine otel s3" adds what a classifier (`engine --model`, `onnx:` engines), traces, and backups in a
# bucket need.
ARG EXTRA=""
RUN for extra in $EXTRA; do python -m pip --python /venv/bin/python install --no-cache-dir --no-compile \
        --require-hashes --only-binary=:all: -r "requirements/$extra.txt" || exit 1; done
COPY . .
# collectstatic reads the settings but no secret matters to it; none of these reaches the image.
# Bytecode is made now because the files are read-only for whoever runs them.
RUN SECRET_KEY=build KEY_PEPPERS=1:only-for-the-build \
        FIELD_ENCRYPTION_KEYS=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= DATABASE_URL=sqlite:////tmp/build.sqlite3 \
        /venv/bin/python manage.py collectstatic --noinput --ignore "*.map" \
    && python deploy/prune.py /venv \
    && rm -r deploy/prune.py requirements \
    && /venv/bin/python -m compileall -q -j 0 /venv/lib /app

FROM docker.io/library/python:3.11-slim-bookworm
# Each thread that waits for a store would get an arena of malloc's own, and keep what it freed.
ENV PATH=/venv/bin:$PATH \
    MALLOC_ARENA_MAX=2 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=8000
# POSTGRESQL_CLIENT=16 adds pg_dump and pg_restore of that version, for `manage backup` and `restore`: Debian's, if
# that is the one it has, else PostgreSQL's own packages.
ARG POSTGRESQL_CLIENT=""
# hadolint ignore=DL3008
RUN [ -z "$POSTGRESQL_CLIENT" ] || { apt-get update \
    && { apt-cache show "postgresql-client-$POSTGRESQL_CLIENT" >/dev/null 2>&1 \
        || { apt-get install -y --no-install-recommends ca-certificates postgresql-common \
            && /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y; }; } \
    && apt-get install -y --no-install-recommends "postgresql-client-$POSTGRESQL_CLIENT" \
    && rm -rf /var/lib/apt/lists/*; }
# What installs is the base's, and nothing is installed here. Its layer keeps it; no process finds it.
RUN find /usr -xdev \( -path "*-packages/pip*" -o -path "*-packages/setuptools*" \
        -o -path "*-packages/pkg_resources*" -o -path "*-packages/wheel*" \
        -o -path "*-packages/_distutils_hack*" -o -path "*-packages/distutils-precedence.pth" \
        -o -path "*/ensurepip" -o -path "*/python-wheels" -o -path "*/bin/pip" -o -path "*/bin/pip3*" -o -path "*/bin/wheel" \) \
        -prune -exec rm -rf {} +
# With a group of the same number: Celery takes one that has no name for root's.
RUN groupadd --system --gid 10001 gateway \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin gateway
WORKDIR /app
COPY --from=build /venv /venv
# Owned by root: the process can read its code and not change it.
COPY --from=build /app /app
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['PORT']}/health/live\", timeout=2)"]
ENTRYPOINT ["sh", "/app/deploy/entrypoint.sh"]
CMD ["serve"]
