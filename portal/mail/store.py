"""The mail store: directories, and a mail shown so that it can do no harm.

Its HTML stands in a frame of its own (`html`): rewritten (`robin/storage/message.py`), in a sandbox
without scripts and without an origin, under a policy that loads nothing. Who opens a mail is noted
in the audit trail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import IO, Any
from urllib.parse import urlencode

from django.core import signing
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.http import content_disposition_header

from accounts.events import audit
from gateway_project.core import errors
from gateway_project.core.api.methods import require_safe
from gateway_project.core.api.responses import streamed
from portal.exports import Table
from portal.mail.entry import Operator, mail_page, show, show_or_file, tried
from robin.permissions import Permission
from robin.storage import message, services, translate
from robin.upstream.client import from_thread

FRAME_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)
FRAME_STYLE = (
    "body{margin:12px;font:15px/1.5 system-ui,sans-serif;color:#111;background:#fff;"
    "overflow-wrap:break-word}img{max-width:100%;height:auto}table{max-width:100%}"
)
FRAME_SALT = "portal.mail.frame"
FRAME_SECONDS = 3600
SHOWN_MAX = 500
PIECE_BYTES = 64 << 10
SAVE_SECONDS = 600.0
CHARS_MAX = 2000


def _parts(request: HttpRequest) -> list[str]:
    path = request.GET.get("path", "/")
    try:
        if len(path) > CHARS_MAX:
            raise ValueError(f"is longer than {CHARS_MAX} characters")
        return translate.store_parts(path)
    except ValueError as exc:
        raise errors.NotFound(
            f"There is nothing of that name: the path {exc}. Begin at the top of the mail store."
        ) from None


@mail_page(Permission.VIEW_STORAGE)
@require_safe
def storage(request: HttpRequest, operator: Operator) -> HttpResponseBase:
    parts = _parts(request)
    word = request.GET.get("name", "").strip().lower()[:200]
    try:
        listing, error = tried(services.browse(parts))
    except services.IsMail:
        return redirect(f"{reverse('portal-mail-message')}?{urlencode(_path(parts))}")
    if isinstance(error, errors.NotFound):
        raise error
    entries = [one for one in (listing or {}).get("items", ()) if word in one["name"].lower()]
    facts: dict[str, Any] = {
        "at": "storage",
        "listing": listing,
        "error": error,
        "path": "/" + "/".join(parts),
        "word": word,
        "count": len(entries),
        "entries": entries[:SHOWN_MAX],
    }
    files = {"names": lambda: _table(entries, error)}
    return show_or_file(request, operator, "storage", files, **facts)


def _table(entries: Iterable[Mapping[str, Any]], error: errors.GatewayError | None) -> Table:
    if error is not None:
        raise error  # a file of nothing would say that the folder is empty
    columns = ("name", "path", "kind", "bytes", "day", "can_be_opened")
    return Table(
        columns,
        (
            [
                *(one["name"], one["path"], "folder" if one["type"] == "directory" else "mail"),
                one["size"] if one["type"] == "file" else None,
                f"{datetime.fromtimestamp(one['modified'] / 1000, UTC):%Y-%m-%d}"
                if one["modifiedKnown"]
                else None,
                one["openable"],
            ]
            for one in entries
        ),
    )


def _path(parts: list[str]) -> dict[str, str]:
    return {"path": "/" + "/".join(parts)}


@mail_page(Permission.VIEW_STORAGE)
@require_safe
def mail(request: HttpRequest, operator: Operator) -> HttpResponse:
    parts = _parts(request)
    found = from_thread(services.beginning(parts))
    _note(request, operator, "robin.mail_read", parts)
    shown = message.read(found.content)
    query = urlencode(_path(parts))
    facts: dict[str, Any] = {
        "at": "storage",
        "path": "/" + "/".join(parts),
        "name": translate.shown_name(parts[-1]),
        "folder": urlencode(_path(parts[:-1])),
        "mail": found,
        "shown": shown,
        "html_url": _frame_url(operator, parts) if shown.html else "",
        "raw_url": f"{reverse('portal-mail-raw')}?{query}",
    }
    return show(request, operator, "message", **facts)


@mail_page(Permission.VIEW_STORAGE)
@require_safe
def html(request: HttpRequest, operator: Operator) -> HttpResponse:
    """Only for the frame of the mail's page, which notes who reads: on its own it would be a page
    like any other, and nobody would know."""
    parts = _parts(request)
    is_page = request.headers.get("sec-fetch-dest", "iframe") != "iframe"
    if is_page or not _is_of_page(request, operator, parts):
        return redirect(f"{reverse('portal-mail-message')}?{urlencode(_path(parts))}")
    shown = message.read(from_thread(services.beginning(parts)).content)
    page = (
        '<!doctype html><html lang=""><head><meta charset="utf-8"><title>Mail</title>'
        f"<style>{FRAME_STYLE}</style></head><body>{message.harmless(shown.html)}</body></html>"
    )
    headers = {
        "Content-Security-Policy": FRAME_POLICY,
        "X-Frame-Options": "SAMEORIGIN",
        "X-DNS-Prefetch-Control": "off",
        "Referrer-Policy": "no-referrer",
    }
    return HttpResponse(page, headers=headers)


def _frame_url(operator: Operator, parts: list[str]) -> str:
    """Of the HTML, for who opened the mail's page."""
    mark = signing.dumps([str(operator.user.pk), parts], salt=FRAME_SALT)
    return f"{reverse('portal-mail-html')}?{urlencode({**_path(parts), 'page': mark})}"


def _is_of_page(request: HttpRequest, operator: Operator, parts: list[str]) -> bool:
    try:
        mark = request.GET.get("page", "")
        known = signing.loads(mark, salt=FRAME_SALT, max_age=FRAME_SECONDS)
    except signing.BadSignature:
        return False
    return bool(known == [str(operator.user.pk), parts])


@mail_page(Permission.VIEW_STORAGE)
@require_safe
def raw(request: HttpRequest, operator: Operator) -> HttpResponseBase:
    """The whole mail, of any size that the API gives, as a file."""
    parts = _parts(request)
    file, size = from_thread(services.copy(parts), seconds=SAVE_SECONDS)
    _note(request, operator, "robin.mail_downloaded", parts)
    name = content_disposition_header(True, translate.shown_name(parts[-1]))
    headers = {"Content-Disposition": str(name), "Content-Length": str(size)}
    return streamed(_pieces(file), content_type="message/rfc822", **headers)


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _note(request: HttpRequest, operator: Operator, action: str, parts: list[str]) -> None:
    fields = operator.actor(request).fields()
    audit(action, target=parts[-1], path="/" + "/".join(parts), **fields)
