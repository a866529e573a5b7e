"""The cache of a single process, counted."""

from __future__ import annotations

from typing import Any

from django.core.cache.backends import locmem
from django_prometheus.cache.metrics import (
    django_cache_get_total,
    django_cache_hits_total,
    django_cache_misses_total,
)

_MISSING = object()


class LocMemCache(locmem.LocMemCache):
    """django-prometheus' own gives the default for a 0, a False or an empty list that is there."""

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        found = super().get(key, _MISSING, version)
        django_cache_get_total.labels(backend="locmem").inc()
        if found is _MISSING:
            django_cache_misses_total.labels(backend="locmem").inc()
            return default
        django_cache_hits_total.labels(backend="locmem").inc()
        return found
