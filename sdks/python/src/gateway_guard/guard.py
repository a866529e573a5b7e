"""Texts are checked, and whatever is flagged raises: what all integrations stand on.

guard = Guard(Client())
guard.check(question)
guard.check(page, "document")
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Callable, ClassVar, Optional, TypeVar

from gateway_guard._async_client import AsyncClient
from gateway_guard._client import Client
from gateway_guard._core import LocalCache
from gateway_guard.chats import Text, portions
from gateway_guard.errors import Blocked
from gateway_guard.models import Detection

AT_ONCE = 8
REMEMBERED_MAX, REMEMBER_SECONDS = 10_000, 300.0
G = TypeVar("G", bound="_Guard")
OnVerdict = Callable[[Text, Detection], None]
log = logging.getLogger("gateway_guard")


class _Guard:
    """`on_verdict` is told of each verdict, those that `failed_open` included."""

    ONE: ClassVar[str]

    def __init__(
        self,
        *,
        fail_open: bool,
        config: Optional[Mapping[str, Any]],
        on_verdict: Optional[OnVerdict],
        remember_seconds: float,
    ) -> None:
        self.fail_open = fail_open
        self._config = dict(config or {})
        self._on_verdict = on_verdict
        # A chat sends its whole history with each turn.
        self._known = LocalCache(REMEMBERED_MAX, remember_seconds) if remember_seconds else None

    @classmethod
    def needed(cls: type[G], guard: Any, by: str) -> G:
        """`guard`, or a new one for None. The other kind is a TypeError at once: an `AsyncGuard`
        that nobody awaits judges nothing, and a `Guard` that is awaited fails once it has judged.
        """
        if guard is None:
            return cls()
        if isinstance(guard, cls):
            return guard
        raise TypeError(f"{by} needs {cls.ONE}, not {type(guard).__name__}")

    def _request(self, text: Text, portion: str) -> dict[str, Any]:
        return {"text": portion, "config": {**self._config, "content_type": text.content_type}}

    def _remembered(self, request: Mapping[str, Any]) -> Optional[Detection]:
        return self._known.get(request) if self._known is not None else None

    def _noted(self, text: Text, request: Mapping[str, Any], found: Detection) -> Detection:
        """Raises `Blocked` for what is flagged."""
        if self._on_verdict is not None:
            self._on_verdict(text, found)
        if found.failed_open:
            log.warning("%s passed without a verdict: %s", text.place, found.degraded_reason)
        elif self._known is not None and not found.meta.from_cache:
            self._known.put(request, found)
        if found.flagged:
            raise Blocked(found, content_type=text.content_type, where=text.place)
        return found


class Guard(_Guard):
    """Raises `errors.Blocked` for what is flagged, and other `errors.GatewayError` where there is
    no verdict: unless `fail_open`, then the text passes, a warning is logged, and the verdict says
    `failed_open`.

    `config`: for every request, such as `{"confidence_threshold": 0.7}`. `remember_seconds`: how
    long a verdict holds for an equal text; 0: every text is asked anew.
    """

    ONE = "a Guard(Client())"

    def __init__(
        self,
        client: Optional[Client] = None,
        *,
        fail_open: bool = False,
        config: Optional[Mapping[str, Any]] = None,
        on_verdict: Optional[OnVerdict] = None,
        remember_seconds: float = REMEMBER_SECONDS,
    ) -> None:
        super().__init__(
            fail_open=fail_open,
            config=config,
            on_verdict=on_verdict,
            remember_seconds=remember_seconds,
        )
        self.client = client or Client()

    def check(
        self, text: str, content_type: str = "user_input", where: Optional[str] = None
    ) -> list[Detection]:
        """The verdicts on a text of any length, one for each 10,000 characters."""
        return self.check_all([Text(text, content_type, where)])

    def check_all(self, texts: Iterable[Text]) -> list[Detection]:
        return [self._one(text, part) for text in texts for part in portions(text.text) if part]

    def _one(self, text: Text, portion: str) -> Detection:
        request = self._request(text, portion)
        found = self._remembered(request)
        if found is None:
            found = self.client.detect(
                portion, config=request["config"], fail_open=self.fail_open or None
            )
        return self._noted(text, request, found)


class AsyncGuard(_Guard):
    """The same with asyncio; up to eight texts are asked at the same time."""

    ONE = "an AsyncGuard(AsyncClient())"

    def __init__(
        self,
        client: Optional[AsyncClient] = None,
        *,
        fail_open: bool = False,
        config: Optional[Mapping[str, Any]] = None,
        on_verdict: Optional[OnVerdict] = None,
        remember_seconds: float = REMEMBER_SECONDS,
    ) -> None:
        super().__init__(
            fail_open=fail_open,
            config=config,
            on_verdict=on_verdict,
            remember_seconds=remember_seconds,
        )
        self.client = client or AsyncClient()

    async def check(
        self, text: str, content_type: str = "user_input", where: Optional[str] = None
    ) -> list[Detection]:
        return await self.check_all([Text(text, content_type, where)])

    async def check_all(self, texts: Iterable[Text]) -> list[Detection]:
        places = asyncio.Semaphore(AT_ONCE)

        async def one(text: Text, portion: str) -> Detection:
            async with places:
                return await self._one(text, portion)

        tasks = [
            asyncio.ensure_future(one(text, part))
            for text in texts
            for part in portions(text.text)
            if part
        ]
        try:
            return [*await asyncio.gather(*tasks)]
        except BaseException:
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _one(self, text: Text, portion: str) -> Detection:
        request = self._request(text, portion)
        found = self._remembered(request)
        if found is None:
            found = await self.client.detect(
                portion, config=request["config"], fail_open=self.fail_open or None
            )
        return self._noted(text, request, found)
