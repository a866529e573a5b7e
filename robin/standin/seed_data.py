"""What the stand-in knows when it starts: queue, mails, log, settings, users. The same each time.

Everything is drawn from one seed and dated from the clock's "now", so that a page made from it
looks alive today.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from robin.standin.queue import Envelope, RelayQueue

DOMAINS = ("north.example", "south.example", "west.example")
NAMES = ("ann", "bob", "cy")
PROTOCOLS = ("ESMTP", "SMTP", "LMTP", "dovecot-lda")
FOLDERS = ("new", "cur", ".Sent/cur", ".Drafts/cur", ".A+B/cur")
STORE = "/var/lib/robin-store"
LOGGED_SECRET = b64encode(b"\0ann@north.example\0secret-ann").decode()
LEVELS = ("INFO", "DEBUG", "WARN", "ERROR", "TRACE", "FATAL")
# In the settings below, so that a test can look for each of them in what the gateway shows.
SECRETS = (
    "api-pass-5fa1",
    "keystore-pass-77b0",
    "mailbox-pass-ann",
    "mailbox-pass-bob",
    "sql-pass-90c2",
    "jdbc-pass-31ee",
    "vault-token-c0de",
    "hook-auth-4d4d",
    "hook-header-6e6e",
    "remote-write-8a8a",
    "scrape-token-2b2b",
    "hook-pair-7c7c",
)


@dataclass
class SeedData:
    clock: Callable[[], float] = time.time
    seed: int = 7
    users_backend: str = "config"
    """`config`, `sql`, or empty: none."""
    rocksdb: bool = False
    closes_after: int | None = None
    """It is told to stop in the middle of an action: done to so many, and then a 500."""
    log_answer_bytes_max: int = 128 << 20
    """What it finds in its log and cannot answer any more: it hangs up."""
    queue: RelayQueue = field(init=False)
    mails: dict[str, bytes] = field(default_factory=dict)
    """Path below the store (`north.example/ann/new/…eml`) → bytes."""
    folders: set[str] = field(default_factory=set)
    log: dict[str, list[str]] = field(default_factory=dict)
    """`yyyyMMdd` → lines, oldest first."""
    config: dict[str, Any] = field(default_factory=dict)
    """Section → document; `Properties` and `Server` are the two that always are there."""
    users: dict[str, str] = field(default_factory=dict)
    blocklist: list[str] = field(default_factory=list)
    started: float = field(init=False)
    received: int = 5127
    accepted: int = 4980
    reloads: int = 0
    broken: set[str] = field(default_factory=set)
    """Sections whose file cannot be read. The next reload says that all is well; then the page of
    settings fails, or, where `Server` is broken too, the others are gone from it."""
    is_unreadable: bool = False

    def __post_init__(self) -> None:
        random = Random(self.seed)
        self.started = self.clock()
        self.queue = RelayQueue(self.clock, random)
        self.users = {f"{n}@{d}": f"secret-{n}" for d in DOMAINS for n in NAMES}
        self.config = documents()
        self._fill_queue(random)
        self._fill_store(random)
        self._fill_log(random)

    def uptime(self) -> str:
        minutes, seconds = divmod(int(self.clock() - self.started), 60)
        hours, minutes = divmod(minutes, 60)
        days, hours = divmod(hours, 24)
        return f"{days}d {hours}h {minutes}m {seconds}s"

    def _fill_queue(self, random: Random) -> None:
        people, now = list(self.users), self.clock()
        for n in range(120):
            rcpts = random.sample(people, random.choice((1, 1, 1, 2, 7)))
            if n == 3:
                rcpts = ["ann's@south.example", *rcpts]
            envelope = Envelope(random.choice(people), rcpts, f"{STORE}/queue/qeml-{n:03}.eml")
            item = self.queue.enqueue(PROTOCOLS[n % 4], [envelope])
            item.created = now - 86_400 + n * 700
            item.retry = random.choice((0, 0, 1, 2, 5))
            if item.retry:
                item.last_retry = now - random.randint(60, 3600)
                item.error = "421 4.3.2 try later"
                item.only_permanent = False
            item.next_attempt = now + random.randint(0, 1800)
            if n % 15 == 7:
                item.state, item.error = "DEAD", "550 5.1.1 No such user"
                self.queue.dead_counter += 1
            elif n % 15 == 3:
                item.state, item.claimed_until = "CLAIMED", now + 300

    def _fill_store(self, random: Random) -> None:
        day = datetime.fromtimestamp(self.clock(), UTC).strftime("%Y%m%d")
        for domain in DOMAINS:
            for name in NAMES:
                for folder in FOLDERS[:4]:
                    path = f"{domain}/{name}/{folder}/{day}.{random.getrandbits(32):08x}.eml"
                    self.put(path, _mail(name, domain, f"Report {len(self.mails) + 1}"))
        self.put(
            f"north.example/ann/.A+B/cur/{day}.plus.eml", _mail("ann", "north.example", "1+1=2")
        )
        latin = _mail("bob", "north.example", "Gr\u00fc\u00dfe", "Sch\u00f6ne Gr\u00fc\u00dfe\r\n")
        self.put(
            f"north.example/bob/new/{day}.latin1.eml",
            latin.decode("utf-8").encode("latin-1"),
        )
        self.put(
            f"south.example/cy/new/{day}.big.eml",
            _mail("cy", "south.example", "Big", "0123456789abcdef" * 4 + "\r\n")
            + b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n" * 32_768,
        )
        self.put(f"west.example/ann/new/{day}.100% done.eml", _mail("ann", "west.example", "100%"))
        self.put("north.example/ann/notes.txt", b"not a mail")

    def note(self, level: str, logger: str, message: str) -> None:
        """Robin logs what it is asked for, and every search of its log as well."""
        at = datetime.fromtimestamp(self.clock(), UTC)
        stamp = f"{at:%m%d-%H%M%S}{at.microsecond // 1000:03}"
        line = f"{level:5}|{stamp}|HTTP-Dispatcher|{logger}||||{message}"
        self.log.setdefault(at.strftime("%Y%m%d"), []).append(line)

    def put(self, path: str, content: bytes) -> None:
        self.mails[path] = content
        parts = path.split("/")[:-1]
        self.folders.update("/".join(parts[: n + 1]) for n in range(len(parts)))

    def _fill_log(self, random: Random) -> None:
        now = datetime.fromtimestamp(self.clock(), UTC)
        sessions = [item.session_uid for item in self.queue.items.values()]
        for back in (1, 0):
            midnight = (now - timedelta(days=back)).replace(hour=0, minute=0, second=0)
            until = now if not back else midnight + timedelta(days=1)
            step = (until - midnight) / 90
            lines = self.log.setdefault(midnight.strftime("%Y%m%d"), [])
            for n in range(90):
                level = LEVELS[n // 2 % 6] if n % 2 else "INFO"
                lines += log_lines(level, midnight + n * step, random, sessions[(n * 7) % 120])


def log_lines(level: str, at: datetime, random: Random, session: str) -> list[str]:
    """One entry in Robin's shipped pattern: no year, no zone, level padded to five."""
    stamp = f"{at:%m%d-%H%M%S}{at.microsecond // 1000:03}"
    thread = f"pool-3-thread-{random.randint(1, 8)}"
    host = random.choice(DOMAINS)
    # What a stranger said, a line that is none of Robin's and a password among it.
    dialogue = (
        f"RCPT TO:<{NAMES[0]}@{host}>",
        f"AUTH PLAIN {LOGGED_SECRET}",
        f"MAIL FROM:<a\x0cERROR|{stamp}|main|auth.Forged||||root logged in>",
    )
    replies = {
        "INFO": ("smtp.EmailReceipt", f"{session} Accepted | queued for mx.{host}"),
        "DEBUG": ("queue.RelayQueueService", f"Claimed 1 item ({session})"),
        "TRACE": ("smtp.Connection", f"<< {random.choice(dialogue)}"),
        "WARN": ("smtp.EmailDelivery", f"{session} Greylisted by mx.{host}"),
        "ERROR": ("smtp.EmailDelivery", f"{session} Delivery to mx.{host} failed: 421 4.3.2 later"),
        "FATAL": ("main.Server", "Keystore could not be read"),
    }
    logger, message = replies[level]
    lines = [f"{level:5}|{stamp}|{thread}|{logger}||||{message}"]
    if level == "ERROR" and random.random() < 0.3:
        lines += [
            "java.net.SocketTimeoutException: Read timed out",
            "\tat com.mimecast.robin.smtp.connection.Connection.read(Connection.java:201)",
            "\tat java.base/java.lang.Thread.run(Thread.java:1583)",
        ]
    return lines


def _mail(name: str, domain: str, subject: str, text: str = "Good morning.\r\n") -> bytes:
    return (
        f"From: {name}@{domain}\r\nTo: ann@north.example\r\nSubject: {subject}\r\n"
        f"Message-ID: <{name}.{len(subject)}@{domain}>\r\n\r\n{text}"
    ).encode()


def documents() -> dict[str, Any]:
    """Robin's settings by the titles of its page. Secrets are those of `SECRETS`."""
    return {
        "Properties": {"hostname": "mx.north.example", "locale": "en-GB", "boolean": True},
        "Server": {
            "hostname": "mx.north.example",
            "smtpPort": 25,
            "securePort": 465,
            "keystore": "/etc/robin/keystore.jks",
            "keystorepassword": SECRETS[1],
            "auth": True,
            "api": {"port": 8090, "authType": "basic", "authValue": f"robin:{SECRETS[0]}"},
            "service": {"port": 8080, "authType": "none", "authValue": ""},
            "rblSettings": {"enabled": False, "providers": ["zen.spamhaus.org"]},
        },
        "Storage Configuration": {"enabled": True, "path": STORE, "localMailbox": True},
        "Queue Configuration": {
            "queuePgSQL": {
                "enabled": False,
                "jdbcUrl": f"jdbc:postgresql://db/robin?user=robin&password={SECRETS[5]}",
                "username": "robin",
                "password": SECRETS[5],
            },
            "totalRetries": 30,
            "firstWaitMinutes": 1,
            "growthFactor": 1.2,
        },
        "Relay Configuration": {
            "enabled": True,
            "protocol": "ESMTP",
            "bounce": True,
            "maxRetryCount": 30,
        },
        "Dovecot Configuration": {
            "authSql": {"enabled": False, "user": "robin", "password": SECRETS[4]},
            "inboxFolder": "INBOX",
            "maxRetryCount": 10,
        },
        "Prometheus Configuration": {
            "remoteWriteUrl": f"https://robin:{SECRETS[9]}@metrics.example/write",
            "bearerToken": SECRETS[10],
            "intervalSeconds": 15,
        },
        "Vault Configuration": {"enabled": False, "token": SECRETS[6], "address": "http://vault"},
        "ClamAV Configuration": {
            "enabled": True,
            "scanAttachments": True,
            "host": "clamav",
            "port": 3310,
            "timeout": 5,
            "onVirus": "reject",
        },
        "Rspamd Configuration": {
            "enabled": True,
            "host": "rspamd",
            "port": 11333,
            "timeout": 30,
            "spfScanEnabled": True,
            "dkimScanEnabled": True,
            "dmarcScanEnabled": True,
            "rejectThreshold": 7.0,
            "discardThreshold": 15.0,
        },
        "Webhooks Configuration": {
            "data": {
                "enabled": True,
                "url": "http://localhost:8000/webhooks/data",
                "authType": "bearer",
                "authValue": SECRETS[7],
                "headers": {"X-Token": SECRETS[8]},
            },
            # Of the command AUTH: a group as the others, under a name that tells of secrets.
            "auth": {
                "enabled": False,
                "url": "http://localhost:8000/webhooks/auth",
                "method": "POST",
                "timeout": 5000,
                "authType": "basic",
                "authValue": f"username:{SECRETS[11]}",
                "headers": {},
            },
        },
        "Users Configuration": {
            "listEnabled": True,
            "list": [
                {"name": "ann@north.example", "pass": SECRETS[2]},
                {"name": "bob@north.example", "pass": SECRETS[3]},
            ],
        },
    }
