"""The outer ring: settings, URLs, ASGI, Celery, checks. Its inner ring is `core`."""

import ctypes
import gc

__version__ = "0.1.0"  # the one place; pyproject.toml and the settings read it here

# Nearly all that a request or an import makes is freed without the collector: it comes rarely. Said
# before anything else is imported, an eighth of whose time it took.
gc.set_threshold(50_000, 20, 100)

# All threads share two of malloc's arenas. By itself each has one of its own (eight for each core),
# which keeps most of what that thread ever freed: a web process grew by 7 MB in ten minutes.
M_ARENA_MAX = -8  # mallopt(3)
if hasattr(_libc := ctypes.CDLL(None), "mallopt"):  # glibc's
    _libc.mallopt(M_ARENA_MAX, 2)

from gateway_project.celery import app as celery_app  # noqa: E402

__all__ = ["__version__", "celery_app"]
