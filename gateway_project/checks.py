"""Mistakes in the settings that can be seen before a request is served (`manage.py check`)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.checks import Warning as CheckWarning

from detection.engines import classifier, registry
from detection.engines.addresses import Address, BadAddress
from gateway_project import environment

SECRET_CHARS_MIN = 32


@register(Tags.compatibility)
def check_settings(app_configs: Any, **_: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    if settings.WORKERS > 1 and not settings.REDIS_URL:
        found.append(
            Error(
                "WORKERS is above 1 without REDIS_URL: each worker would count limits on its own.",
                hint="Set REDIS_URL, or WORKERS=1.",
                id="gateway.E001",
            )
        )
    if settings.LOG_FORMAT not in ("json", "console"):
        found.append(
            Error("LOG_FORMAT is unknown.", hint="Use json or console.", id="gateway.E002")
        )
    if settings.RATE_LIMIT_FAILURE_POLICY not in ("local", "open", "closed"):
        found.append(
            Error(
                "RATE_LIMIT_FAILURE_POLICY is unknown.",
                hint="Use local, open or closed.",
                id="gateway.E003",
            )
        )
    if len(settings.SECRET_KEY) < SECRET_CHARS_MIN:
        found.append(
            Error(
                f"SECRET_KEY is shorter than {SECRET_CHARS_MIN} characters: it could be guessed.",
                hint='python3 -c "import secrets; print(secrets.token_urlsafe(60))"',
                id="gateway.E009",
            )
        )
    try:
        found += _engines(registry.configured())
    except BadAddress as exc:
        found.append(
            Error(
                f"{exc}.",
                hint="docs/engine.md has every kind, as in http://detection-engine:8080",
                id="gateway.E004",
            )
        )
    if not 0 <= settings.DETECTION_ENGINE_SCORE_FLOOR < 1:
        found.append(
            Error(
                "DETECTION_ENGINE_SCORE_FLOOR must lie between 0 and 1.",
                hint="0.5 for the Go engine, 0 for an engine without a floor.",
                id="gateway.E005",
            )
        )
    if settings.EMBEDDED_WORKER and settings.WORKERS > 1:
        found.append(
            Error(
                "EMBEDDED_WORKER runs in the one web process, but WORKERS is above 1.",
                hint="Run `celery -A gateway_project worker` beside the gateway.",
                id="gateway.E006",
            )
        )
    if not 0 <= settings.DRAIN_SECONDS < float("inf"):
        found.append(
            Error(
                "DRAIN_SECONDS is no number of seconds.",
                hint="5, or a little more than your proxy takes to notice; 0: no drain.",
                id="gateway.E008",
            )
        )
    if settings.TRACING and find_spec("opentelemetry.exporter") is None:
        found.append(
            Error(
                "TRACING is on, and OpenTelemetry is not installed.",
                hint=".venv/bin/pip install -r requirements/otel.txt, an image that was built with "
                "EXTRA=otel, or leave TRACING out.",
                id="gateway.E010",
            )
        )
    return found + _environment() + _proxies() + _robin()


def _environment() -> list[CheckMessage]:
    """What the environment says that is probably not meant."""
    return [
        CheckWarning(one.message, hint=one.do, id=one.id)
        for one in environment.doubts(settings.ENVIRONMENT_ASKED)
    ]


def _proxies() -> list[CheckMessage]:
    """The gateway itself speaks plain HTTP: whoever has TLS has a proxy in front."""
    found: list[CheckMessage] = []
    if settings.HTTPS_ONLY and not settings.TRUSTED_PROXY_HOPS:
        found.append(
            CheckWarning(
                "HTTPS_ONLY is on, so a proxy ends TLS; but TRUSTED_PROXY_HOPS is 0: all callers "
                "count as one address, the proxy's, and share its limits and lock-outs.",
                hint=(
                    "TRUSTED_PROXY_HOPS=1, or as many proxies of yours as stand in front, each of "
                    "which has to write X-Forwarded-For and X-Forwarded-Proto. Without TLS: "
                    "HTTPS_ONLY=false."
                ),
                id="gateway.W003",
            )
        )
    if settings.TRUSTED_PROXY_HOPS < 0:
        found.append(
            Error(
                "TRUSTED_PROXY_HOPS is no number of proxies.",
                hint="0: nobody stands in front; 1: one proxy of yours.",
                id="gateway.E012",
            )
        )
    is_named = settings.IS_LOCAL or any(map(_is_name, settings.ALLOWED_HOSTS))
    if not settings.PUBLIC_URL and not is_named:
        found.append(
            CheckWarning(
                "PUBLIC_URL is not set, and ALLOWED_HOSTS has no whole name: links in answers and "
                f"mails begin with http://{settings.HOST}:{settings.PORT}.",
                hint="PUBLIC_URL=https://gateway.example, as people and programs reach it.",
                id="gateway.W004",
            )
        )
    if settings.HTTPS_ONLY and settings.PUBLIC_URL.startswith("http:"):
        found.append(
            Error(
                "HTTPS_ONLY is on, but PUBLIC_URL begins with http:",
                hint="PUBLIC_URL=https://…, or HTTPS_ONLY=false.",
                id="gateway.E011",
            )
        )
    return found


def _is_name(host: str) -> bool:
    return not host.startswith((".", "*"))


def _engines(known: Mapping[str, Address]) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for one in known.values():
        is_plain = one.url.startswith("http://") and "+" in one.kind
        host = urlsplit(one.url).hostname or ""
        if is_plain and (one.secret or one.user) and not host.startswith(("127.", "localhost")):
            found.append(
                CheckWarning(
                    f"The key of the engine '{one.name}' is sent over http, for anybody to read.",
                    hint=f"Use {one.kind.removesuffix('http')}https:// if it is not beside us.",
                    id="gateway.W002",
                )
            )
        if one.kind == "onnx" and (missing := classifier.missing_libraries()):
            found.append(
                Error(
                    f"The engine '{one.name}' needs {', '.join(missing)}.",
                    hint="pip install -r requirements/engine.txt",
                    id="gateway.E010",
                )
            )
    return found


def _robin() -> list[CheckMessage]:
    found: list[CheckMessage] = []
    if len(settings.JWT_SECRET) < 32:
        found.append(
            Error(
                "JWT_SECRET is too short to sign tokens with.",
                hint="At least 32 random characters, or none: it is derived from SECRET_KEY then.",
                id="gateway.E020",
            )
        )
    if settings.JWT_ALGORITHM not in ("HS256", "HS384", "HS512"):
        found.append(
            Error(
                "JWT_ALGORITHM does not go with a shared secret.",
                hint="Use HS256, HS384 or HS512.",
                id="gateway.E021",
            )
        )
    if settings.ACCESS_TOKEN_EXPIRE_MINUTES < 1 or settings.REFRESH_TOKEN_EXPIRE_DAYS < 1:
        found.append(
            Error(
                "Tokens must live for some time.",
                hint="ACCESS_TOKEN_EXPIRE_MINUTES=30 and REFRESH_TOKEN_EXPIRE_DAYS=7.",
                id="gateway.E022",
            )
        )
    if settings.QUEUE_POLL_SECONDS <= 0:
        found.append(
            Error(
                "QUEUE_POLL_SECONDS is no number of seconds.",
                hint="5, or how often Robin can bear to be asked.",
                id="gateway.E023",
            )
        )
    return found + _robin_ports()


def _robin_ports() -> list[CheckMessage]:
    found: list[CheckMessage] = []
    urls = (settings.ROBIN_CLIENT_API_URL, settings.ROBIN_SERVICE_API_URL)
    if any(urls) and not all(_is_http(url) for url in urls):
        found.append(
            Error(
                "ROBIN_CLIENT_API_URL and ROBIN_SERVICE_API_URL are not two http(s) addresses.",
                hint="For example http://robin:8090 and http://robin:8080, or neither.",
                id="gateway.E024",
            )
        )
    if settings.ROBIN_TIMEOUT_SECONDS <= 0 or settings.ROBIN_LOGS_TIMEOUT_SECONDS <= 0:
        found.append(
            Error(
                "Robin must have some time for an answer.",
                hint="ROBIN_TIMEOUT_SECONDS=5 and ROBIN_LOGS_TIMEOUT_SECONDS=30.",
                id="gateway.E025",
            )
        )
    try:
        ZoneInfo(settings.ROBIN_LOG_TIMEZONE)
    except (ValueError, OSError, LookupError):
        found.append(
            Error(
                "ROBIN_LOG_TIMEZONE is no time zone.",
                hint="UTC, or a name such as Europe/Berlin.",
                id="gateway.E026",
            )
        )
    return found


def _is_http(text: str) -> bool:
    url = urlsplit(text)
    return url.scheme in ("http", "https") and bool(url.hostname)


@register(Tags.security, deploy=True)
def check_deployment(app_configs: Any, **_: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    if settings.IS_LOCAL:
        found.append(
            CheckWarning(
                "SECRET_KEY is not set: this checkout's own secrets under var/ are used.",
                hint="Set SECRET_KEY and KEY_PEPPERS (see .env.example).",
                id="gateway.W001",
            )
        )
    if "*" in settings.CORS_ALLOWED_ORIGINS and settings.CORS_ALLOW_CREDENTIALS:
        found.append(
            Error(
                "CORS_ORIGINS holds '*' while credentials are allowed.",
                hint="Name the origins.",
                id="gateway.E007",
            )
        )
    return found
