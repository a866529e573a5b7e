"""The blocklist that Robin UI edits."""

from __future__ import annotations

import pytest

from accounts.models import AuditEvent
from accounts.tests.shapes import refusal
from robin.models import BlocklistEntry
from robin.tests import contracts
from robin.tests.contracts import TEXT, Z, holds, one_of, several, shape

PATH = "/api/v1/blocklist"
ENTRY = shape(
    {
        "id": {"type": "string", "minLength": 36},
        "type": one_of("IP", "CIDR", "DOMAIN"),
        "value": TEXT,
        "reason": {"type": "string", "minLength": 1, "maxLength": 500},
        "createdAt": Z,
        "expiresAt": {"anyOf": [Z, {"type": "null"}]},
        "active": {"type": "boolean"},
    },
    createdBy=TEXT,
)
LIST = shape({"items": several(ENTRY), "totalCount": contracts.COUNT})
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def ada(member):
    return member("ROLE_ADMIN", by_hand=True)


def entry(**more):
    return {"type": "IP", "value": "192.0.2.1", "reason": "spam", **more}


def ui(schema, answer):
    """The one null that the UI takes is that of `expiresAt`."""
    rows = answer.get("items", [answer])
    for row in rows:
        if row["expiresAt"] is None:
            row["expiresAt"] = "2026-01-01T00:00:00Z"
    holds(schema, answer)


def test_an_entry_from_its_start_to_its_end(ada):
    made = ada.post(PATH, entry(expiresAt="2027-01-01T00:00:00+01:00"))
    assert made.status_code == 201
    ui(ENTRY, made.json())
    assert made.json()["expiresAt"] == "2026-12-31T23:00:00.000Z"
    assert made.headers["x-gateway-notice"]
    where = f"{PATH}/{made.json()['id']}"

    changed = ada.request("PATCH", where, json={"active": False})
    assert (changed.json()["active"], changed.json()["reason"]) == (False, "spam")
    assert changed.json()["expiresAt"] == made.json()["expiresAt"]
    forever = ada.request("PATCH", where, json={"expiresAt": None})
    assert forever.json()["expiresAt"] is None
    assert ada.request("DELETE", where).status_code == 204
    gone = ada.request("DELETE", where)
    assert gone.status_code == 404
    holds(contracts.PROBLEM, gone.json())
    acts = AuditEvent.objects.filter(action__startswith="robin.blocklist")
    assert {act.target for act in acts} == {"IP 192.0.2.1"}
    changes = [
        act.details["changes"] for act in acts.filter(action__endswith="changed").order_by("id")
    ]
    until = made.json()["expiresAt"]
    assert changes == [{"active": [True, False]}, {"expires_at": [until, None]}]
    assert acts.get(action__endswith="deleted").details["reason"] == "spam"


def test_pages_and_filters(ada):
    for n in range(30):
        kind, value = ("IP", f"192.0.2.{n}") if n % 2 else ("DOMAIN", f"d{n}.example")
        ada.post(PATH, entry(type=kind, value=value, active=n < 10))

    found = ada.get(f"{PATH}?page=1&limit=25").json()

    ui(LIST, found)
    assert (len(found["items"]), found["totalCount"]) == (5, 30)
    assert ada.get(f"{PATH}?type=DOMAIN").json()["totalCount"] == 15
    assert ada.get(f"{PATH}?active=true&type=IP").json()["totalCount"] == 5
    assert ada.get(f"{PATH}?page=-1").status_code == 422


@pytest.mark.parametrize(
    ("kind", "value", "kept"),
    [
        ("IP", "2001:DB8:0::1", "2001:db8::1"),
        ("CIDR", "192.0.2.7/24", "192.0.2.0/24"),
        ("DOMAIN", "Spam.Example.", "spam.example"),
        ("DOMAIN", "bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_one_spelling_of_each(ada, kind, value, kept):
    assert ada.post(PATH, entry(type=kind, value=value)).json()["value"] == kept
    again = ada.post(PATH, entry(type=kind, value=kept))
    assert (again.status_code, again.json()["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    "change",
    [
        {"value": "999.1.1.1"}, {"type": "CIDR", "value": "x/8"},
        {"type": "DOMAIN", "value": "a b"},
        {"type": "DOMAIN", "value": "-x.example"}, {"type": "DOMAIN", "value": "ü" * 200},
        {"type": "EMAIL"}, {"reason": ""}, {"reason": "x" * 501}, {"reason": "a\x00b"},
        {"expiresAt": "soon"}, {"active": "yes"}, {"more": 1}, {"value": 5},
    ],
)  # fmt: skip
def test_what_is_no_entry(ada, change):
    r = ada.post(PATH, entry(**change))
    assert r.status_code == 422
    holds(contracts.PROBLEM, r.json())
    assert not BlocklistEntry.objects.exists()


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_what_was_exported_can_be_imported(ada, kind):
    ada.post(PATH, entry(reason='=cmd(), "quoted"', expiresAt="2027-01-01T00:00:00Z"))
    ada.post(PATH, entry(type="DOMAIN", value="x.example", active=False))
    before = [(r.type, r.value, r.reason, r.expires_at, r.active) for r in all_rows()]
    file = ada.get(f"{PATH}/export?format={kind}")
    assert "attachment" in file.headers["content-disposition"]
    if kind == "csv":
        assert "'=cmd()" in file.text
    BlocklistEntry.objects.all().delete()

    r = ada.request("POST", f"{PATH}/import", files={"file": ("list", file.content)})

    assert r.json() == {"imported": 2, "failed": 0, "errors": []}
    assert [(r.type, r.value, r.reason, r.expires_at, r.active) for r in all_rows()] == before


@pytest.mark.parametrize("write", [str.upper, str.title, " {} ".format], ids=["A", "Aa", " a "])
def test_its_head_may_be_written_in_any_way(ada, write):
    ada.post(PATH, entry(expiresAt="2027-01-01T00:00:00Z", active=False))
    before = [(r.type, r.value, r.reason, r.expires_at, r.active) for r in all_rows()]
    head, _, rest = ada.get(f"{PATH}/export?format=csv").text.partition("\n")
    head = ",".join(write(name.strip()) for name in head.split(","))
    BlocklistEntry.objects.all().delete()

    file = ("list.csv", f"{head}\n{rest}")
    assert ada.request("POST", f"{PATH}/import", files={"file": file}).json()["imported"] == 1
    assert [(r.type, r.value, r.reason, r.expires_at, r.active) for r in all_rows()] == before


def all_rows():
    return BlocklistEntry.objects.order_by("value")


def test_a_list_with_mistakes(ada):
    text = "# mine\n192.0.2.1\n192.0.2.0/24\nspam.example\nnot a domain\n192.0.2.1\n"
    r = ada.request("POST", f"{PATH}/import", files={"file": ("list.txt", text)})
    assert (r.json()["imported"], r.json()["failed"]) == (3, 2)
    assert [line.partition(":")[0] for line in r.json()["errors"]] == ["entry 4", "entry 5"]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[1,", b"[" + b"[" * 5000])
def test_a_file_that_is_none(ada, content):
    r = ada.request("POST", f"{PATH}/import", files={"file": ("x", content)})
    assert refusal(r) == (422, "validation_error")
    r = ada.request("POST", f"{PATH}/import", files={"other": ("x", b"")})
    assert refusal(r) == (422, "validation_error")
    assert refusal(ada.request("POST", f"{PATH}/import")) == (422, "validation_error")
