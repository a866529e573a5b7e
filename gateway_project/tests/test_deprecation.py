"""What is declared to go away says so: in headers on both planes, and in the document."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Annotated

import pytest
from django.urls import path
from drf_spectacular.generators import SchemaGenerator
from pydantic import BaseModel, Field

from accounts.tests.shapes import refusal
from gateway_project.core.api.deprecation import NOTICE, Deprecation, fields_of, headers_of
from gateway_project.core.api.endpoint import Asked, Body, asked, endpoint
from gateway_project.core.api.responses import reply
from gateway_project.core.api.viewsets import ControlPlaneViewSet, DataPlaneViewSet

pytestmark = pytest.mark.urls(__name__)
GOING = Deprecation(date(2026, 12, 1), date(2027, 12, 1), "`GET /new`")
SOONER = Deprecation(date(2026, 11, 1), date(2027, 6, 1), "`fast`")
NAMES = ("Deprecation", "Sunset", "Link")


class Inner(Body):
    loud: Annotated[bool, SOONER] = False
    quiet: bool = False


class Sent(Body):
    speed: Annotated[int | None, Field(ge=0, description="How fast."), SOONER] = None
    inner: Inner | None = None
    many: list[Inner] = Field(default_factory=list)
    name: str = ""


class Searched(Asked):
    old: Annotated[str, Field(description="What to look for."), SOONER] = ""
    new: str = ""


class Answered(BaseModel):
    name: str
    nickname: Annotated[str, SOONER] = ""


class Slow(ControlPlaneViewSet):
    @endpoint(summary="Gone soon", tags=["test"], public=True, answer=Answered, deprecated=GOING)
    def going(self, request):
        return reply(Answered(name="a"))

    @endpoint(summary="Send", tags=["test"], body=Sent, answer=Answered)
    def send(self, request):
        return reply(Answered(name=self.parsed(Sent).name))

    @endpoint(summary="Search", tags=["test"], query=Searched, answer=Answered, public=True)
    def search(self, request):
        return reply(Answered(name=asked(request._request, Searched).new))


class Fast(DataPlaneViewSet):
    @endpoint(summary="Gone soon", tags=["test"], answer=Answered, deprecated=GOING)
    async def going(self, request):
        return reply(Answered(name="a"))

    @endpoint(summary="Send", tags=["test"], body=Sent, answer=Answered)
    async def send(self, request):
        return reply(Answered(name=self.body.name))


urlpatterns = [
    path("v1/slow/going", Slow.as_view({"get": "going"})),
    path("v1/slow/send", Slow.as_view({"post": "send"})),
    path("v1/slow/search", Slow.as_view({"get": "search"})),
    path("v1/fast/going", Fast.as_view({"get": "going"})),
    path("v1/fast/send", Fast.as_view({"post": "send"})),
]
planes = pytest.mark.parametrize("plane", ["slow", "fast"])


def sunset_of(response):
    """The days that an answer names; None: it names none."""
    if not any(name in response.headers for name in NAMES):
        return None
    assert response.headers["Link"] == '</guides/versions>; rel="deprecation"; type="text/html"'
    since = datetime.fromtimestamp(int(response.headers["Deprecation"].removeprefix("@")), UTC)
    sunset = parsedate_to_datetime(response.headers["Sunset"])
    assert (since.time(), sunset.time()) == (datetime.min.time(),) * 2
    return since.date(), sunset.date()


def days(deprecation):
    return deprecation.since, deprecation.sunset


@planes
def test_each_answer_of_an_operation_says_so_refusals_too(gateway, acme_key, plane):
    served = gateway.get(f"/v1/{plane}/going", key=acme_key)
    refused = gateway.get(f"/v1/{plane}/going?a=1&a=2", key=acme_key)
    other = gateway.post(f"/v1/{plane}/send", key=acme_key, json={})

    assert served.status_code == 200
    assert refusal(refused) == (422, "validation_error")
    assert sunset_of(served) == sunset_of(refused) == days(GOING)
    assert sunset_of(other) is None


@planes
@pytest.mark.parametrize(
    ("body", "is_noted"),
    [
        ({}, False),
        ({"name": "a", "inner": {"quiet": True}}, False),
        ({"speed": 1}, True),
        ({"speed": None}, True),  # sent is sent
        ({"inner": {"loud": False}}, True),
        ({"many": [{"quiet": True}, {"loud": True}]}, True),
    ],
)
def test_a_field_says_so_to_whom_sent_it(gateway, acme_key, plane, body, is_noted):
    r = gateway.post(f"/v1/{plane}/send", key=acme_key, json=body)

    assert r.status_code == 200, r.text
    assert sunset_of(r) == (days(SOONER) if is_noted else None)


def test_a_name_of_the_query_says_so(gateway):
    assert sunset_of(gateway.get("/v1/slow/search?old=a")) == days(SOONER)
    assert sunset_of(gateway.get("/v1/slow/search?new=a")) is None


@planes
def test_what_is_not_valid_is_refused_as_ever(gateway, acme_key, plane):
    r = gateway.post(f"/v1/{plane}/send", key=acme_key, json={"speed": -1})

    assert refusal(r) == (422, "validation_error")
    assert r.json()["errors"][0]["field"] == "speed"


def test_of_several_the_first_to_go_counts():
    assert headers_of([GOING, SOONER]) == headers_of([SOONER])
    assert headers_of([]) == {}


def test_the_notice_is_long_enough():
    since = date(2026, 1, 1)
    Deprecation(since, since + NOTICE, "something else")

    with pytest.raises(ValueError, match="180 days more, at least until 2026-06-30"):
        Deprecation(since, since + NOTICE - timedelta(days=1), "something else")


def test_fields_are_found_wherever_they_are():
    class Knot(Body):
        self_again: Knot | None = None
        old: Annotated[int, GOING] = 0

    Knot.model_rebuild(_types_namespace={"Knot": Knot})

    assert [one.path for one in fields_of(Knot)] == [("old",)]
    assert [one.path for one in fields_of(Sent)] == [
        ("speed",),
        ("inner", "loud"),
        ("many", "loud"),
    ]
    assert fields_of(None) == ()


class TestDocument:
    @pytest.fixture
    def document(self):
        return SchemaGenerator(patterns=urlpatterns).get_schema(public=True)

    def test_an_operation_is_marked(self, document):
        going = document["paths"]["/v1/slow/going"]["get"]
        response = going["responses"]["200"]
        refused = going["responses"]["422"]["$ref"].rpartition("/")[2]

        assert going["deprecated"] is True
        assert going["x-sunset"] == "2027-12-01"
        assert going["description"].endswith(
            "Deprecated since 2026-12-01, and may be gone on 2027-12-01: use `GET /new`."
        )
        assert set(NAMES) <= set(response["headers"])
        assert set(NAMES) <= set(document["components"]["responses"][refused]["headers"])
        assert set(NAMES) <= set(document["components"]["headers"])

    def test_a_field_and_a_parameter_are_marked(self, document):
        schemas = document["components"]["schemas"]
        sent, inner = schemas["Sent"]["properties"], schemas["Inner"]["properties"]
        (old, new) = document["paths"]["/v1/slow/search"]["get"]["parameters"]
        send = document["paths"]["/v1/fast/send"]["post"]

        for marked in (
            sent["speed"],
            inner["loud"],
            schemas["Answered"]["properties"]["nickname"],
            old,
        ):
            assert marked["deprecated"] is True
            assert marked["x-sunset"] == "2027-06-01"
            assert "use `fast`" in marked["description"]
        assert sent["speed"]["description"].startswith("How fast. Deprecated since 2026-11-01")
        assert not any("deprecated" in one for one in (sent["name"], inner["quiet"], new, send))
        assert set(NAMES) <= set(send["responses"]["200"]["headers"])

    def test_nothing_else_is(self, document):
        refused = document["paths"]["/v1/fast/send"]["post"]["responses"]["422"]["$ref"]
        name = refused.rpartition("/")[2]

        assert not name.startswith("Deprecated")
        assert not set(NAMES) & set(document["components"]["responses"][name]["headers"])
