"""All settings, from the environment (docs/settings.md lists each; a test holds both together).

Without variables this is the laptop: SQLite, memory and secrets of its own under `var/`, which
`make run` and `manage.py` share. `serve`, workers and beat refuse to start like that.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import sys
import tempfile
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from kombu import Queue

from accounts.keys import Peppers
from gateway_project import __version__
from gateway_project.core.encryption import Cipher
from gateway_project.core.stores import addresses, queues
from gateway_project.core.telemetry.logging import configure_logging
from gateway_project.environment import Environment

BASE_DIR = Path(__file__).resolve().parent.parent
VERSION = __version__

NAT64_LENGTHS = (32, 40, 48, 56, 64, 96)  # RFC 6052 §2.2
HOW_TO_MAKE = "docs/settings.md and .env.example say how to make one"

env = Environment()
env.read_dotenv(BASE_DIR / ".env")
VAR_DIR = Path(env.str("VAR_DIR", default="") or BASE_DIR / "var").absolute()


def local_secret(name: str) -> str:
    """A random value of this checkout, made once and kept readable by its owner only."""
    path = VAR_DIR / "secrets" / name
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Written aside and linked whole: of two processes that start at once, one value wins.
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as draft:
            draft.write(secrets.token_urlsafe(48))
            draft.flush()
            with suppress(FileExistsError):
                os.link(draft.name, path)
    return path.read_text()


# -- Secrets --------------------------------------------------------------------------------------

IS_LOCAL: bool = not env.str("SECRET_KEY", default="")
SECRET_KEY: str = env.str("SECRET_KEY", default="") or local_secret("secret_key")
SECRET_KEY_FALLBACKS: list[str] = env.list("SECRET_KEY_FALLBACKS", default=[])
try:
    KEY_PEPPERS = Peppers.parse(
        env.str("KEY_PEPPERS", default="") or f"1:{local_secret('key_pepper')}"
    )
except ValueError as exc:
    raise ImproperlyConfigured(f"KEY_PEPPERS: {exc} ({HOW_TO_MAKE})") from None
LOCAL_SECRETS = [
    name
    for name in ("SECRET_KEY", "KEY_PEPPERS", "FIELD_ENCRYPTION_KEYS")
    if not env.str(name, default="")
]
FIELD_ENCRYPTION_KEYS: list[str] = env.list("FIELD_ENCRYPTION_KEYS", default=[]) or [
    base64.urlsafe_b64encode(
        hashlib.sha256(local_secret("field_encryption_key").encode()).digest()
    ).decode()
]
try:
    Cipher(tuple(FIELD_ENCRYPTION_KEYS))
except ValueError as exc:
    raise ImproperlyConfigured(f"FIELD_ENCRYPTION_KEYS: {exc} ({HOW_TO_MAKE})") from None

# -- Process --------------------------------------------------------------------------------------

DEBUG = False
HOST: str = env.str("HOST", default="127.0.0.1")
PORT: int = env.int("PORT", default=8000)
WORKERS: int = env.int("WORKERS", default=1)
DRAIN_SECONDS: float = env.float("DRAIN_SECONDS", default=5.0)
SERVER_CLOSE_FILTER: bool = env.bool("SERVER_CLOSE_FILTER", default=False)
EMBEDDED_WORKER: bool = env.bool("EMBEDDED_WORKER", default=False)
ALLOWED_HOSTS: list[str] = env.list("ALLOWED_HOSTS", default=["*"] if IS_LOCAL else ["localhost"])
CSRF_TRUSTED_ORIGINS: list[str] = env.list("CSRF_TRUSTED_ORIGINS", default=[])
PUBLIC_URL: str = env.public_url("PUBLIC_URL")
LEGAL_DIR: str = env.str("LEGAL_DIR", default="")
TRUSTED_PROXY_HOPS: int = env.int("TRUSTED_PROXY_HOPS", default=0)
HTTPS_ONLY: bool = env.bool("HTTPS_ONLY", default=not IS_LOCAL)
METRICS_TOKEN: str = env.str("METRICS_TOKEN", default="")
TRACING: bool = env.bool("TRACING", default=False)
LOG_LEVEL: str = env.str("LOG_LEVEL", default="INFO").upper()
SLOW_REQUEST_MS: float = env.float("SLOW_REQUEST_MS", default=0.0)
LOG_FORMAT: str = env.str("LOG_FORMAT", default="json")

# -- Stores ---------------------------------------------------------------------------------------

LOCAL_DATABASE_URL = f"sqlite:///{VAR_DIR}/gateway.sqlite3"
DATABASE_URL: str = env.database_url("DATABASE_URL", default=LOCAL_DATABASE_URL)
REDIS_URL: str = env.store_url("REDIS_URL")
CACHE_REDIS_URL: str = env.store_url("CACHE_REDIS_URL") if REDIS_URL else ""
DATABASES = {"default": env.db_url_config(DATABASE_URL)}
DATABASE_STATEMENT_SECONDS: float = env.float("DATABASE_STATEMENT_SECONDS", default=10.0)
DATABASE_LOCK_SECONDS: float = env.float("DATABASE_LOCK_SECONDS", default=2.0)
MIGRATION_LOCK_SECONDS: float = env.float("MIGRATION_LOCK_SECONDS", default=5.0)
COUNTED = "gateway_project.core.stores.counted"  # for /metrics
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    VAR_DIR.mkdir(exist_ok=True)
    DATABASES["default"]["CONN_MAX_AGE"] = 600  # threads that look every second open none for it
    DATABASES["default"]["ENGINE"] = f"{COUNTED}.sqlite3"
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        # Two dozen threads with a connection each would come to remember 2 MB each.
        "init_command": (
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-500;"
        ),
    }
else:
    DATABASES["default"]["ENGINE"] = f"{COUNTED}.postgresql"
    DATABASES["default"].setdefault("OPTIONS", {})["pool"] = {
        "min_size": 1,
        "max_size": env.int("DATABASE_POOL_MAX", default=10),
        "timeout": 2,
        # After an outage the pool would wait ever longer, up to minutes, before it tries again.
        "reconnect_timeout": 2,
    }
    DATABASES["default"]["OPTIONS"].setdefault("connect_timeout", 2)
    # A server whose host is gone without a word is noticed in 8 s (core/stores/statements.py has
    # the time of statements), where TCP by itself takes a quarter of an hour.
    for name, value in {
        "tcp_user_timeout": 8_000,  # milliseconds, for what was sent
        "keepalives_idle": 4,  # seconds, while nothing is
        "keepalives_interval": 2,
        "keepalives_count": 2,
    }.items():
        DATABASES["default"]["OPTIONS"].setdefault(name, value)
    # Behind a pooler in transaction mode the next page of a cursor is asked of another session.
    DATABASES["default"]["DISABLE_SERVER_SIDE_CURSORS"] = True
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True  # a restarted server is met with a new one
# Half of the connections, whatever one network asks for; the others' pages go on.
NETWORK_PLACES_MAX: int = env.int(
    "NETWORK_PLACES_MAX", default=max(1, env.int("DATABASE_POOL_MAX", default=10) // 2)
)
CACHES = {
    "default": {
        "BACKEND": "django_prometheus.cache.backends.redis.RedisCache",  # django-redis, counted
        "LOCATION": [REDIS_URL],  # a text would be split at its commas
        "KEY_PREFIX": "gw",
        "OPTIONS": {
            "SOCKET_CONNECT_TIMEOUT": 1,
            "SOCKET_TIMEOUT": 1,
            "CONNECTION_POOL_KWARGS": {"socket_keepalive": True},
            "CONNECTION_FACTORY": "gateway_project.core.stores.addresses.CacheConnections",
        },
    }
    if REDIS_URL
    else {
        "BACKEND": f"{COUNTED}.locmem.LocMemCache",
        "OPTIONS": {"MAX_ENTRIES": 10_000},
    }
}

# -- Backups --------------------------------------------------------------------------------------

BACKUP_RECIPIENTS: list[str] = env.list("BACKUP_RECIPIENTS", default=[])
BACKUP_IDENTITY: str = env.str("BACKUP_IDENTITY", default="")

# -- Limits and keys ------------------------------------------------------------------------------

RATE_LIMIT_ENABLED: bool = env.bool("RATE_LIMIT_ENABLED", default=True)
RATE_LIMIT_PER_MINUTE: int = env.int("RATE_LIMIT_PER_MINUTE", default=100)
PAGES_PER_MINUTE: int = env.int("PAGES_PER_MINUTE", default=600)
RATE_LIMIT_FAILURE_POLICY: Any = env.str("RATE_LIMIT_FAILURE_POLICY", default="local")
LOGIN_RATE_LIMIT_PER_MINUTE: int = env.int("LOGIN_RATE_LIMIT_PER_MINUTE", default=5)
IDEMPOTENCY_PER_DAY: int = env.int("IDEMPOTENCY_PER_DAY", default=100_000)
TRIES_PER_MINUTE: int = env.int("TRIES_PER_MINUTE", default=120)
MAILS_PER_HOUR: int = env.int("MAILS_PER_HOUR", default=20)
SESSIONS_PER_USER_MAX: int = env.int("SESSIONS_PER_USER_MAX", default=50)
TRIAL_RATE_LIMIT_PER_MINUTE: int = env.int("TRIAL_RATE_LIMIT_PER_MINUTE", default=10)
TRIAL_RATE_LIMIT_PER_DAY: int = env.int("TRIAL_RATE_LIMIT_PER_DAY", default=100)
KEY_CACHE_BYTES_MAX: int = env.int("KEY_CACHE_BYTES_MAX", default=64 << 20)
POLICY_CACHE_BYTES_MAX: int = env.int("POLICY_CACHE_BYTES_MAX", default=16 << 20)
POLICY_BYTES_MAX: int = env.int("POLICY_BYTES_MAX", default=256 << 10)
POLICY_VERSIONS_MAX: int = env.int("POLICY_VERSIONS_MAX", default=100)
KEY_CACHE_SECONDS: float = env.float("KEY_CACHE_SECONDS", default=60.0)
USAGE_BUFFER_BYTES_MAX: int = env.int("USAGE_BUFFER_BYTES_MAX", default=128 << 20)
USAGE_STREAM_BYTES_MAX: int = env.int("USAGE_STREAM_BYTES_MAX", default=128 << 20)
USAGE_RETENTION_DAYS: int = env.int("USAGE_RETENTION_DAYS", default=0)
STATISTICS_RETENTION_DAYS: int = env.int("STATISTICS_RETENTION_DAYS", default=730)
AUDIT_RETENTION_DAYS: int = env.int("AUDIT_RETENTION_DAYS", default=730)
FEEDBACK_RETENTION_DAYS: int = env.int("FEEDBACK_RETENTION_DAYS", default=730)

# -- Robin: sign-in -------------------------------------------------------------------------------


def token_secret(secret_key: str) -> str:
    return hmac.digest(secret_key.encode(), b"access tokens", "sha512").hex()


JWT_SECRET: str = env.str("JWT_SECRET", default="") or token_secret(SECRET_KEY)
JWT_SECRET_FALLBACKS: list[str] = [
    *env.list("JWT_SECRET_FALLBACKS", default=[]),
    *map(token_secret, SECRET_KEY_FALLBACKS),
]
JWT_LEEWAY_SECONDS: float = env.float("JWT_LEEWAY_SECONDS", default=15.0)
JWT_ALGORITHM: str = env.str("JWT_ALGORITHM", default="HS256")
ACCESS_TOKEN_EXPIRE_MINUTES: int = env.int("ACCESS_TOKEN_EXPIRE_MINUTES", default=30)
REFRESH_TOKEN_EXPIRE_DAYS: int = env.int("REFRESH_TOKEN_EXPIRE_DAYS", default=7)
SIMPLE_JWT = {
    "SIGNING_KEY": JWT_SECRET,
    "ALGORITHM": JWT_ALGORITHM,
    "ACCESS_TOKEN_LIFETIME": timedelta(minutes=ACCESS_TOKEN_EXPIRE_MINUTES),
    "REFRESH_TOKEN_LIFETIME": timedelta(days=REFRESH_TOKEN_EXPIRE_DAYS),
    "USER_ID_CLAIM": "sub",
}

# -- Robin: live queue ----------------------------------------------------------------------------

SOCKETS_PER_USER_MAX: int = env.int("SOCKETS_PER_USER_MAX", default=20)
QUEUE_POLL_SECONDS: float = env.float("QUEUE_POLL_SECONDS", default=5.0)
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {
            "hosts": [
                addresses.channel_host(
                    REDIS_URL, socket_connect_timeout=1, socket_timeout=2, socket_keepalive=True
                )
            ],
            "prefix": "gw:layer:",
        },
    }
    if REDIS_URL
    else {"BACKEND": "channels.layers.InMemoryChannelLayer"}
}

# -- Robin: its two servers -----------------------------------------------------------------------

ROBIN_CLIENT_API_URL: str = env.str("ROBIN_CLIENT_API_URL", default="")
ROBIN_SERVICE_API_URL: str = env.str("ROBIN_SERVICE_API_URL", default="")
ROBIN_CLIENT_API_TOKEN: str = env.str("ROBIN_CLIENT_API_TOKEN", default="")
ROBIN_SERVICE_API_TOKEN: str = env.str("ROBIN_SERVICE_API_TOKEN", default="")
ROBIN_TIMEOUT_SECONDS: float = env.float("ROBIN_TIMEOUT_SECONDS", default=5.0)
ROBIN_LIST_TIMEOUT_SECONDS: float = env.float("ROBIN_LIST_TIMEOUT_SECONDS", default=300.0)
ROBIN_QUEUE_SHARE_MAX: float = env.float("ROBIN_QUEUE_SHARE_MAX", default=0.08)
ROBIN_LOGS_TIMEOUT_SECONDS: float = env.float("ROBIN_LOGS_TIMEOUT_SECONDS", default=30.0)
ROBIN_LOG_CACHE_BYTES_MAX: int = env.int("ROBIN_LOG_CACHE_BYTES_MAX", default=16 << 20)
ROBIN_MAIL_TEXT_BYTES_MAX: int = env.int("ROBIN_MAIL_TEXT_BYTES_MAX", default=2 << 20)
ROBIN_MAIL_BYTES_MAX: int = env.int("ROBIN_MAIL_BYTES_MAX", default=0)
ROBIN_LOCAL_DOMAINS: list[str] = env.list("ROBIN_LOCAL_DOMAINS", default=[])
ROBIN_LOG_ROLES: list[str] = env.list(
    "ROBIN_LOG_ROLES", default=["ROLE_USER", "ROLE_OPERATOR", "ROLE_ADMIN"]
)
ROBIN_LOG_TIMEZONE: str = env.str("ROBIN_LOG_TIMEZONE", default="UTC")
ROBIN_QUEUE_SPIKE_ITEMS: int = env.int("ROBIN_QUEUE_SPIKE_ITEMS", default=1000)
ROBIN_SCANNERS: list[str] = env.list("ROBIN_SCANNERS", default=[])
ROBIN_IS_STANDIN: bool = env.bool("ROBIN_IS_STANDIN", default=False)

# -- Detection ------------------------------------------------------------------------------------

DETECTION_ENGINE_URL: str = env.str("DETECTION_ENGINE_URL", default="http://127.0.0.1:8081")
DETECTION_ENGINES: str = env.str("DETECTION_ENGINES", default="")
DETECTION_ENGINE_TIMEOUT_SECONDS: float = env.float(
    "DETECTION_ENGINE_TIMEOUT_SECONDS", default=30.0
)
DETECTION_ENGINE_SCORE_FLOOR: float = env.float("DETECTION_ENGINE_SCORE_FLOOR", default=0.5)
DETECTION_ENGINE_WINDOW_BYTES: int = env.int("DETECTION_ENGINE_WINDOW_BYTES", default=500)
SCORE_CACHE_SECONDS: int = env.int("SCORE_CACHE_SECONDS", default=300)
DETECTION_ENGINE_IS_EMBEDDED: bool = env.bool("DETECTION_ENGINE_IS_EMBEDDED", default=False)
CIRCUIT_BREAKER_FAILURE_THRESHOLD: int = env.int("CIRCUIT_BREAKER_FAILURE_THRESHOLD", default=5)
CIRCUIT_BREAKER_TIMEOUT_SECONDS: float = env.float("CIRCUIT_BREAKER_TIMEOUT_SECONDS", default=30.0)

BODY_BYTES_MAX = 160 * 1024  # 10,000 emoji escaped by a default JSON encoder are 120,012 bytes
BODIES_BYTES_MAX: int = env.int("BODIES_BYTES_MAX", default=256 << 20)
BODY_SECONDS_MAX: float = env.float("BODY_SECONDS_MAX", default=10.0)
HEAD_SECONDS_MAX: float = env.float("HEAD_SECONDS_MAX", default=10.0)
ANSWER_STALL_SECONDS_MAX: float = env.float("ANSWER_STALL_SECONDS_MAX", default=20.0)
DATA_UPLOAD_MAX_MEMORY_SIZE = BODY_BYTES_MAX
LITELLM_BYTES_MAX: int = env.int("LITELLM_BYTES_MAX", default=32 << 20)  # pictures come twice
GUARDRAIL_BYTES_MAX: int = env.int("GUARDRAIL_BYTES_MAX", default=16 << 20)
UPLOAD_BYTES_MAX = 2 << 20  # of pages that take a file; below what Django would write to the disk

# -- Batches and jobs -----------------------------------------------------------------------------

JOB_RETENTION_DAYS: int = env.int("JOB_RETENTION_DAYS", default=7)
JOB_CHUNKS_IN_FLIGHT_MAX: int = env.int("JOB_CHUNKS_IN_FLIGHT_MAX", default=16)
BATCH_BYTES_MAX = 4 << 20

# -- Webhooks -------------------------------------------------------------------------------------

WEBHOOK_DELIVERIES_IN_FLIGHT_MAX: int = env.int("WEBHOOK_DELIVERIES_IN_FLIGHT_MAX", default=512)
NAME_SERVERS: list[str] = env.list("NAME_SERVERS", default=[])
WEBHOOK_RATE_PER_SECOND: int = env.int("WEBHOOK_RATE_PER_SECOND", default=200)
WEBHOOK_ALLOWED_NETWORKS = env.networks("WEBHOOK_ALLOWED_NETWORKS")
WEBHOOK_REFUSED_NETWORKS = env.networks("WEBHOOK_REFUSED_NETWORKS")
NAT64_PREFIXES = env.networks("NAT64_PREFIXES")
if any(p.version != 6 or p.prefixlen not in NAT64_LENGTHS for p in NAT64_PREFIXES):
    raise ImproperlyConfigured("NAT64_PREFIXES: IPv6 networks of /32, /40, /48, /56, /64 or /96.")

# -- Django ---------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "gateway_project",
    "accounts",
    "webhooks",
    "detection",
    "robin",
    "portal",
    "gateway_project.apps.StaffAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
    "allauth.usersessions",
    "django_htmx",
    "corsheaders",
    "rest_framework",
    "drf_spectacular",
    "django_celery_beat",
    "django_prometheus",
]
PROMETHEUS_LATENCY_BUCKETS = (  # of `django_db_…`: those of our own, `core/telemetry/metrics.py`
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    float("inf"),
)
# The control plane's. The data plane (gateway_project/asgi.py) runs none of these. Requests are
# counted in front of both (`gateway_requests_total`), so django-prometheus' middleware is not here.
MIDDLEWARE = [
    "gateway_project.core.stores.database.release_before_answering",
    "gateway_project.core.api.error_pages.route_label",
    "portal.language.BrowsersLanguage",
    "gateway_project.core.api.error_pages.RefusedData",
    "gateway_project.core.api.error_pages.RefusedMethods",
    "django.middleware.security.SecurityMiddleware",
    "gateway_project.server.pages.StaticFiles",
    "gateway_project.core.api.error_pages.PageLimit",
    "gateway_project.core.api.methods.PageMethods",
    "gateway_project.core.stores.sessions.Sessions",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "allauth.usersessions.middleware.UserSessionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "portal.clocks.ReadersClock",
    "portal.language.PersonsLanguage",
    "portal.posting.SentAgain",
]
ROOT_URLCONF = "gateway_project.urls"
ASGI_APPLICATION = "gateway_project.asgi.application"
APPEND_SLASH = False  # asgi.py accepts both forms of API paths, and no POST is ever redirected
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
            "builtins": ["django.templatetags.i18n"],
        },
    }
]
AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "allauth.account.auth_backends.AuthenticationBackend",
]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "/app/"
LOGOUT_REDIRECT_URL = ACCOUNT_LOGOUT_REDIRECT_URL = "/"
ACCOUNT_ADAPTER = "accounts.adapter.AccountAdapter"
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*"]
ACCOUNT_EMAIL_VERIFICATION = "mandatory"
ACCOUNT_LOGIN_ON_EMAIL_CONFIRMATION = True  # in the browser that registered, and no other
ACCOUNT_EMAIL_SUBJECT_PREFIX = ""
ACCOUNT_EMAIL_NOTIFICATIONS = True  # of a new password, a second factor, another address
ACCOUNT_CHANGE_EMAIL = True  # one address at a time; the old one stays until the new is confirmed
ACCOUNT_REAUTHENTICATION_REQUIRED = True
ACCOUNT_REAUTHENTICATION_TIMEOUT = 15 * 60
ACCOUNT_SESSION_REMEMBER = True
# Passwords are guarded by `accounts/lockout.py`, the forms by `portal/limits.py`.
# What is left to allauth: wrong codes of the second factor, and mails to one address.
ACCOUNT_RATE_LIMITS = {
    "login": None,
    "login_failed": "5/300s/key",
    "signup": None,
    "reset_password": "5/900s/key",
}
STAFF_TWO_FACTORS: bool = env.bool("STAFF_TWO_FACTORS", default=not IS_LOCAL)
STAFF_FOUR_EYES: bool | None = env.bool("STAFF_FOUR_EYES", default=None)
MFA_ADAPTER = "accounts.adapter.MFAAdapter"
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = True
MFA_FORMS = {
    f"{name}_webauthn": f"accounts.passkeys.{name.title()}Form"
    for name in ("login", "authenticate", "reauthenticate", "add", "edit")
}
MFA_WEBAUTHN_ALLOW_INSECURE_ORIGIN = not HTTPS_ONLY  # browsers allow it on localhost alone
# Of a change of the address that waits: nobody signs in before the one in use is confirmed.
MFA_ALLOW_UNVERIFIED_EMAIL = True
MFA_TOTP_ISSUER = "Gateway"
MFA_TOTP_TOLERANCE = 1  # a clock may be half a minute off
# One provider of OpenID Connect, which vouches for the addresses of its people.
OIDC_ISSUER: str = env.str("OIDC_ISSUER", default="")
OIDC_CLIENT_ID: str = env.str("OIDC_CLIENT_ID", default="")
OIDC_CLIENT_SECRET: str = env.str("OIDC_CLIENT_SECRET", default="")
OIDC_NAME: str = env.str("OIDC_NAME", default="single sign-on")
SOCIALACCOUNT_ADAPTER = "accounts.adapter.SocialAccountAdapter"
USERSESSIONS_ADAPTER = "accounts.adapter.SessionsAdapter"
SOCIALACCOUNT_EMAIL_AUTHENTICATION = True  # who has an account with that address gets into it
SOCIALACCOUNT_EMAIL_AUTHENTICATION_AUTO_CONNECT = True
SOCIALACCOUNT_STORE_TOKENS = False
SOCIALACCOUNT_PROVIDERS = {
    "openid_connect": {
        "APPS": [
            {
                "provider_id": "sso",
                "name": OIDC_NAME,
                "client_id": OIDC_CLIENT_ID,
                "secret": OIDC_CLIENT_SECRET,
                "settings": {"server_url": OIDC_ISSUER, "oauth_pkce_enabled": True},
            }
        ]
        if OIDC_ISSUER
        else []
    }
}
PASSWORD_HASHERS = ["accounts.hashers.BoundedArgon2", "accounts.hashers.BCryptSHA256"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("MinimumLengthValidator", "CommonPasswordValidator", "NumericPasswordValidator")
]
AUTH_PASSWORD_VALIDATORS[0]["OPTIONS"] = {"min_length": 10}  # type: ignore[assignment]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("de", "Deutsch")]  # each by its own name
LOCALE_PATHS = [BASE_DIR / "locale"]
FORMAT_MODULE_PATH = "gateway_project.formats"
LANGUAGE_COOKIE_NAME = "language"
LANGUAGE_COOKIE_AGE = 31_536_000  # a year
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "/static/"
STATIC_ROOT = VAR_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
SERVESTATIC_USE_FINDERS = True  # a checkout needs no collectstatic; an image collects at build time
SERVESTATIC_AUTOREFRESH = False

EMAIL_URL: str = env.str("EMAIL_URL", default="")
EMAIL_BACKEND = f"gateway_project.mail.{'Local' if IS_LOCAL else 'SMTP'}Backend"
if EMAIL_URL:
    found = env.email_url_config(EMAIL_URL)
    if found["EMAIL_BACKEND"].endswith("smtp.EmailBackend"):
        found["EMAIL_BACKEND"] = "gateway_project.mail.SMTPBackend"
    vars().update(found)
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL: str = env.str("DEFAULT_FROM_EMAIL", default="Gateway <gateway@localhost>")

SESSION_ENGINE = "gateway_project.core.stores.sessions"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = LANGUAGE_COOKIE_SECURE = HTTPS_ONLY
SESSION_COOKIE_HTTPONLY = True
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS_ONLY else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = HTTPS_ONLY
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CSRF_FAILURE_VIEW = "gateway_project.core.api.error_pages.csrf_failure"
if TRUSTED_PROXY_HOPS:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

# gateway_project/server/cors.py applies these, to both planes.
CORS_ALLOWED_ORIGINS: list[str] = env.list("CORS_ORIGINS", default=[])
CORS_ALLOW_CREDENTIALS: bool = env.bool("CORS_ALLOW_CREDENTIALS", default=True)
CORS_URLS_REGEX = r"^/api/v1/"
CORS_ALLOW_HEADERS = [  # its default, and what our own clients send
    *("accept", "authorization", "content-type", "user-agent", "x-csrftoken", "x-requested-with"),
    *("idempotency-key", "if-match", "if-none-match", "x-request-id", "x-xsrf-token"),
]
CORS_EXPOSE_HEADERS = [
    *("Content-Disposition", "ETag", "RateLimit", "RateLimit-Policy", "Retry-After"),
    *("Idempotency-Replayed", "Location", "X-Gateway-Notice", "X-Request-ID"),
]

SILENCED_SYSTEM_CHECKS = [
    "security.W008",  # redirecting to https is the proxy's work: health probes come in plain
    "security.W021",  # preloading HSTS is for the domain's owner to decide
]

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accounts.authentication.APIKeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["gateway_project.core.api.permissions.IsDeclared"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "gateway_project.core.api.openapi.DeclaredSchema",
    "EXCEPTION_HANDLER": "gateway_project.core.api.responses.exception_handler",
    "NUM_PROXIES": TRUSTED_PROXY_HOPS,  # its throttles would believe any X-Forwarded-For
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Gateway",
    "VERSION": VERSION,
    "OAS_VERSION": "3.1.0",
    "DESCRIPTION": (
        "Detection of prompt injection behind keys and limits. Register with "
        "`POST /auth/register`, send the key as `X-API-Key`, ask `POST /v1/detect`. Every error is "
        "`application/problem+json` (RFC 9457) with a stable `code`."
    ),
    "CONTACT": {"name": "Who runs this gateway"},
    "LICENSE": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
    "SERVERS": [{"url": "/", "description": "This gateway"}],
    # In the order in which people need them; what is not named here follows.
    "TAGS": [
        {"name": "detection", "description": "Is this text an attack?"},
        {"name": "batches", "description": "Many texts at once, or one that may wait."},
        {"name": "account", "description": "Registering, the calling key, its limits."},
        {"name": "keys", "description": "The workspace's keys."},
        {"name": "policy", "description": "What counts as an attack, for a key."},
        {"name": "requests", "description": "The log of calls."},
        {"name": "audit", "description": "Who did what in the workspace."},
        {"name": "webhooks", "description": "Signed events, and what became of them."},
        {"name": "system", "description": "Health and metrics."},
        {"name": "staff", "description": "Numbers and people, for who runs the gateway."},
        {"name": "robin sign-in", "description": "Access tokens for `/api/v1`."},
        {"name": "robin users", "description": "People with a role at the mail server."},
        {"name": "robin queue", "description": "Mails that wait, and what to do with them."},
        {"name": "robin storage", "description": "Mails that were kept."},
        {"name": "robin log", "description": "What the mail server wrote down."},
        {"name": "robin metrics", "description": "Its figures, now and over time."},
        {"name": "robin health", "description": "Whether it answers."},
        {"name": "robin settings", "description": "Its settings, and the documents of Robin UI."},
        {"name": "robin scanners", "description": "ClamAV and Rspamd."},
        {"name": "robin blocklist", "description": "Kept here, not applied to the mail server."},
    ],
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PUBLIC": True,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    "SCHEMA_PATH_PREFIX": r"/(v1|auth)",
    "POSTPROCESSING_HOOKS": ["gateway_project.core.api.openapi.finish"],
}

_broker_url, _of_sentinels = addresses.broker(REDIS_URL)
CELERY_BROKER_URL = _broker_url or "memory://localhost/"
CELERY_WORKER_CONSUMER = "gateway_project.worker.consumer:Consumer"
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_TASK_TIME_LIMIT = 900  # of pools of processes; tasks that may hang have less
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "priority_steps": list(range(queues.PRIORITY_LAST + 1)),
    "sep": queues.SEPARATOR,
    # Whoever sends a task has a caller waiting: one more try at once, not six seconds of them.
    "max_retries": 1,
    "interval_start": 0,
    "socket_connect_timeout": 1,
    "socket_timeout": 1,  # of each connection that a broker without a word has left behind
    "socket_keepalive": True,
    "health_check_interval": 2,  # a broker that says nothing is left after two of them
    **_of_sentinels,
}
CELERY_TASK_QUEUES = [Queue(name) for name in queues.NAMES]  # a worker without -Q takes all
CELERY_TASK_CREATE_MISSING_QUEUES = False
CELERY_TASK_DEFAULT_QUEUE = queues.MAINTENANCE
CELERY_TASK_ROUTES = {
    "detection.tasks.judge_chunk": {"queue": queues.DETECTION},
    "webhooks.tasks.deliver": {"queue": queues.WEBHOOKS},
    # A mail server that hangs holds up other mails, and no sweep.
    "webhooks.tasks.send_notices": {"queue": queues.MAIL},
    "gateway_project.tasks.send_announcements": {"queue": queues.MAIL},
    "accounts.tasks.remind_of_graces": {"queue": queues.MAIL},
    "accounts.tasks.send_digests": {"queue": queues.MAIL},
    "accounts.tasks.tell_of_quotas": {"queue": queues.MAIL},
    "accounts.tasks.write_exports": {"queue": queues.MAIL},
    "detection.tasks.watch_budgets": {"queue": queues.MAIL},
    "robin.tasks.send_alarms": {"queue": queues.MAIL},
    "accounts.tasks.drain_usage": {"queue": queues.USAGE},
    "accounts.tasks.tend_usage_log": {"queue": queues.USAGE},
}
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_REDIRECT_STDOUTS = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None  # for ever: worker/broker.py
CELERY_DB_REUSE_MAX = sys.maxsize  # `gateway_project/celery.py` closes them
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULER = "gateway_project.worker.beat:Scheduler"
CELERY_BEAT_SCHEDULE = {
    "sample-status": {"task": "gateway_project.tasks.sample_status", "schedule": 60.0},
    "undo-acts": {"task": "gateway_project.tasks.undo_acts", "schedule": 60.0},
    "send-announcements": {"task": "gateway_project.tasks.send_announcements", "schedule": 10.0},
    "worker-heartbeat": {"task": "accounts.tasks.record_heartbeat", "schedule": 15.0},
    # What forgets and erases works in rounds of seconds, so that a backlog occupies no worker.
    "tend-usage-log": {"task": "accounts.tasks.tend_usage_log", "schedule": 60.0},
    "prune-accounts": {"task": "accounts.tasks.prune", "schedule": 60.0},
    "write-exports": {"task": "accounts.tasks.write_exports", "schedule": 10.0},
    "seal-audit": {"task": "accounts.tasks.seal_audit", "schedule": 5.0},
    "erase-deleted": {"task": "accounts.tasks.erase_deleted", "schedule": 10.0},
    "carry-out-deletions": {"task": "accounts.tasks.carry_out_deletions", "schedule": 60.0},
    "remind-of-graces": {"task": "accounts.tasks.remind_of_graces", "schedule": 60.0},
    "send-digests": {"task": "accounts.tasks.send_digests", "schedule": 60.0},
    "tell-of-quotas": {"task": "accounts.tasks.tell_of_quotas", "schedule": 60.0},
    "watch-budgets": {"task": "detection.tasks.watch_budgets", "schedule": 60.0},
    "prune-robin": {"task": "robin.tasks.prune", "schedule": 60.0},
    "announce-expiring-keys": {
        "task": "accounts.tasks.announce_expiring_keys",
        "schedule": 60.0,
    },
    # Without Redis worker and web process are one, and its new events wake it themselves.
    "deliver-webhooks": {
        "task": "webhooks.tasks.deliver",
        "schedule": 1.0 if REDIS_URL else 5.0,
    },
    "send-webhook-notices": {"task": "webhooks.tasks.send_notices", "schedule": 10.0},
    "measure-webhooks": {"task": "webhooks.tasks.measure", "schedule": 15.0},
    "close-webhooks": {"task": "webhooks.tasks.close_pending", "schedule": 10.0},
    "prune-webhooks": {"task": "webhooks.tasks.prune", "schedule": 60.0},
    "work-on-jobs": {"task": "detection.tasks.work", "schedule": 5.0},
    "prune-jobs": {"task": "detection.tasks.prune_jobs", "schedule": 60.0},
    "prune-detection": {"task": "detection.tasks.prune", "schedule": 60.0},
    "work-on-robins-queue": {
        "task": "robin.tasks.work_on_queue",
        "schedule": 2.0 if REDIS_URL else 5.0,
    },
    "send-robins-alarms": {"task": "robin.tasks.send_alarms", "schedule": 10.0},
    "sample-robin": {"task": "robin.tasks.sample_metrics", "schedule": 60.0},
}
if REDIS_URL:  # without it usage goes straight to the database
    CELERY_BEAT_SCHEDULE["drain-usage"] = {
        "task": "accounts.tasks.drain_usage",
        "schedule": 5.0,  # and soon after something came: worker/beat.py
    }

LOGGING_CONFIG = None
configure_logging(level=LOG_LEVEL, format=LOG_FORMAT)
ENVIRONMENT_ASKED = env.asked
