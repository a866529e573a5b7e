"""What both clients share and no socket is needed for: requests, answers, when to try again."""

from __future__ import annotations

import email.utils
import hashlib
import json
import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, Callable, Optional, TypeVar, Union
from urllib.parse import quote, urlsplit
from uuid import uuid4

import httpx
import pydantic

from gateway_guard import errors
from gateway_guard.models import Detection, ItemResult, Job, Meta, Model, Page, RateLimit
from gateway_guard.version import VERSION

T = TypeVar("T")
M = TypeVar("M", bound=Model)
Read = Callable[[httpx.Response, int], T]
"""What a call makes of an answer below 300 and the number of its attempts.

Raises `InvalidResponseError` for what is not the gateway's.
"""
MAKES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
RETRIED = frozenset({408, 429, 500, 502, 503, 504})
DEFAULT_TIMEOUT = 30.0
TIMEOUT_MAX = 2_000_000.0
"""Three weeks: what timers of all kinds can count."""
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
        if not is_address(self.base_url):
            raise ValueError(
                f"base_url must be like https://gateway.example.com, not {self.base_url!r}"
            )
        if not self.api_key:
            raise ValueError("No API key. Pass api_key=…, or set GATEWAY_API_KEY.")
        if not re.fullmatch("[!-~]+", self.api_key):
            raise ValueError("The API key has a blank, a line break or a letter that none has.")
        check_timeout(self.timeout)


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
        timeout = self.settings.timeout if self.timeout is None else self.timeout
        check_timeout(timeout)
        self.deadline = time.monotonic() + timeout
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
        for name, value in headers.items():
            # What cannot be sent is the caller's mistake, and no absence of the gateway.
            if not re.fullmatch("[!-~]([\t -~]*[!-~])?", value):
                raise ValueError(f"The header {name} cannot be sent: it is no line of ASCII.")
        content = None
        if self.body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(self.body, ensure_ascii=False, allow_nan=False).encode(
                "utf-8", "surrogatepass"
            )
        request: httpx.Request = http.build_request(
            self.method,
            url_of(self.settings.base_url, self.path),
            params={name: _param(value) for name, value in self.params.items() if value is not None}
            or None,
            headers=headers,
            content=content,
            timeout=max(0.001, self.left()),
        )
        return request

    def wait_after(self, error: errors.GatewayError) -> Optional[float]:
        """Seconds until the next attempt; None: there is none.

        A wait that would outlast the deadline is not begun, so the caller learns of a day's quota
        at once and not after a day.
        """
        if self.attempts > self.settings.max_retries or not may_help(error):
            return None
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self.attempts - 1))
        wait *= random.uniform(0.5, 1.0)
        retry_after = getattr(error, "retry_after", None)
        if retry_after is not None:
            wait = max(wait, retry_after + random.uniform(0.0, 0.25))
        return wait if wait < self.left() else None


def is_address(text: str) -> bool:
    """Of a gateway, perhaps below a path."""
    try:
        port = urlsplit(text).port
    except ValueError:
        return False
    return port != 0 and bool(re.fullmatch(r"https?://[^\s/\\?#@][^\s\\?#@]*", text, re.IGNORECASE))


def check_timeout(seconds: float) -> None:
    """NaN, which a setting that is not there may become, is over before it began, as 0 is."""
    if not 0 < seconds <= TIMEOUT_MAX:
        raise ValueError(f"timeout is in seconds, above 0 and up to {TIMEOUT_MAX:,.0f}.")


def _param(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def may_help(error: errors.GatewayError) -> bool:
    """Whether the same call, a moment later, may fare better."""
    if isinstance(error, errors.APITimeoutError):
        return False
    if isinstance(error, errors.InvalidResponseError):
        return error.status < 300 or error.status in RETRIED
    if isinstance(error, errors.APIError):
        return error.status in RETRIED or error.code == "idempotency_in_progress"
    return True


def segment(value: Any) -> str:
    """An id as a part of a path, whatever it holds."""
    return quote(str(value), safe="")


def url_of(base_url: str, path: str) -> httpx.URL:
    """`path` may be a whole address that the gateway gave (`next`): its host is not believed.

    Raises ValueError where it would lead elsewhere than it says: `..` is folded on the way, and
    an empty id asks for the list that the object is in.
    """
    parts = urlsplit(path)
    first, *names = parts.path.split("/")
    if first or not names or {"", ".", ".."} & {*names}:
        raise ValueError(f"{path!r} is no path of this API: is an id in it empty, or dots?")
    local = parts.path + (f"?{parts.query}" if parts.query else "")
    try:
        return httpx.URL(base_url.rstrip("/") + local)
    except httpx.InvalidURL as exc:
        raise ValueError(str(exc)) from exc


def retry_after_of(headers: Mapping[str, str]) -> Optional[float]:
    """Seconds of `Retry-After` (RFC 9110, 10.2.3): a number or a date."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    if re.fullmatch("[0-9]+", text):
        return float(text)
    try:
        at = email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    return max(0.0, at - time.time())


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
    """Of `RateLimit` and `RateLimit-Policy`: `"minute";r=59;t=60, "day";r=9999;t=40000`."""
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
            if re.fullmatch("[0-9]{1,15}", value):
                numbers[key] = int(value)
        if name:
            found.append((name.strip('"'), numbers))
    return tuple(found)


def error_of(response: httpx.Response) -> errors.GatewayError:
    """The exception for an answer of 300 or above."""
    if response.has_redirect_location:
        where = response.headers["location"]
        return not_ours(response, f"to {where!r}, which is not followed: is base_url right?")
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("code"), str):
        return not_ours(response, "without a problem of this API: is there a proxy in between?")
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


def not_ours(
    response: httpx.Response,
    why: str = "with a body that this API does not send: is there a proxy in between?",
) -> errors.InvalidResponseError:
    return errors.InvalidResponseError(
        f"{response.status_code} {why}",
        status=response.status_code,
        body=response.content,
        retry_after=retry_after_of(response.headers),
    )


def as_it_came(response: httpx.Response, attempts: int) -> httpx.Response:
    return response


def nothing(response: httpx.Response, attempts: int) -> None:
    """Of a call that ends something: whoever says no more than `fine` may be a proxy."""
    if response.status_code != 204:
        raise not_ours(response)


def read_as(kind: type[T]) -> Read[T]:
    """A `Model`, or plain JSON of that type."""

    def read(response: httpx.Response, attempts: int) -> T:
        try:
            found = _adapter(kind).validate_json(response.content)
        except pydantic.ValidationError as exc:
            raise not_ours(response) from exc
        if isinstance(found, Model):
            found._meta = meta_of(response, attempts)
        return found

    return read


@cache
def _adapter(kind: type[T]) -> pydantic.TypeAdapter[T]:
    return pydantic.TypeAdapter(kind)


def read_page(model: type[M]) -> Read[tuple[list[M], Optional[str]]]:
    """What is on a page, and the address of the next one."""

    def read(response: httpx.Response, attempts: int) -> tuple[list[M], Optional[str]]:
        page = read_as(Page)(response, attempts)
        try:
            if page.next is not None and is_asked(response.request, url_of("", page.next)):
                raise ValueError("the next page is this one: a cache does not look at the query")
            return [model.model_validate(one) for one in page.results], page.next
        except ValueError as exc:  # pydantic's are of that class
            raise not_ours(response) from exc

    return read


def is_asked(request: httpx.Request, local: httpx.URL) -> bool:
    return request.url.raw_path.endswith(local.raw_path)


def read_batch(items: Iterable[Mapping[str, Any]]) -> Read[Union[Job, list[ItemResult]]]:
    """The job, or of each item its result: who reads them beside their texts would take one text's
    verdict for another's."""

    def read(response: httpx.Response, attempts: int) -> Union[Job, list[ItemResult]]:
        if response.status_code == 202:
            return read_as(Job)(response, attempts)
        found, _ = read_page(ItemResult)(response, attempts)
        if [one.id for one in found] != [item["id"] for item in items]:
            raise not_ours(response)
        return found

    return read


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


class Due:
    """The results of a job that are due, in the order of its items."""

    def __init__(self, items: Iterable[Mapping[str, Any]]) -> None:
        self._ids = [item["id"] for item in items]
        self._taken = 0

    def taken(self, result: ItemResult) -> ItemResult:
        if result.id not in self._ids[self._taken : self._taken + 1]:
            raise self._error(f"a result of {result.id!r}")
        self._taken += 1
        return result

    def end(self) -> None:
        if self._taken < len(self._ids):
            raise self._error("an end")

    def _error(self, what: str) -> errors.InvalidResponseError:
        number = f"{self._taken + 1} of {len(self._ids)}"
        return errors.InvalidResponseError(
            f"Instead of result {number} there is {what}.", status=200, body=b""
        )


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
