"""Bodies and answers of sign-in and users. Names and forms are those that Robin UI checks:
camelCase, times ending in `Z`, and what is not known is absent, never null."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from django.conf import settings
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from pydantic import AfterValidator, BaseModel, Field, StringConstraints
from pydantic.networks import validate_email
from pydantic_core import PydanticCustomError

from accounts.addresses import deliverable
from accounts.models import User
from gateway_project.core.api.endpoint import Body
from gateway_project.core.api.fields import Time
from robin.access.sessions import Session
from robin.models import RefreshFamily
from robin.permissions import Permission, Role, permissions_of

RoleName = Literal["ROLE_READONLY", "ROLE_USER", "ROLE_OPERATOR", "ROLE_ADMIN"]


def _acceptable(password: str) -> str:
    try:
        validate_password(password)
    except ValidationError as exc:
        raise ValueError(" ".join(exc.messages)) from None
    return password


Password = Annotated[str, StringConstraints(max_length=128), AfterValidator(_acceptable)]


def _address(text: str) -> str:
    """An e-mail address; of the domains that only a house knows, those that are named."""
    name, at, domain = text.rpartition("@")
    is_local = domain.rpartition(".")[2].lower() in settings.ROBIN_LOCAL_DOMAINS
    try:
        # Checked by its form alone under another end: the library refuses these as such.
        found = validate_email(f"{name}{at}{domain}.example.com" if is_local else text)[1]
    except PydanticCustomError:
        message = "is no e-mail address, or of a domain that ROBIN_LOCAL_DOMAINS does not name"
        raise ValueError(message) from None
    return found.removesuffix(".example.com") if is_local else found


Email = Annotated[
    str,
    StringConstraints(max_length=150),
    AfterValidator(_address),
    AfterValidator(deliverable),
]
# "/" would end the address of /users/{username}.
Username = Annotated[
    str, StringConstraints(min_length=3, max_length=150, pattern=r"^[A-Za-z0-9_.@+-]+$")
]
# Robin UI refuses null where it expects a text or nothing.
T = TypeVar("T")
Absent = Annotated[T | None, Field(exclude_if=lambda value: value is None)]
Roles = Annotated[list[RoleName], Field(min_length=1, max_length=1)]


class LoginRequest(Body):
    username: Annotated[str, StringConstraints(min_length=1, max_length=254)] = Field(
        description="E-mail or user name."
    )
    password: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    otp: Annotated[str, StringConstraints(max_length=20)] = Field(
        "",
        description="For accounts with a second factor: a code of the app, or a recovery code. "
        "In Robin UI, which has no field for it, the app's code follows the password and a blank.",
    )
    rememberMe: bool = Field(False, description="Taken and ignored: sessions last 7 days.")


class RobinUserView(BaseModel):
    id: str
    username: str
    email: str
    roles: list[Role]
    firstName: Absent[str] = None
    lastName: Absent[str] = None
    createdAt: Time
    lastLoginAt: Absent[Time] = None
    isActive: bool
    openSessions: Absent[int] = Field(None, description="In lists: how often they are signed in.")
    permissions: list[Permission]

    @classmethod
    def of(cls, user: User, role: str | None, *, sessions: int | None = None) -> RobinUserView:
        return cls(
            id=str(user.pk),
            username=user.username,
            email=user.email,
            roles=[Role(role)] if role is not None else [],
            firstName=user.first_name or None,
            lastName=user.last_name or None,
            createdAt=user.date_joined,
            lastLoginAt=user.last_login,
            isActive=user.is_active,
            openSessions=sessions,
            permissions=sorted(permissions_of(role)),
        )


class TokensView(BaseModel):
    accessToken: str
    refreshToken: None = Field(None, description="It is in the HttpOnly cookie `refreshToken`.")
    tokenType: Literal["Bearer"] = "Bearer"
    expiresIn: int = Field(description="Seconds.")


class LoginView(BaseModel):
    user: RobinUserView
    tokens: TokensView
    permissions: list[Permission]

    @classmethod
    def of(cls, session: Session, expires_in: int) -> LoginView:
        user = RobinUserView.of(session.user, session.role)
        tokens = TokensView(accessToken=session.access, expiresIn=expires_in)
        return cls(user=user, tokens=tokens, permissions=user.permissions)


class RefreshView(BaseModel):
    accessToken: str
    tokenType: Literal["Bearer"] = "Bearer"
    expiresIn: int = Field(description="Seconds.")


class VerifyView(BaseModel):
    valid: bool


class TicketView(BaseModel):
    ticket: str
    expiresIn: int = Field(description="Seconds.")


class NewUserRequest(Body):
    username: Username
    email: Email
    password: Password
    roles: Roles
    isActive: bool = True


class UserPatch(Body):
    """What is left out, or null, stays as it is."""

    email: Email | None = None
    password: Password | None = None
    roles: Roles | None = None
    isActive: bool | None = None


class UserList(BaseModel):
    results: list[RobinUserView]
    next: str | None


class UserSessionView(BaseModel):
    id: str
    createdAt: Time
    expiresAt: Time
    clientIp: Absent[str] = None
    userAgent: Absent[str] = None

    @classmethod
    def of(cls, family: RefreshFamily) -> UserSessionView:
        return cls(
            id=str(family.pk),
            createdAt=family.created_at,
            expiresAt=family.expires_at,
            clientIp=family.client_ip or None,
            userAgent=family.user_agent or None,
        )


class UserSessionList(BaseModel):
    results: list[UserSessionView]
