"""`/api/v1/queue`: listed, searched, acted upon; and Robin is never asked for what it mistakes."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from accounts.models import AuditEvent
from accounts.tests.shapes import refusal
from robin.queue import scan, services
from robin.standin.queue import Envelope
from robin.standin.server import Reply
from robin.tests import contracts
from robin.tests.contracts import holds

UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def ada(member, robin):
    return member("ROLE_ADMIN", by_hand=True)


def done(count, requested):
    facts = {"status": "OK", "done": count, "requested": requested}
    return {**facts, "unknown": 0, "leftOut": 0, "warnings": []}


def acts(robin):
    return [path for method, path in robin.client.asked if method == "POST"]


@pytest.mark.parametrize("path", ["queue", "queue/", "queue/json", "queue/json/"])
def test_a_page_as_the_ui_wants_it(ada, robin, path):
    r = ada.get(f"/api/v1/{path}?page=1&size=50")

    assert r.status_code == 200
    found = r.json()
    holds(contracts.QUEUE, found)
    # What Robin UI asks for shows the dead as well, without that it asks for them.
    states = ("READY", "CLAIMED", "DEAD") if "json" in path else ("READY", "CLAIMED")
    wanted = robin.seed.queue.select(states)
    total = len(wanted)
    assert (found["totalCount"], found["pageSize"], found["pageNumber"]) == (total, 50, 1)
    assert [item["uid"] for item in found["items"]] == [item.uid for item in wanted[50:100]]
    assert [item["state"] for item in found["items"]] == [item.state for item in wanted[50:100]]
    assert (found["complete"], found["knownCount"]) == (True, 120)
    assert int(r.headers["age"]) <= 5


@pytest.mark.parametrize("profile", ["stock", "legacy", "ui-fork"])
def test_every_profile_gives_the_same(ada, robin, profile):
    def look():
        found = ada.get("/api/v1/queue/json").json()["items"]
        for item in found:  # the page's times are whole seconds, and Robin's date is not known
            del item["createTime"], item["firstSeenTime"]
            item["lastRetryTime"] -= item["lastRetryTime"] % 1000
        return found

    stock = look()
    robin.turn_into(profile)
    robin.ports.client._unknown.clear()
    robin.client.asked.clear()
    scan.forget()

    assert look() == stock
    asked = [path.partition("?")[0].rpartition("/")[2] for _, path in robin.client.asked]
    # The probe is not repeated where the address is not known, and counts as no failure.
    assert asked == (["json"] * 3 if profile == "ui-fork" else ["json", "list", "list", "list"])
    assert robin.ports.client.breaker_of("/client/queue/list").report()["failures"] == 0


@pytest.mark.parametrize("content", ["[]", "{}", '{"items": [{}], "totalCount": 1}', "{"])
def test_json_that_is_not_the_queue_is_not_what_we_know(ada, robin, content):
    stock = ada.get("/api/v1/queue/json").json()
    robin.turn_into("ui-fork")
    robin.ports.client._unknown.clear()
    reply = Reply(content.encode(), content_type="application/json; charset=utf-8")
    context = robin.client.contexts["/client/queue/json"]
    robin.client.contexts["/client/queue/json"] = dataclasses.replace(
        context, handle=lambda call: reply
    )

    assert ada.get("/api/v1/queue/json").json() == stock


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("state=DEAD", 8),
        ("state=ready,claimed,dead", 120),
        ("state=CLAIMED", 8),
        ("protocol=lmtp", None),
        ("retryMin=2&retryMax=4", None),
        ("search=ANN's", 1),
        ("page=9999", 112),
    ],
)
def test_filters(ada, robin, query, count):
    found = ada.get(f"/api/v1/queue?size=1000&{query}").json()

    holds(contracts.QUEUE, found)
    items = found["items"]
    if "page" not in query:
        assert len(items) == found["totalCount"]
    assert found["totalCount"] == count or count is None
    assert items or "page" in query
    if "lmtp" in query:
        assert {item["protocol"] for item in items} == {"LMTP"}
    if "retryMin" in query:
        assert {item["retryCount"] for item in items} == {2}
    if query == "state=DEAD":
        assert {item["state"] for item in items} == {"DEAD"}


@pytest.mark.parametrize(
    "query",
    ["page=-1", "page=x", "size=0", "size=1001", "state=GONE", "retryMin=x", "search=%00",
     "page=99999999999999999999"],
)  # fmt: skip
def test_a_question_that_makes_no_sense_is_422_and_not_asked(ada, robin, query):
    r = ada.get(f"/api/v1/queue?{query}")

    assert r.status_code == 422
    holds(contracts.PROBLEM, r.json())
    assert r.json()["errors"][0]["field"].partition(".")[0] == query.partition("=")[0]
    assert robin.client.asked == []


def test_totals(ada, robin):
    assert ada.get("/api/v1/queue/stats").json() == {
        "total": 120, "ready": 104, "claimed": 8, "dead": 8,
    }  # fmt: skip


def test_one_item_also_a_dead_one(ada, robin):
    for item in (robin.seed.queue.select()[0], robin.seed.queue.select(["DEAD"])[0]):
        r = ada.get(f"/api/v1/queue/{item.uid}")
        assert r.json()["uid"] == item.uid
        assert r.json()["state"] == item.state


@pytest.mark.parametrize("uid", ["abc", UNKNOWN + "x", "list", "%2e%2e%2flist", "1" * 32])
@pytest.mark.parametrize(
    ("method", "what"), [("GET", ""), ("DELETE", ""), ("POST", "/retry"), ("POST", "/bounce")]
)
def test_a_uid_that_is_none_is_404_and_never_sent(ada, robin, method, what, uid):
    r = ada.request(method, f"/api/v1/queue/{uid}{what}")

    # `%2f` becomes a slash of the path: then there is no such address, or no such method.
    assert r.status_code in (404, 405)
    holds(contracts.PROBLEM, r.json())
    assert robin.client.asked == []


@pytest.mark.parametrize(
    ("method", "what", "action"),
    [("POST", "/retry", "retry"), ("POST", "/bounce", "bounce"), ("DELETE", "", "delete")],
)
def test_acting_on_one(ada, robin, method, what, action):
    item = robin.seed.queue.select(["READY"])[3]
    retries = item.retry

    r = ada.request(method, f"/api/v1/queue/{item.uid}{what}", json={})

    assert r.status_code == 200
    assert r.json() == done(1, 1)
    assert acts(robin) == [f"/client/queue/{action}"]
    if action == "delete":
        assert item.uid not in robin.seed.queue.items
    else:
        assert item.state == ("READY" if action == "retry" else "DEAD")
        assert item.retry == retries + (action == "retry")
    event = AuditEvent.objects.get(action=f"robin.queue.{action}")
    assert (event.actor, event.target) == (ada.user.email, item.uid)
    again = ada.request(method, f"/api/v1/queue/{UNKNOWN}{what}", json={})
    assert again.status_code == 404
    holds(contracts.PROBLEM, again.json())
    assert robin.seed.queue.count("READY", "CLAIMED", "DEAD") == 120 - (action == "delete")


def test_retry_brings_the_dead_back(ada, robin):
    item = robin.seed.queue.select(["DEAD"])[0]
    assert ada.post(f"/api/v1/queue/{item.uid}/retry", {}).status_code == 200
    assert item.state == "READY"


def test_many_by_uid_in_one_call(ada, robin):
    uids = [item.uid for item in robin.seed.queue.select(["READY"])[:20]]
    body = {"action": "delete", "uids": [*uids, uids[0], UNKNOWN]}

    r = ada.post("/api/v1/queue/actions", body)

    assert r.json() == done(20, 21)
    assert acts(robin) == ["/client/queue/delete"]
    assert not set(uids) & set(robin.seed.queue.items)
    assert AuditEvent.objects.get(action="robin.queue.delete").details["requested"] == 21


def test_many_by_filter_take_a_confirmation(ada, robin):
    body = {"action": "delete", "filter": {"state": ["DEAD"]}}
    proposed = ada.post("/api/v1/queue/actions", body).json()
    assert proposed["matched"] == 8
    assert acts(robin) == []
    # What dies meanwhile was not part of what was shown.
    late = robin.seed.queue.select()[0]
    robin.seed.queue.bounce([late.uid])

    r = ada.post("/api/v1/queue/actions", {**body, "confirm": proposed["confirm"]})

    assert r.json() == done(8, 8)
    assert list(robin.seed.queue.select(["DEAD"])) == [late]
    again = ada.post("/api/v1/queue/actions", {**body, "confirm": proposed["confirm"]})
    assert (again.status_code, again.json()["code"]) == (409, "conflict")


def test_a_confirmation_is_for_one_person_action_and_filter(ada, robin, member):
    body = {"action": "retry", "filter": {"search": "ann@"}}
    token = ada.post("/api/v1/queue/actions", body).json()["confirm"]
    other = member("ROLE_OPERATOR", by_hand=True)
    for who, change in (
        (other, {}),
        (ada, {"action": "bounce"}),
        (ada, {"filter": {"search": "bob@"}}),
        (ada, {"confirm": "made up"}),
    ):
        r = who.post("/api/v1/queue/actions", {**body, "confirm": token, **change})
        assert r.status_code == 409
    assert acts(robin) == []
    assert ada.post("/api/v1/queue/actions", {**body, "confirm": token}).status_code == 202


@pytest.mark.parametrize(
    "body",
    [
        {"action": "delete"},
        {"action": "delete", "uids": []},
        {"action": "explode", "uids": [UNKNOWN]},
        {"action": "delete", "filter": {}},
        {"action": "delete", "uids": [UNKNOWN], "filter": {"state": ["DEAD"]}},
        {"action": "delete", "uids": [5]},
        {"action": "delete", "uids": [UNKNOWN] * 1001},
        {"action": "delete", "filter": {"stat": "DEAD"}},
    ],
)
def test_bad_bulk_actions(ada, robin, body):
    r = ada.post("/api/v1/queue/actions", body)

    assert r.status_code == 422
    holds(contracts.PROBLEM, r.json())
    assert robin.client.asked == []


def test_who_may_not_delete_may_not_in_bulk_either(robin, member):
    reader = member("ROLE_USER", by_hand=True)
    r = reader.post("/api/v1/queue/actions", {"action": "delete", "uids": [UNKNOWN]})
    assert refusal(r) == (403, "permission_denied")


@pytest.mark.parametrize("what", ["pause", "resume", f"{UNKNOWN}/pause", f"{UNKNOWN}/resume"])
def test_pausing_is_not_possible_and_says_so(ada, robin, what):
    r = ada.post(f"/api/v1/queue/{what}", {})
    assert (r.status_code, r.json()["code"]) == (501, "not_possible")
    assert "pause" in r.json()["message"]


def test_a_long_queue_is_searched_whole(ada, robin):
    for n in range(2500):
        robin.seed.queue.enqueue("ESMTP", [Envelope("", [f"n{n}@long.example"])])

    found = {"complete": False}
    while not found["complete"]:
        found = ada.get("/api/v1/queue?search=LONG.example&size=10&page=1").json()

    assert (found["totalCount"], len(found["items"])) == (2500, 10)
    asked = [path for _, path in robin.client.asked]
    assert {path.partition("page=")[2][0] for path in asked} == {"1", "2", "3"}
    assert len(asked) <= 2 * (3 + 2)  # a thousand items each, and who is claimed, or dead


def test_what_the_live_queue_hears(ada, robin, gateway):
    found = gateway.run(services.fetch_queue())

    assert found.totals == {"total": 120, "ready": 104, "claimed": 8, "dead": 8}
    assert len(found.items) == 112
    assert {item["state"] for item in found.items} == {"READY", "CLAIMED"}


def test_robin_s_credentials_and_ours_do_not_mix(ada, robin):
    ada.get("/api/v1/storage", headers={"Cookie": "refreshToken=x", "X-Evil": "y"})

    (seen,) = robin.client.headers_seen
    ours = {"Accept-Encoding": "identity", "Connection": "keep-alive", "User-Agent": "gateway"}
    assert set(seen) == {"Host", "Accept", "X-Request-ID", *ours}
    assert {name: seen[name] for name in ours} == ours


@pytest.mark.parametrize("search", ["", "ann"])
def test_equal_questions_at_once_are_one_for_robin(gateway, robin, search):
    async def ask():
        which = services.Filter(search=search)
        pages = await asyncio.gather(*(services.page(which, number=0, size=50) for _ in range(20)))
        return {len(one.items) for one in pages}

    assert len(gateway.run(ask())) == 1
    assert len(robin.client.asked) == 3  # of each kind one


def test_who_asks_after_a_deletion_does_not_join_who_asked_before(gateway, robin):
    async def ask():
        before = asyncio.ensure_future(services.page(services.Filter(), number=0, size=50))
        uid = robin.seed.queue.select()[0].uid
        await services.act("delete", [uid])
        after = await services.page(services.Filter(), number=0, size=50)
        await before
        return uid in {item["uid"] for item in after.items}

    assert gateway.run(ask()) is False


def test_of_what_robin_stopped_in_nobody_knows(ada, robin):
    """It was told to, did a part, and answered 500."""
    chosen = [item.uid for item in robin.seed.queue.select(["READY"])[:10]]
    robin.seed.closes_after = 4

    r = ada.post("/api/v1/queue/actions", {"action": "bounce", "uids": chosen})

    assert refusal(r)[0] in (502, 503)
    assert [r.json()[name] for name in ("done", "requested", "unknown")] == [0, 10, 10]
    assert robin.seed.queue.count("DEAD") == 8 + 4
