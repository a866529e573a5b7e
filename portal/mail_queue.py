"""Robin's queue as it changes: `static/portal/mail_queue.js` draws what `/ws/queue` says.

The page is for people with a role in Robin, whether or not they have a workspace. Their session
here stands for one of Robin's (`robin/access/sessions.py`), so that it ends like those: with the
role, the password, or by staff.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import cast
from uuid import UUID

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from accounts.adapter import actor_of
from accounts.models import User
from gateway_project.core import clock
from gateway_project.core.api.methods import require_safe
from gateway_project.core.api.responses import SECRET_HEADERS
from gateway_project.core.storable import cleaned
from portal.posting import posts_for, signed_in
from robin.access import sessions, tickets
from robin.metrics import sampling
from robin.permissions import Permission, permissions_of

SESSION_KEY = "robin_session"
SOCKET_SECONDS = 30 * 60
HISTORY = timedelta(hours=1)


def watchers(view: Callable[[HttpRequest, User], HttpResponse]) -> Callable[..., HttpResponse]:
    """For who may see the queue; to everybody else the page is not there."""

    @wraps(view)
    def wrapped(request: HttpRequest) -> HttpResponse:
        user = cast(User, request.user)
        access = getattr(user, "robin_access", None)
        if access is None or Permission.VIEW_QUEUE not in permissions_of(access.role):
            raise Http404
        response = view(request, user)
        response.setdefault("Cache-Control", "no-store")
        return response

    return cast(Callable[..., HttpResponse], signed_in(wrapped))


@watchers
@require_safe
def mail_queue(request: HttpRequest, user: User) -> HttpResponse:
    now = clock.now()
    samples = sampling.between(now - HISTORY, now)
    facts = {
        "is_configured": bool(settings.ROBIN_CLIENT_API_URL),
        # [[milliseconds, items in the queue], …], one a minute
        "history": [
            [round(at.timestamp() * 1000), figures["queue_size"]]
            for at, figures in samples
            if "queue_size" in figures
        ],
    }
    return render(request, "portal/pages/mail_queue.html", facts)


@posts_for("portal-mail-queue")
@watchers
def ticket(request: HttpRequest, user: User) -> HttpResponse:
    """`{ticket}` for one socket of half an hour; the page then asks for another."""
    known = request.session.get(SESSION_KEY)
    session_id = sessions.of_page(
        user,
        UUID(known) if known else None,
        actor=actor_of(request, user.email),
        user_agent=cleaned(request.headers.get("user-agent", "")),
    )
    request.session[SESSION_KEY] = str(session_id)
    text = tickets.issue(session_id, clock.time() + SOCKET_SECONDS)
    return JsonResponse({"ticket": text}, status=201, headers=SECRET_HEADERS)
