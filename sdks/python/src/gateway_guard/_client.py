"""The client. Made by `generate.py` of `_async_client.py`: change that one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import (
    Any,
    Callable,
    Optional,
    TypeVar,
)
from uuid import uuid4

import httpx

from gateway_guard import _core, errors, models
from gateway_guard._core import Call, Item, LocalCache, Settings, segment, without_none

T = TypeVar("T")
M = TypeVar("M", bound=models.Model)
Progress = Callable[[models.Job], None]
POLL_SECONDS, POLL_SECONDS_MAX = 0.5, 5.0


class Client:
    """Asks a gateway for verdicts.

    `base_url` and `api_key` default to `GATEWAY_URL` and `GATEWAY_API_KEY`. `timeout` is the
    deadline in seconds of each call with all its repetitions. `fail_open`: when there is no
    verdict to be had, `detect` returns one that allows the text and says `failed_open`.

    Raises `gateway_guard.errors.GatewayError`, and nothing else, for what goes wrong out there.
    """

    def __init__(
        self,
        api_key: Optional[str] = None,
        *,
        base_url: Optional[str] = None,
        timeout: float = _core.DEFAULT_TIMEOUT,
        max_retries: int = _core.DEFAULT_RETRIES,
        fail_open: bool = False,
        cache: Optional[LocalCache] = None,
        headers: Optional[Mapping[str, str]] = None,
        http_client: Optional[httpx.Client] = None,
    ) -> None:
        self._settings = Settings(
            base_url=base_url or os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000"),
            api_key=api_key or os.environ.get("GATEWAY_API_KEY", ""),
            timeout=timeout,
            max_retries=max_retries,
            fail_open=fail_open,
            headers=dict(headers or {}),
        )
        self._cache = cache
        self._owns_http = http_client is None
        self._http = http_client or httpx.Client()
        self.batches = Batches(self)
        self.keys = Keys(self)
        self.policy = Policies(self)
        self.requests = Requests(self)
        self.webhooks = Webhooks(self)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, unless they are of a client that was handed in."""
        if self._owns_http:
            self._http.close()

    # -- Verdicts ---------------------------------------------------------------------------------

    def detect(
        self,
        text: str,
        *,
        content_type: Optional[str] = None,
        threshold: Optional[float] = None,
        mode: Optional[str] = None,
        on_unavailable: Optional[str] = None,
        detailed: Optional[bool] = None,
        use_cache: Optional[bool] = None,
        config: Optional[Mapping[str, Any]] = None,
        metadata: Optional[Mapping[str, Any]] = None,
        webhook_url: Optional[str] = None,
        fail_open: Optional[bool] = None,
        timeout: Optional[float] = None,
        idempotency_key: Optional[str] = None,
    ) -> models.Detection:
        """The verdict on one text of 1 to 10,000 characters.

        `on_unavailable` tells the gateway what to do without its engine (`fallback`,
        `fail_closed`, `fail_open`); `fail_open` tells this library what to do without the gateway.
        """
        body = without_none(
            text=text,
            config=_config(
                content_type, threshold, mode, on_unavailable, detailed, use_cache, config
            ),
            metadata=metadata,
            webhook_url=webhook_url,
        )
        may_keep = self._cache is not None and webhook_url is None
        if may_keep and self._cache is not None:
            known = self._cache.get(body)
            if known is not None:
                return known
        call = self._call(
            "POST", "/v1/detect", body=body, timeout=timeout, idempotency_key=idempotency_key
        )
        try:
            found = self._send(call, _core.read_as(models.Detection))
        except errors.GatewayError as exc:
            goes_on = self._settings.fail_open if fail_open is None else fail_open
            if not goes_on or not _core.is_outage(exc):
                raise
            return _core.failed_open(exc, call.attempts)
        if may_keep and self._cache is not None:
            self._cache.put(body, found)
        return found

    def score(
        self, text: str, *, content_type: Optional[str] = None, timeout: Optional[float] = None
    ) -> models.Score:
        """The bare score of a text, without policy, log row or charge to the day."""
        body = without_none(text=text, content_type=content_type)
        return self._ask(models.Score, "POST", "/v1/detect/score", body=body, timeout=timeout)

    def detect_many(
        self,
        texts: Iterable[Item],
        *,
        config: Optional[Mapping[str, Any]] = None,
        on_progress: Optional[Progress] = None,
        wait_seconds: float = 3600.0,
    ) -> Iterator[models.ItemResult]:
        """The verdicts on any number of texts, in their order.

        `texts`: strings, or mappings with `text` and perhaps `id`, `config`, `metadata`. They are
        sent a thousand at a time; each text has a result, if only to say why it has no verdict.
        Once the gateway has taken the first ones, it may be away for as long as `wait_seconds`. An
        error is raised before the first result of a thousand, or the results before it are whole.
        """
        items = _core.items_of(texts)
        for first in range(0, len(items), _core.ITEMS_MAX):
            some = items[first : first + _core.ITEMS_MAX]
            patience = _core.Patience(wait_seconds if first else 0.0)
            batch = self.batches._create_patiently(some, patience, config=config)
            if isinstance(batch, models.Job):
                job = self.batches.wait(
                    batch.batch_id, timeout=wait_seconds, on_progress=on_progress
                )
                due = _core.Due(some)
                for result in self.batches.results(job.batch_id, timeout=wait_seconds):
                    yield due.taken(result)
                due.end()
            else:
                for result in batch:
                    yield result

    def submit(
        self,
        text: str,
        *,
        config: Optional[Mapping[str, Any]] = None,
        metadata: Optional[Mapping[str, Any]] = None,
        webhook_url: Optional[str] = None,
        timeout: Optional[float] = None,
        idempotency_key: Optional[str] = None,
    ) -> models.AsyncDetection:
        """Have one text judged behind the answer; the verdict goes to `webhook_url`, or to the
        webhooks that ask for `detection.*`."""
        body = without_none(text=text, config=config, metadata=metadata, webhook_url=webhook_url)
        return self._ask(
            models.AsyncDetection,
            "POST",
            "/v1/detect/async",
            body=body,
            timeout=timeout,
            idempotency_key=idempotency_key,
        )

    def submitted(self, request_id: str) -> models.AsyncDetection:
        """What became of a text that was submitted."""
        return self._ask(models.AsyncDetection, "GET", f"/v1/detect/async/{segment(request_id)}")

    def feedback(
        self, request_id: str, verdict: str, *, note: Optional[str] = None
    ) -> models.Feedback:
        """`verdict`: `false_positive`, `false_negative` or `correct`. The last word counts."""
        body = without_none(request_id=request_id, verdict=verdict, note=note)
        return self._ask(models.Feedback, "POST", "/v1/feedback", body=body)

    # -- The account ------------------------------------------------------------------------------

    def limits(self) -> models.Limits:
        """What is left of each limit. Costs nothing."""
        return self._ask(models.Limits, "GET", "/v1/limits")

    def profile(self) -> models.Profile:
        """The calling key, its workspace, plan and usage."""
        return self._ask(models.Profile, "GET", "/auth/profile")

    def audit(self, **filters: Any) -> Iterator[models.AuditRecord]:
        """Who did what. `filters`: action, actor, target, since, until, limit. Newest first."""
        return self._pages(models.AuditRecord, "/v1/audit", filters)

    # -- Anything else ----------------------------------------------------------------------------

    def raw(
        self,
        method: str,
        path: str,
        *,
        params: Optional[Mapping[str, Any]] = None,
        body: Any = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout: Optional[float] = None,
        idempotency_key: Optional[str] = None,
    ) -> httpx.Response:
        """Any call, with key, deadline and repetitions; the answer as it came, below 300."""
        call = self._call(
            method.upper(),
            path,
            params=params,
            body=body,
            headers=headers,
            timeout=timeout,
            idempotency_key=idempotency_key,
        )
        return self._send(call, _core.as_it_came)

    # -- Inside -----------------------------------------------------------------------------------

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: Optional[Mapping[str, Any]] = None,
        body: Any = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout: Optional[float] = None,
        idempotency_key: Optional[str] = None,
    ) -> Call:
        return Call(
            method,
            path,
            self._settings,
            params=params or {},
            body=body,
            headers=headers or {},
            timeout=timeout,
            idempotency_key=idempotency_key,
        )

    def _ask(self, kind: type[T], method: str, path: str, **more: Any) -> T:
        return self._send(self._call(method, path, **more), _core.read_as(kind))

    def _end(self, path: str) -> None:
        self._send(self._call("DELETE", path), _core.nothing)

    def _send(self, call: Call, read: _core.Read[T]) -> T:
        """Half an answer, or a proxy's, is asked for again, as one that never came."""
        while True:
            try:
                response = self._attempt(call)
                if response.status_code >= 300:
                    raise _core.error_of(response)
                return read(response, call.attempts)
            except errors.GatewayError as exc:
                wait = call.wait_after(exc)
                if wait is None:
                    raise
            time.sleep(wait)

    def _attempt(self, call: Call) -> httpx.Response:
        try:
            return self._answer(call)
        except httpx.TimeoutException as exc:
            raise errors.APITimeoutError(
                f"No answer of {self._settings.base_url} within the deadline."
            ) from exc
        except httpx.HTTPError as exc:
            raise errors.APIConnectionError(
                f"{self._settings.base_url} cannot be reached: {exc or type(exc).__name__}"
            ) from exc

    def _answer(self, call: Call) -> httpx.Response:
        """One request. The time is looked at between the pieces of an answer, too."""
        if call.left() <= 0:
            raise httpx.ReadTimeout("the deadline is over")
        # A redirect makes GET of DELETE, whatever a client that was handed in thinks of them.
        response = self._http.send(call.request(self._http), stream=True, follow_redirects=False)
        try:
            pieces = []
            for piece in response.iter_raw():
                pieces.append(piece)
                if call.left() <= 0:
                    raise httpx.ReadTimeout("the deadline is over")
        finally:
            response.close()
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            content=b"".join(pieces),
            request=response.request,
        )

    def _pages(
        self, model: type[M], path: str, params: Optional[Mapping[str, Any]] = None
    ) -> Iterator[M]:
        """Everything of a list, page by page, as it is taken."""
        following: Optional[str] = path
        while following is not None:
            call = self._call("GET", following, params=params)
            found, following = self._send(call, _core.read_page(model))
            for one in found:
                yield one
            params = None


class Batches:
    """Up to 1,000 texts in one call."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(
        self,
        texts: Iterable[Item],
        *,
        config: Optional[Mapping[str, Any]] = None,
        metadata: Optional[Mapping[str, Any]] = None,
        webhook_url: Optional[str] = None,
        in_background: bool = False,
        timeout: Optional[float] = None,
        idempotency_key: Optional[str] = None,
    ) -> Any:
        """A list of results for up to 100 texts, a `Job` for more, or with `webhook_url`, or
        `in_background`."""
        items = _core.items_of(texts)
        body = without_none(
            requests=items, config=config, metadata=metadata, webhook_url=webhook_url
        )
        call = self._client._call(
            "POST",
            "/v1/detect/batch",
            body=body,
            headers={"Prefer": "respond-async"} if in_background else None,
            timeout=timeout,
            idempotency_key=idempotency_key,
        )
        return self._client._send(call, _core.read_batch(items))

    def _create_patiently(
        self,
        texts: Iterable[Item],
        patience: _core.Patience,
        *,
        config: Optional[Mapping[str, Any]] = None,
    ) -> Any:
        """Made once, however often it is tried."""
        key = str(uuid4())
        while True:
            try:
                return self.create(texts, config=config, idempotency_key=key)
            except errors.GatewayError as exc:
                time.sleep(patience.after(exc))

    def get(self, batch_id: str) -> models.Job:
        """How far it is."""
        return self._client._ask(
            models.Job, "GET", f"/v1/detect/batch/{segment(batch_id)}", params={"limit": 1}
        )

    def cancel(self, batch_id: str) -> models.Job:
        """Judge nothing more of it. What is judged stays."""
        return self._client._ask(models.Job, "DELETE", f"/v1/detect/batch/{segment(batch_id)}")

    def wait(
        self,
        batch_id: str,
        *,
        timeout: float = 3600.0,
        on_progress: Optional[Progress] = None,
    ) -> models.Job:
        """Until it is over. Each look costs one of the minute, so they grow apart. The gateway may
        be away meanwhile.

        Raises `APITimeoutError` after `timeout` seconds, and `BatchFailed` when it was cancelled.
        """
        until, wait = time.monotonic() + timeout, POLL_SECONDS
        patience = _core.Patience(timeout)
        while True:
            try:
                job = self.get(batch_id)
            except errors.GatewayError as exc:
                time.sleep(patience.after(exc))
                continue
            if on_progress is not None:
                on_progress(job)
            if job.status == "cancelled":
                raise errors.BatchFailed("The batch was cancelled.", job=job)
            if job.is_over:
                return job
            if time.monotonic() + wait > until:
                raise errors.APITimeoutError(
                    f"Batch {batch_id} has {job.done} of {job.total} results after {timeout:g} s. "
                    "It goes on; ask again by its id."
                )
            time.sleep(wait)
            wait = min(POLL_SECONDS_MAX, wait * 1.5)

    def results(self, batch_id: str, *, timeout: float = 300.0) -> Iterator[models.ItemResult]:
        """Its finished results in their order, a page at a time: a lost one is asked for again,
        for as long as `timeout` seconds."""
        following: Optional[str] = f"/v1/detect/batch/{segment(batch_id)}"
        params: Optional[dict[str, Any]] = {"limit": 200}
        while following is not None:
            patience, page = _core.Patience(timeout), None
            while page is None:
                call = self._client._call("GET", following, params=params)
                try:
                    page = self._client._send(call, _core.read_page(models.ItemResult))
                except errors.GatewayError as exc:
                    time.sleep(patience.after(exc))
            results, following = page
            for result in results:
                yield result
            params = None


class Keys:
    """The workspace's keys; all but `rotate` needs the scope `keys:write`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> Iterator[models.Key]:
        return self._client._pages(models.Key, "/v1/keys")

    def create(self, name: str = "", **fields: Any) -> models.Key:
        """`fields`: scopes, allowed_cidrs, expires_at, rate_limit_per_minute, …_per_day."""
        body = {"name": name, **fields} if name else fields
        return self._client._ask(models.Key, "POST", "/v1/keys", body=body)

    def get(self, key_id: str) -> models.Key:
        return self._client._ask(models.Key, "GET", f"/v1/keys/{segment(key_id)}")

    def update(self, key_id: str, **fields: Any) -> models.Key:
        return self._client._ask(models.Key, "PATCH", f"/v1/keys/{segment(key_id)}", body=fields)

    def revoke(self, key_id: str) -> None:
        self._client._end(f"/v1/keys/{segment(key_id)}")

    def rotate(self, *, grace_seconds: Optional[int] = None) -> models.Rotation:
        """A successor of the calling key, which works for `grace_seconds` more (a day)."""
        body = without_none(grace_seconds=grace_seconds)
        return self._client._ask(models.Rotation, "POST", "/auth/rotate-key", body=body)


class Policies:
    """What counts as an attack for the calling key."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self) -> models.Policy:
        return self._client._ask(models.Policy, "GET", "/v1/policy")

    def set(self, policy: Mapping[str, Any], *, if_version: Optional[int] = None) -> models.Policy:
        """Replace it. With `if_version`, only if that one is still in force."""
        headers = None if if_version is None else {"If-Match": f'"{if_version}"'}
        return self._client._ask(
            models.Policy, "PUT", "/v1/policy", body=dict(policy), headers=headers
        )


class Requests:
    """The log of calls."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, **filters: Any) -> Iterator[models.LoggedRequest]:
        """`filters`: decision, key, status, since, until, limit. Newest first."""
        return self._client._pages(models.LoggedRequest, "/v1/requests", filters)

    def get(self, request_id: str) -> models.LoggedRequest:
        return self._client._ask(models.LoggedRequest, "GET", f"/v1/requests/{segment(request_id)}")


class Webhooks:
    """Where events are sent. To check what arrives: `gateway_guard.webhooks.verify`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> Iterator[models.Webhook]:
        return self._client._pages(models.Webhook, "/webhooks/list")

    def create(
        self, url: str, events: Optional[Sequence[str]] = None, **fields: Any
    ) -> models.Webhook:
        """`fields`: description, retry_count. The answer holds the `secret`, this once."""
        body = {"url": url, **without_none(events=list(events) if events else None), **fields}
        return self._client._ask(models.Webhook, "POST", "/webhooks/register", body=body)

    def get(self, webhook_id: str) -> models.Webhook:
        return self._client._ask(models.Webhook, "GET", f"/webhooks/{segment(webhook_id)}")

    def update(self, webhook_id: str, **fields: Any) -> models.Webhook:
        path = f"/webhooks/{segment(webhook_id)}"
        return self._client._ask(models.Webhook, "PATCH", path, body=fields)

    def delete(self, webhook_id: str) -> None:
        self._client._end(f"/webhooks/{segment(webhook_id)}")

    def test(self, webhook_id: str, event: Optional[str] = None) -> models.Queued:
        body = without_none(webhook_id=webhook_id, event=event)
        return self._client._ask(models.Queued, "POST", "/webhooks/test", body=body)

    def rotate_secret(
        self, webhook_id: str, *, overlap_seconds: Optional[int] = None
    ) -> models.NewSecret:
        """A new secret; the old one signs as well for `overlap_seconds` (a day)."""
        body = without_none(overlap_seconds=overlap_seconds)
        path = f"/webhooks/{segment(webhook_id)}/rotate-secret"
        return self._client._ask(models.NewSecret, "POST", path, body=body)

    def events(self) -> Sequence[dict[str, Any]]:
        """What a webhook may ask for, each with a JSON Schema and an example."""
        return self._client._ask(list[dict[str, Any]], "GET", "/webhooks/events")

    def per_request(self) -> dict[str, Any]:
        """The id behind all addresses that requests name (`webhook_url`)."""
        return self._client._ask(dict[str, Any], "GET", "/webhooks/per-request")

    def deliveries(self, webhook_id: str, **filters: Any) -> Iterator[models.Delivery]:
        """`filters`: event, status, since, limit. Newest first."""
        path = f"/webhooks/{segment(webhook_id)}/deliveries"
        return self._client._pages(models.Delivery, path, filters)

    def delivery(self, delivery_id: str) -> models.Delivery:
        path = f"/webhooks/deliveries/{segment(delivery_id)}"
        return self._client._ask(models.Delivery, "GET", path)

    def resend(self, delivery_id: str) -> models.Queued:
        path = f"/webhooks/deliveries/{segment(delivery_id)}/resend"
        return self._client._ask(models.Queued, "POST", path)

    def recover(self, webhook_id: str, since: str, until: Optional[str] = None) -> models.Recovery:
        """Send again what failed or was never tried since then (RFC 3339)."""
        body = without_none(since=since, until=until)
        path = f"/webhooks/{segment(webhook_id)}/recover"
        return self._client._ask(models.Recovery, "POST", path, body=body)


def _config(
    content_type: Optional[str],
    threshold: Optional[float],
    mode: Optional[str],
    on_unavailable: Optional[str],
    detailed: Optional[bool],
    use_cache: Optional[bool],
    config: Optional[Mapping[str, Any]],
) -> Optional[dict[str, Any]]:
    named = without_none(
        content_type=content_type,
        confidence_threshold=threshold,
        mode=mode,
        on_unavailable=on_unavailable,
        detailed_response=detailed,
        use_cache=use_cache,
    )
    return {**(config or {}), **named} or None
