"""Settings, processes, queues, secrets, folders, the last backup."""

from __future__ import annotations

import os
import re
import shutil
import stat
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from secrets import token_hex
from time import monotonic, sleep
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.core import checks as django_checks

from gateway_project import rotation
from gateway_project.backups import BackupError, postgres, services, trail
from gateway_project.core import clock
from gateway_project.core.stores import queues, redis
from gateway_project.core.telemetry import loops
from gateway_project.doctor.examination import Finding, Options, check, error, ok, skipped, warning
from gateway_project.doctor.stores import NO_REDIS, is_postgresql, select
from gateway_project.system import presence
from gateway_project.tasks import answer_doctor, answer_key

QUEUE_SECONDS = 8.0
FILES_MIN = 4096
DISK_BYTES_MIN, DISK_BYTES_BAD = 256 << 20, 32 << 20
DISK_PARTS_MIN, DISK_PARTS_BAD = 4, 16
"""Of a small disk, such as a folder in memory: a quarter, and a sixteenth."""
BACKUP_HOURS, BACKUP_HOURS_BAD = 26, 7 * 24
DIFFERENT_CHARS_MIN = 8
KNOWN = ("changeme", "change-me", "change_me", "secret", "password", "insecure", "example")
"""What stands in secrets that were copied from a page."""
TOKENS = (
    *("METRICS_TOKEN", "OIDC_CLIENT_SECRET"),
    *("ROBIN_CLIENT_API_TOKEN", "ROBIN_SERVICE_API_TOKEN"),
)
ADDRESSES = (
    *("DATABASE_URL", "REDIS_URL", "CACHE_REDIS_URL", "EMAIL_URL", "DETECTION_ENGINE_URL"),
    *("DETECTION_ENGINES", "ROBIN_CLIENT_API_URL", "ROBIN_SERVICE_API_URL"),
)
"""Settings with addresses, in which passwords and keys may stand."""
HOW_TO_MAKE = 'python3 -c "import secrets; print(secrets.token_urlsafe(60))"'


@check("settings")
def examine_settings(_: Options) -> Iterator[Finding]:
    """Django's system checks, with those for a deployment."""
    found = 0
    for message in django_checks.run_checks(include_deployment_checks=True):
        if message.is_silenced():
            continue
        found += 1
        say = error if message.level >= django_checks.ERROR else warning
        yield say(f"{message.msg} ({message.id})", message.hint or "See docs/settings.md.")
    if not found:
        yield ok("Django's checks of a deployment find nothing.")


@check("settings.secrets")
def examine_default_secrets(_: Options) -> Iterator[Finding]:
    if settings.LOCAL_SECRETS:
        names = ", ".join(settings.LOCAL_SECRETS)
        yield error(
            f"{names} not set: this checkout's own, under {settings.VAR_DIR}, are used. Another "
            "host has others, and with that folder all keys are lost.",
            f"Make each ({HOW_TO_MAKE}; .env.example says how), and keep them apart from the "
            "database's backups.",
        )
    weak = sorted(_weak())
    for name in weak:
        yield error(
            f"{name} can be guessed.",
            f"Make another ({HOW_TO_MAKE}) and "
            + (
                "set it on both sides: here, and at the other end."
                if name in TOKENS + ADDRESSES
                else "roll it (docs/settings.md, Rolling a secret)."
            ),
        )
    if len({settings.SECRET_KEY, settings.JWT_SECRET}) == 1:
        yield warning(
            "SECRET_KEY and JWT_SECRET are the same: whoever learns one has both.",
            "Leave JWT_SECRET out (it is derived), or make another.",
        )
    if not weak and not settings.LOCAL_SECRETS:
        yield ok("No secret is a default or can be guessed.")


def _weak() -> Iterator[str]:
    """Names of settings that hold a secret which can be guessed."""
    named = {
        "SECRET_KEY": [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS],
        "JWT_SECRET": [settings.JWT_SECRET, *settings.JWT_SECRET_FALLBACKS],
        "KEY_PEPPERS": [pepper.decode() for _, pepper in settings.KEY_PEPPERS.by_version],
        **{name: [getattr(settings, name)] for name in TOKENS},
    }
    for name, secrets in named.items():
        if any(secret and is_guessable(secret) for secret in secrets):
            yield name
    # Words in them are chance: they are random bytes, encoded.
    if any(_is_monotonous(urlsafe_b64decode(key)) for key in settings.FIELD_ENCRYPTION_KEYS):
        yield "FIELD_ENCRYPTION_KEYS"
    for name in ADDRESSES:
        for url in re.findall(r"[a-z][a-z0-9+]*://\S+", getattr(settings, name)):
            parts = urlsplit(url)
            password = unquote(parts.password or "")
            if password and (is_guessable(password) or password == parts.username):
                yield name
                break


def is_guessable(secret: str) -> bool:
    """Few different characters, or what stands in examples."""
    return _is_monotonous(secret) or any(word in secret.lower() for word in KNOWN)


def _is_monotonous(secret: str | bytes) -> bool:
    return len(set(secret)) < DIFFERENT_CHARS_MIN


@check("settings.origins")
def examine_origins(_: Options) -> Iterator[Finding]:
    """Who may call, and by what name."""
    fine = True
    if settings.IS_LOCAL:
        yield skipped("Nothing is exposed by a checkout without SECRET_KEY.")
        return
    wide = [host for host in settings.ALLOWED_HOSTS if host == "*" or host.startswith(".")]
    if wide:
        fine = False
        say = error if "*" in wide else warning
        yield say(
            f"ALLOWED_HOSTS holds {', '.join(wide)}: links in mails can be made to lead elsewhere.",
            "Name the hosts that people type.",
        )
    for setting in ("CSRF_TRUSTED_ORIGINS", "CORS_ALLOWED_ORIGINS"):
        name = "CORS_ORIGINS" if setting.startswith("CORS") else setting
        origins: list[str] = getattr(settings, setting)
        for origin in origins:
            host = urlsplit(origin).hostname or ""
            if origin.startswith("http://") and host not in ("localhost", "127.0.0.1", "::1"):
                fine = False
                yield error(
                    f"{name} holds {origin}: who stands between may act as its users.",
                    f"Use https://{host}.",
                )
            elif "*" in origin:
                fine = False
                yield error(
                    f"{name} holds {origin}: any site there may act as its users.",
                    "Name the origins one by one.",
                )
    if not settings.HTTPS_ONLY:
        fine = False
        yield error(
            "HTTPS_ONLY is false: cookies of sessions travel readably.", "Leave it out, or true."
        )
    if settings.HTTPS_ONLY and not settings.CSRF_TRUSTED_ORIGINS:
        yield warning(
            "CSRF_TRUSTED_ORIGINS is empty: behind a proxy that ends TLS forms are refused.",
            "Set it to the address that people type: https://gateway.example",
        )
    if not settings.METRICS_TOKEN and not settings.TRUSTED_PROXY_HOPS:
        yield warning(
            "/metrics asks for no token, and with TRUSTED_PROXY_HOPS=0 every client of a proxy "
            "seems to come from a private network.",
            "Set METRICS_TOKEN, or have the proxy refuse /metrics.",
        )
    if not settings.RATE_LIMIT_ENABLED:
        fine = False
        yield error("RATE_LIMIT_ENABLED is false: nothing is limited.", "Leave it out, or true.")
    if fine:
        yield ok("Hosts and origins are named one by one, over https.")


# -- Processes ------------------------------------------------------------------------------------


@check("processes")
def examine_processes(_: Options) -> Iterator[Finding]:
    if not settings.REDIS_URL:
        yield skipped(NO_REDIS)
        return
    living = presence.living()
    roles = Counter(process.role for process in living)
    for role, how in (("web", "manage.py serve"), ("worker", "celery -A gateway_project worker")):
        if not roles[role]:
            yield error(f"No {role} process lives.", f"Start one: .venv/bin/{how}")
    versions = Counter(process.version for process in living)
    if len(versions) > 1:
        yield warning(
            f"Processes of several versions: {', '.join(sorted(versions))}.",
            "Finish the upgrade: restart those of the older version.",
        )
    elif versions and settings.VERSION not in versions:
        yield warning(
            f"The processes are of version {', '.join(versions)}, this is {settings.VERSION}.",
            "Restart them, or run the doctor of their version.",
        )
    ours = presence.own_secrets()
    for process in living:
        for name, known in ours.items():
            missing = set(known) ^ set(process.knows.get(name, ()))
            if missing:
                yield warning(
                    f"{process.role} {process.name} has another {name} than this environment.",
                    "Restart it once the settings are the same everywhere: manage.py secrets",
                )
    other = {
        process.name: tuple(_differing(process.settings))
        for process in living
        if process.version == settings.VERSION
    }
    for names in sorted({names for names in other.values() if names}):
        alike = [name for name, found in other.items() if found == names]
        yield warning(
            f"{', '.join(alike)} {'has' if len(alike) == 1 else 'have'} other values of "
            f"{', '.join(names)} than this environment.",
            "Give all hosts the same settings (docs/settings.md), and restart. Addresses may "
            "differ where they lead to the same.",
        )
    if few := [process.name for process in living if 0 < process.files < FILES_MIN]:
        yield warning(
            f"May open fewer than {FILES_MIN} files, two for each client: {', '.join(few)}.",
            "LimitNOFILE=65536 in the systemd unit, `ulimits` in the compose file.",
        )
    failing = loops.failing()
    if failing:
        yield error(
            f"Failing again and again behind the requests: {', '.join(sorted(failing))}.",
            "See `task_failed` and `loop_failed` in the logs of workers and web processes.",
        )
    if roles["web"] and roles["worker"] and len(versions) == 1 and not failing:
        yield ok(f"{roles['web']} web processes and {roles['worker']} workers live.")


def _differing(theirs: Mapping[str, str]) -> Iterator[str]:
    ours = presence.own_settings()
    return (name for name in sorted(ours) if name in theirs and theirs[name] != ours[name])


@check("queues", seconds_max=QUEUE_SECONDS + 7)
def examine_queues(_: Options) -> Iterator[Finding]:
    """A message through the broker and back, for each queue."""
    if not settings.REDIS_URL:
        yield skipped(NO_REDIS)
        return
    nonce = token_hex(8)
    client = redis.client()
    before = queues.lengths()
    for name in queues.NAMES:
        answer_doctor.apply_async(args=(nonce, name), queue=name, ignore_result=True)
    missing, until = set(queues.NAMES), monotonic() + QUEUE_SECONDS
    while missing and monotonic() < until:
        missing -= {raw.decode() for raw in client.smembers(answer_key(nonce))}
        sleep(0.1)
    client.delete(answer_key(nonce))
    for name in queues.NAMES:
        if name in missing:
            yield error(
                f"Nobody took a message from the queue {name} within {QUEUE_SECONDS:g} s "
                f"({before[name]} waited before it).",
                f"Start a worker for it: celery -A gateway_project worker --queues={name}; if one "
                "runs, it is busy: add processes (--concurrency).",
            )
        else:
            yield ok(f"{name}: a message came back ({before[name]} waited before it).")


# -- Secrets --------------------------------------------------------------------------------------


@check("secrets")
def examine_secrets(_: Options) -> Iterator[Finding]:
    missing = rotation.missing_here()
    for one in missing:
        yield error(
            one,
            "Add it behind the current one. manage.py rotate_secrets --count says what cannot be "
            "read without it; when nothing does, rotate_secrets forgets it.",
        )
    if not missing:
        yield ok("Every key and pepper that is in use is known here.")


# -- Folders --------------------------------------------------------------------------------------


@check("disk")
def examine_disk(_: Options) -> Iterator[Finding]:
    folders = {"VAR_DIR": settings.VAR_DIR}
    if configured := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        folders["PROMETHEUS_MULTIPROC_DIR"] = Path(configured)
    else:
        yield warning(
            "PROMETHEUS_MULTIPROC_DIR is not set: /metrics shows the web processes alone.",
            "Name one folder for serve, workers and beat: /run/gateway/metrics",
        )
    for setting, folder in folders.items():
        existing = next(one for one in (folder, *folder.parents) if one.exists())
        disk = shutil.disk_usage(existing)
        free = disk.free
        if not os.access(existing, os.W_OK | os.X_OK):
            if setting == "VAR_DIR":
                continue  # an image is read-only, and needs nothing there
            yield error(
                f"{setting} ({folder}) cannot be written by this user.",
                "Give it to the user that the gateway runs as.",
            )
        elif free < min(DISK_BYTES_MIN, disk.total // DISK_PARTS_MIN) and existing != Path("/"):
            bad = min(DISK_BYTES_BAD, disk.total // DISK_PARTS_BAD)
            say = error if free < bad else warning
            yield say(
                f"{setting} ({folder}) has {free >> 20} MiB left.",
                "Make room: counts of new series are lost when it is full.",
            )
        else:
            yield ok(f"{setting} ({folder}) has {free >> 20} MiB left.")


@check("files")
def examine_files(_: Options) -> Iterator[Finding]:
    """Secrets on the disk that other users of this host may read."""
    secret = [settings.BASE_DIR / ".env", *sorted((settings.VAR_DIR / "secrets").glob("*"))]
    found = [path for path in secret if _is_readable_by_others(path)]
    for path in found:
        yield (warning if settings.IS_LOCAL else error)(
            f"Every user of this host can read {path}.", f"chmod o= {path}"
        )
    if not found:
        yield ok("No file with secrets of ours is readable by everybody.")


def _is_readable_by_others(path: Path) -> bool:
    """By its own mode, and by those of all folders above."""
    try:
        return bool(path.stat().st_mode & stat.S_IROTH) and all(
            folder.stat().st_mode & stat.S_IXOTH for folder in path.parents
        )
    except OSError:
        return False


@check("packages")
def examine_packages(_: Options) -> Iterator[Finding]:
    """Whether the libraries are those of this version's lock."""
    lock = settings.BASE_DIR / "requirements/base.txt"
    if not lock.exists():
        yield skipped("This is an image: its libraries were installed with its code.")
        return
    pattern = re.compile(r"^([\w.-]+)(?:\[.*?\])?==([^ ;\\]+)([^\\]*)", re.MULTILINE)
    wrong = []
    for name, wanted, marker in pattern.findall(lock.read_text()):
        try:
            have = version(name)
        except PackageNotFoundError:
            have = "missing"
        if have != wanted and not (have == "missing" and ";" in marker):
            wrong.append(f"{name} {have}, not {wanted}")
    if wrong:
        yield error(
            f"Libraries are not those of this version: {', '.join(wrong[:5])}"
            f"{f' and {len(wrong) - 5} more' if wrong[5:] else ''}.",
            "make setup, and restart: the code was changed, and its environment was not.",
        )
    else:
        yield ok("The libraries are those of requirements/base.txt.")


# -- Backup ---------------------------------------------------------------------------------------


@check("backup")
def examine_backup(_: Options) -> Iterator[Finding]:
    if settings.BACKUP_RECIPIENTS:
        try:
            services.recipients()
            if is_postgresql():
                number = int(select("SELECT current_setting('server_version_num')")[0])
                postgres.program("pg_dump", number // 10_000)
        except BackupError as exc:
            yield warning(
                f"This host cannot make one: {exc}",
                "Where another host makes them, leave BACKUP_RECIPIENTS out here.",
            )
    last = trail.last_at()
    do = "Run `manage.py backup` each night (docs/operations.md), or say what does: backup --noted"
    if last is None:
        say = warning if settings.IS_LOCAL else error
        yield say("No backup was ever made, as far as this database knows.", do)
        return
    hours = (clock.now() - last).total_seconds() / 3600
    if hours > BACKUP_HOURS:
        say = error if hours > BACKUP_HOURS_BAD else warning
        yield say(f"The last backup is {hours:.0f} hours old.", do)
    else:
        yield ok(f"The last backup is {hours:.1f} hours old.")
    tried = trail.last_tried_at()
    if tried is None or (clock.now() - tried).days > 31:
        yield warning(
            "No backup was restored to try it within a month.",
            "Run: manage.py restore --verify BACKUP",
        )
