"""Django's stores with django-prometheus' counts of what they are asked: `django_db_…`,
`django_cache_…`. Redis' cache is the library's own, `django_prometheus.cache.backends.redis`."""
