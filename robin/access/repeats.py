"""`Idempotency-Key` of people: what makes or changes something is done once for each of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from django.http import HttpRequest, HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request

from accounts import idempotency
from accounts.idempotency import Sender
from gateway_project.core.api.endpoint import endpoint
from gateway_project.core.api.viewsets import ControlPlaneViewSet
from robin.access.authentication import TOKEN, JWTAuthentication, Member

F = TypeVar("F", bound=Callable[..., Any])
HEADER = OpenApiParameter(
    "Idempotency-Key",
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    description=(
        "At most 255 visible ASCII characters, best a UUID. The same request of the same person "
        "with it again, within an hour, is given the same answer and has no second effect."
    ),
)


def changing(*, problems: Any = (), **declared: Any) -> Callable[[F], F]:
    """`@endpoint` of what makes or changes something, in a `MemberViewSet` or a `RobinViewSet`."""
    return endpoint(
        problems=[*problems, *idempotency.PROBLEMS],
        parameters=[HEADER],
        credential=TOKEN,
        **declared,
    )


def sender_of(member: Member, request: HttpRequest) -> Sender:
    return Sender(f"user:{member.user_id}", "robin", request)


class MemberViewSet(ControlPlaneViewSet):
    """Endpoints of somebody who is signed in."""

    authentication_classes = [JWTAuthentication]
    principal: Member

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        sent = request._request
        if self.declared(self.action).is_repeatable and "HTTP_IDEMPOTENCY_KEY" in sent.META:
            name = str(sent.method).lower()
            act: Callable[..., HttpResponse] = getattr(self, name)
            sender = sender_of(self.principal, sent)

            def once(*args: Any, **kwargs: Any) -> HttpResponse:
                return idempotency.once_behind(sender, partial(act, *args, **kwargs))

            setattr(self, name, once)
