"""Django's sessions in the database, which tell a store that is away from a session that ended."""

from __future__ import annotations

from django import db
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.backends.db import SessionStore as DatabaseStore
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse

from gateway_project.core import errors
from gateway_project.core.stores.database import UNKNOWN


class SessionStore(DatabaseStore):
    def save(self, must_create: bool = False) -> None:
        """Raises `StoreUnavailable` for what Django takes for a session that ended meanwhile.

        It is saved when the page is done: what that did stands, so nobody is told that it does not.
        """
        try:
            super().save(must_create)
        except UpdateError as exc:
            if isinstance(exc.__context__, db.OperationalError | db.InterfaceError):
                raise errors.StoreUnavailable(UNKNOWN) from exc
            raise


class Sessions(SessionMiddleware):
    """Django's, but that a request which failed leaves the session, and its cookie, as they were.

    Else who was told that they could not be signed out would have no cookie any more for a session
    that goes on; and what a page that was undone has noted would be kept.
    """

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        if response.status_code >= 500:
            return response
        return super().process_response(request, response)
