# syntax=docker/dockerfile:1

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
WORKDIR /app
# The pins first: while they stay, a change of code reuses this layer.
COPY requirements/base.txt requirements/engine.txt requirements/
RUN /venv/bin/pip install --no-cache-dir --compile --require-hashes --only-binary=:all: \
        -r requirements/base.txt
# EXTRA=engine adds what a classifier needs (`manage.py engine --model`, `onnx:` engines).
ARG EXTRA=""
RUN [ -z "$EXTRA" ] || /venv/bin/pip install --no-cache-dir --compile --require-hashes \
        --only-binary=:all: -r "requirements/$EXTRA.txt"
COPY . .
# collectstatic reads the settings but no secret matters to it; none of these reaches the image.
# Bytecode is made now because the files are read-only for whoever runs them.
RUN SECRET_KEY=build KEY_PEPPERS=1:only-for-the-build \
        FIELD_ENCRYPTION_KEYS=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= DATABASE_URL=sqlite:////tmp/build.sqlite3 \
        /venv/bin/python manage.py collectstatic --noinput \
    && /venv/bin/python -m compileall -q -j 0 /app

FROM python:3.11-slim-bookworm
# Each thread that waits for a store would get an arena of malloc's own, and keep what it freed.
ENV PATH=/venv/bin:$PATH \
    MALLOC_ARENA_MAX=2 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=8000
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent \
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
CMD ["python", "manage.py", "serve"]
