"""What both clients share and no socket is needed for: requests, answers, when to try again."""

from __future__ import annotations

import email.utils
import hashlib
import json
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar, Union
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pydantic

from gateway_guard import errors
from gateway_guard.models import Detection, Meta, Model, RateLimit
from gateway_guard.version import VERSION

M = TypeVar("M", bound=Model)
MAKES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
RETRIED = frozenset({408, 500, 502, 503, 504})
DEFAULT_TIMEOUT = 30.0
DEFAULT_RETRIES = 3


@dataclass(frozen=True)
class Settings:
    """Of a client: where, who, and how long it insists."""

    base_url: str
    api_key: str
    timeout: float = DEFAULT_TIMEOUT
    max_retries: int = DEFAULT_RETRIES
    fail_open: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(
                f"base_url must be like https://gateway.example.com, not {self.base_url!r}"
            )
        if not self.api_key:
            raise ValueError("No API key. Pass api_key=…, or set GATEWAY_API_KEY.")


@dataclass
class Call:
    """One request and all its repetitions, within one deadline.

    The same `Idempotency-Key` goes with each repetition, so that whatever the first one did is
    done once.
    """

    method: str
    path: str
    settings: Settings
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: Optional[float] = None
    idempotency_key: Optional[str] = None
    attempts: int = 0

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + (self.timeout or self.settings.timeout)
        if self.method in MAKES and self.idempotency_key is None:
            self.idempotency_key = str(uuid4())

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def request(self, http: Any) -> httpx.Request:
        """For the next attempt, with what is left of the time."""
        self.attempts += 1
        headers = {
            "Authorization": f"Bearer {self.settings.api_key}",
            "Accept": "application/json",
            "User-Agent": f"gateway-guard-python/{VERSION}",
            **self.settings.headers,
            **self.headers,
        }
        if self.idempotency_key is not None:
            headers["Idempotency-Key"] = self.idempotency_key
        content = None
        if self.body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(self.body, ensure_ascii=False, allow_nan=False).encode(
                "utf-8", "surrogatepass"
            )
        request: httpx.Request = http.build_request(
            self.method,
            url_of(self.settings.base_url, self.path),
            params={k: v for k, v in self.params.items() if v is not None} or None,
            headers=headers,
            content=content,
            timeout=max(0.001, self.left()),
        )
        return request

    def wait_before_retry(
        self, *, status: int = 0, code: str = "", retry_after: Optional[float] = None
    ) -> Optional[float]:
        """Seconds until the next attempt; None: there is none.

        `status` 0: nobody answered. A wait that would outlast the deadline is not begun, so the
        caller learns of a day's quota at once and not after a day.
        """
        if self.attempts > self.settings.max_retries:
            return None
        may_help = status == 0 or status in RETRIED or status == 429
        if not may_help and code != "idempotency_in_progress":
            return None
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self.attempts - 1))
        wait *= random.uniform(0.5, 1.0)
        if retry_after is not None:
            wait = max(wait, retry_after + random.uniform(0.0, 0.25))
        return wait if wait < self.left() else None


def url_of(base_url: str, path: str) -> str:
    """`path` may be a whole address that the gateway gave (`next`): its host is not believed."""
    parts = urlsplit(path)
    local = parts.path + (f"?{parts.query}" if parts.query else "")
    return base_url.rstrip("/") + local


def retry_after_of(headers: Mapping[str, str]) -> Optional[float]:
    """Seconds of `Retry-After` (RFC 9110, 10.2.3): a number or a date."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    if text.isdigit():
        return float(text)
    try:
        at = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return max(0.0, at.timestamp() - time.time())


def meta_of(response: httpx.Response, attempts: int) -> Meta:
    headers = response.headers
    return Meta(
        status=response.status_code,
        request_id=headers.get("x-request-id", ""),
        attempts=attempts,
        replayed=headers.get("idempotency-replayed", "").lower() == "true",
        rate_limits=rate_limits_of(headers),
    )


def rate_limits_of(headers: Mapping[str, str]) -> tuple[RateLimit, ...]:
    """Of `RateLimit` and `RateLimit-Policy`: `"minute";r=59;t=1, "day";r=9999;t=40000`."""
    quotas = {name: fields.get("q") for name, fields in _items(headers.get("ratelimit-policy", ""))}
    return tuple(
        RateLimit(
            name=name,
            limit=quotas.get(name),
            remaining=fields.get("r", 0),
            reset_seconds=fields.get("t"),
        )
        for name, fields in _items(headers.get("ratelimit", ""))
    )


def _items(text: str) -> tuple[tuple[str, dict[str, int]], ...]:
    found = []
    for item in text.split(","):
        name, *fields = item.strip().split(";")
        numbers = {}
        for one in fields:
            key, _, value = one.strip().partition("=")
            if value.isdigit():
                numbers[key] = int(value)
        if name:
            found.append((name.strip('"'), numbers))
    return tuple(found)


def error_of(response: httpx.Response) -> errors.GatewayError:
    """The exception for an answer of 400 or above."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("code"), str):
        return errors.InvalidResponseError(
            f"{response.status_code} without a problem of this API: is there a proxy in between?",
            status=response.status_code,
            body=response.content,
        )
    found = body.get("errors")
    return errors.class_for(response.status_code, body["code"])(
        status=response.status_code,
        code=body["code"],
        title=str(body.get("title", "")),
        detail=str(body.get("detail", "")),
        request_id=str(body.get("request_id") or response.headers.get("x-request-id", "")),
        errors=tuple(
            errors.FieldError(str(one.get("field", "")), str(one.get("message", "")))
            for one in (found if isinstance(found, list) else [])
            if isinstance(one, dict)
        ),
        retry_after=retry_after_of(response.headers),
        body=body,
    )


def wait_after(call: Call, response: httpx.Response) -> Optional[float]:
    """Seconds until this refused call is tried again; None: it is not."""
    error = error_of(response)
    code = error.code if isinstance(error, errors.APIError) else ""
    return call.wait_before_retry(
        status=response.status_code, code=code, retry_after=retry_after_of(response.headers)
    )


def parsed(model: type[M], response: httpx.Response, attempts: int) -> M:
    """Raises `InvalidResponseError` for what is not of that shape."""
    try:
        found = model.model_validate_json(response.content)
    except pydantic.ValidationError as exc:
        raise errors.InvalidResponseError(
            f"{response.status_code} with a body that this API does not send: "
            "is there a proxy in between?",
            status=response.status_code,
            body=response.content,
        ) from exc
    found._meta = meta_of(response, attempts)
    return found


def without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def failed_open(error: errors.GatewayError, attempts: int) -> Detection:
    """In place of a verdict that could not be had, for a caller who chose to go on without."""
    found = Detection(
        request_id=getattr(error, "request_id", ""),
        is_malicious=False,
        confidence=0.0,
        decision="allow",
        status="unavailable",
        source="none",
        degraded_reason=f"the gateway gave no verdict: {type(error).__name__}",
        failed_open=True,
    )
    found._meta = Meta(status=getattr(error, "status", 0), attempts=attempts)
    return found


def is_outage(error: errors.GatewayError) -> bool:
    """Whether the gateway, and not the request, is why there is no verdict."""
    outages = (errors.APIConnectionError, errors.InvalidResponseError, errors.ServerError)
    return isinstance(error, outages)


class Patience:
    """For what is under way already: it outlives an absence longer than the deadline of a call."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._wait = FIRST_WAIT

    def after(self, error: errors.GatewayError) -> float:
        """Seconds until it is tried again. Raises `error` where time does not help, or none is
        left."""
        wait = self._wait
        if isinstance(error, errors.RateLimitError):
            wait = max(wait, error.retry_after or 0.0)
        elif not is_outage(error):
            raise error
        if time.monotonic() + wait > self._until:
            raise error
        self._wait = min(LONGEST_WAIT, self._wait * 2)
        return wait


Item = Union[str, Mapping[str, Any]]
ITEMS_MAX = 1_000


def items_of(texts: Iterable[Item]) -> list[dict[str, Any]]:
    """Texts, or mappings with `text` and perhaps `id`, `config`, `metadata`; ids are made up."""
    found = []
    for number, one in enumerate(texts):
        item = {"text": one} if isinstance(one, str) else dict(one)
        item.setdefault("id", str(number))
        item["id"] = str(item["id"])
        found.append(item)
    seen = [item["id"] for item in found]
    if len(set(seen)) != len(seen):
        raise ValueError("Two items have the same id.")
    return found


class LocalCache:
    """Verdicts of this process, for equal requests: `AsyncClient(cache=LocalCache(1_000, 60))`.

    What is changed in a policy meanwhile does not reach texts that are in here.
    """

    def __init__(self, items_max: int = 1_000, seconds: float = 60.0) -> None:
        self._items_max = items_max
        self._seconds = seconds
        self._known: OrderedDict[bytes, tuple[float, Detection]] = OrderedDict()
        self._lock = threading.Lock()

    @staticmethod
    def key(body: Mapping[str, Any]) -> bytes:
        text = json.dumps(body, sort_keys=True).encode("utf-8", "surrogatepass")
        return hashlib.sha256(text).digest()

    def get(self, body: Mapping[str, Any]) -> Optional[Detection]:
        key = self.key(body)
        with self._lock:
            until, found = self._known.get(key, (0.0, None))
            if found is None or until < time.monotonic():
                self._known.pop(key, None)
                return None
            self._known.move_to_end(key)
        copy = found.model_copy(update={"cached": True})
        copy._meta = found.meta.model_copy(update={"from_cache": True, "attempts": 0})
        return copy

    def put(self, body: Mapping[str, Any], found: Detection) -> None:
        if found.status != "complete":
            return
        with self._lock:
            self._known[self.key(body)] = (time.monotonic() + self._seconds, found)
            while len(self._known) > self._items_max:
                self._known.popitem(last=False)
