#!/bin/sh
# What the image runs, by the name of its role: serve, worker, beat, engine; migrate is a job that ends.
# `manage` is for the rest of manage.py (doctor, create_key); anything else is run as it stands.
role=$1
case "$role" in
    serve) exec python manage.py "$@" ;;
    worker | beat) exec celery -A gateway_project "$@" ;;
    engine) shift && exec python -m detection.engines.server --host=0.0.0.0 --port=8081 "$@" ;;
    migrate) shift && exec python manage.py migrate --noinput "$@" ;;
    manage) shift && exec python manage.py "$@" ;;
    *) exec "$@" ;;
esac
