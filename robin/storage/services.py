"""Robin's mail store: its directories, and mails of any size."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import IO, Any, NamedTuple

from django.conf import settings
from django.utils.translation import gettext_noop

from gateway_project.core import errors
from gateway_project.core.sentences import Sentence
from robin.storage import days, translate
from robin.upstream.client import HTML, TEXT, robin
from robin.upstream.http import Stream


class IsMail(Exception):
    """That is no directory, but a mail."""


class Mail(NamedTuple):
    """`content` is the beginning of a mail of `size` bytes, or all of it."""

    content: bytes
    size: int

    @property
    def is_cut(self) -> bool:
        return len(self.content) < self.size


async def browse(parts: Sequence[str]) -> dict[str, Any]:
    """A directory as the UI draws it. Raises `IsMail`, 404, or what `RobinAPI` raises."""
    url = translate.store_url(list(parts))
    if parts and translate.is_mail(parts[-1]) and not await _is_directory(url):
        raise IsMail
    found = await robin().client.get_json(url)
    try:
        listing = translate.store_listing(found, list(parts))
    except ValueError:
        raise errors.NotFound(
            gettext_noop(
                "There is no such directory in the store. GET /api/v1/storage lists the first ones."
            )
        ) from None
    await days.fill(listing, parts)
    return listing


async def beginning(parts: Sequence[str]) -> Mail:
    """Up to `ROBIN_MAIL_TEXT_BYTES_MAX` of a mail. Raises 404, or what `RobinAPI` raises."""
    most = settings.ROBIN_MAIL_TEXT_BYTES_MAX
    content = bytearray()
    async with _mail(parts) as mail:
        async for part in mail.parts:
            content += part
            if len(content) > most:
                break
    size = len(content) if mail.length is None else mail.length
    return Mail(bytes(content[:most]), max(size, len(content)))


async def copy(parts: Sequence[str]) -> tuple[IO[bytes], int]:
    """All of a mail, as a file that is at its beginning, gone when closed; how many bytes it has.

    Robin does nothing else while somebody reads slowly, so it is emptied at once. Raises 403 for
    one above `ROBIN_MAIL_BYTES_MAX`, 404, 503 where there is no room for it, or what `RobinAPI`
    raises.
    """
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by who reads it
        try:
            return file, await _save(parts, file)
        except BaseException:
            file.close()
            raise
    except OSError as exc:  # full, or not to be written
        raise errors.StoreUnavailable(
            gettext_noop(
                "The gateway has no room for a copy of this mail. Try again shortly; who runs it "
                "can give its temporary folder more, or refuse large ones (ROBIN_MAIL_BYTES_MAX)."
            )
        ) from exc


async def _save(parts: Sequence[str], file: IO[bytes]) -> int:
    most, written = settings.ROBIN_MAIL_BYTES_MAX, 0
    async with _mail(parts) as mail:
        size = mail.length or 0
        if not most or size <= most:
            async for part in mail.parts:
                written += len(part)
                size = max(size, written)
                if most and size > most:
                    break
                await asyncio.to_thread(file.write, part)
    if most and size > most:
        raise errors.PermissionDenied(
            Sentence(
                gettext_noop(
                    "This mail is larger than the %(most)s bytes that ROBIN_MAIL_BYTES_MAX "
                    "lets through. Who runs the gateway can allow more."
                ),
                most=str(most),
            )
        )
    await asyncio.to_thread(file.seek, 0)
    return written


@asynccontextmanager
async def _mail(parts: Sequence[str]) -> AsyncIterator[Stream]:
    """A mail, whose body is still to come. Raises 404 where there is none of that name."""
    if not parts or not translate.is_mail(parts[-1]):
        raise errors.NotFound(
            gettext_noop(
                "There is no such mail in the store. GET /api/v1/storage lists what is there."
            )
        )
    url = translate.store_url(list(parts))
    # As text, since Robin hangs up over mails that are no UTF-8 when JSON is wanted.
    # Robin hands out one after the other, so that the last of many waits for the others.
    seconds = settings.ROBIN_LOGS_TIMEOUT_SECONDS
    async with robin().client.stream(url, TEXT, HTML, timeout_seconds=seconds) as found:
        if found.content_type != HTML:
            yield found
            return
    # A directory is answered with a page; so is everything, by what is no mail store.
    await robin().client.get_json(url)
    raise errors.NotFound(
        gettext_noop(
            "There is no such mail in the store: that is a directory. GET /api/v1/storage lists it."
        )
    )


async def _is_directory(url: str) -> bool:
    async with robin().client.stream(url, TEXT, HTML) as found:
        return found.content_type == HTML
