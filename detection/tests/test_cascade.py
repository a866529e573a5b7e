"""A second engine for what the first is unsure about, and a shadow that changes nothing"""

from __future__ import annotations

import asyncio

import pytest

from accounts.services import Actor
from detection import comparisons, shadows
from detection.ledger import ledger
from detection.models import Disagreement, EngineDay
from detection.policies import policy as policies
from detection.tests import fake_engines
from detection.tests.test_detect import ATTACK, HARMLESS, problem

UNSURE = "Perhaps this is one, and perhaps it is not."


@pytest.fixture(scope="module")
def _fakes():
    with fake_engines.serving() as first, fake_engines.serving() as second:
        yield first, second


@pytest.fixture
def fakes(_fakes, gateway, engine):
    for fake, name in zip(_fakes, ("quick", "deep"), strict=True):
        fake.is_well()
        fake.answer = fake_engines.go(0.1)
        fake_engines.add(gateway, name, f"http://{fake.address}?window=0&floor=0")
    yield _fakes
    gateway.run(shadows.stop())
    for name in ("quick", "deep"):
        fake_engines.remove(gateway, name)


@pytest.fixture
def use(acme_key):
    def use(**engines):
        policies.save(acme_key.row, {"engines": engines}, actor=Actor("test"))

    return use


def second(least=0.3, most=0.8):
    return {"engine": "deep", "from": least, "to": most}


def wait_for_shadows(gateway, but=frozenset()):
    async def wait():
        await asyncio.gather(*(shadows._calls - but))
        await ledger.flush()

    gateway.run(wait())


class TestTheSecond:
    @pytest.mark.parametrize(
        ("score", "asked", "engine_name"),
        [(0.29, 0, "quick"), (0.3, 1, "deep"), (0.8, 1, "deep"), (0.81, 0, "quick")],
    )
    def test_it_is_asked_when_the_first_is_unsure(
        self, gateway, fakes, use, acme_key, score, asked, engine_name
    ):
        fakes[0].answer, fakes[1].answer = fake_engines.go(score), fake_engines.go(0.95)
        use(first="quick", second=second())

        body = gateway.detect(UNSURE, key=acme_key).json()

        assert (len(fakes[1].asked), body["engine"]) == (asked, engine_name)
        assert body["status"] == "complete"

    def test_both_are_remembered_as_one(self, gateway, fakes, use, acme_key):
        fakes[0].answer, fakes[1].answer = fake_engines.go(0.5), fake_engines.go(0.95)
        use(first="quick", second=second())

        gateway.detect(UNSURE, key=acme_key)
        again = gateway.detect(UNSURE, key=acme_key).json()
        use(first="quick")
        alone = gateway.detect(UNSURE, key=acme_key).json()

        assert (again["cached"], again["engine"]) == (True, "deep")
        assert (alone["cached"], alone["confidence"]) == (False, 0.5)

    def test_without_it_the_first_stands_and_the_answer_says_so(
        self, gateway, fakes, use, acme_key
    ):
        fakes[0].answer, fakes[1].bad = fake_engines.go(0.55), "503"
        use(first="quick", second=second())

        body = gateway.detect(UNSURE, key=acme_key).json()

        assert (body["status"], body["degraded_reason"]) == ("degraded", "engine_error")
        assert (body["engine"], body["decision"]) == ("quick", "review")
        fakes[1].bad = ""
        assert gateway.detect(UNSURE, key=acme_key).json()["cached"] is False

    def test_when_the_first_is_away_it_judges_alone(self, gateway, fakes, use, acme_key):
        fakes[0].bad, fakes[1].answer = "503", fake_engines.go(0.95)
        use(first="quick", second=second())

        body = gateway.detect(UNSURE, key=acme_key).json()

        assert (body["engine"], body["status"], body["decision"]) == ("deep", "complete", "flag")

    @pytest.mark.parametrize("timeout", [0.5, 2.0], ids=str)
    def test_a_first_that_hangs_leaves_it_time(
        self, gateway, fakes, use, acme_key, settings, timeout
    ):
        settings.DETECTION_ENGINE_TIMEOUT_SECONDS = timeout
        fakes[0].seconds, fakes[1].answer = 3600.0, fake_engines.go(0.95)
        use(first="quick", second=second())

        body = gateway.detect(UNSURE, key=acme_key).json()

        assert (body["engine"], body["status"], body["decision"]) == ("deep", "complete", "flag")

    def test_a_first_that_always_hangs_is_given_up(self, gateway, fakes, use, acme_key, settings):
        settings.DETECTION_ENGINE_TIMEOUT_SECONDS = 0.5
        fakes[0].seconds, fakes[1].answer = 3600.0, fake_engines.go(0.95)
        use(first="quick", second=second())

        answers = [gateway.detect(f"{UNSURE} {n}", key=acme_key).json() for n in range(6)]

        assert {body["engine"] for body in answers} == {"deep"}
        assert len(fakes[0].asked) == 5

    def test_without_both_the_embedded_detector_does(self, gateway, fakes, use, acme_key):
        fakes[0].bad = fakes[1].bad = "503"
        use(first="quick", second=second())

        body = gateway.detect(ATTACK, key=acme_key).json()

        assert (body["source"], body["status"], body["is_malicious"]) == (
            "fallback", "degraded", True,
        )  # fmt: skip

    def test_one_that_is_not_configured_any_more_is_never_clean(
        self, gateway, engine, use, acme_key
    ):
        use(first="gone")

        body = gateway.detect(ATTACK, key=acme_key).json()

        assert (body["source"], body["is_malicious"]) == ("fallback", True)

    def test_the_embedded_detector_can_be_the_first(self, gateway, fakes, use, acme_key):
        fake_engines.add(gateway, "rules", "embedded:")
        try:
            use(first="rules", second=second(0.0, 0.3))
            sure = gateway.detect(ATTACK, key=acme_key).json()
            unsure = gateway.detect(HARMLESS, key=acme_key).json()
        finally:
            fake_engines.remove(gateway, "rules")

        assert (sure["engine"], sure["status"], sure["source"]) == ("rules", "complete", "engine")
        assert unsure["engine"] == "deep"

    def test_a_threshold_is_of_the_engine_that_judged(self, gateway, fakes, acme_key):
        fakes[0].answer, fakes[1].answer = fake_engines.go(0.5), fake_engines.go(0.7)
        document = {
            "threshold": {"engine": 0.4, "engines": {"deep": 0.75}},
            "engines": {"first": "quick", "second": second()},
        }
        policies.save(acme_key.row, document, actor=Actor("test"))

        body = gateway.detect(UNSURE, key=acme_key).json()

        assert (body["threshold"], body["is_malicious"]) == (0.75, False)


class TestThePolicy:
    @pytest.mark.parametrize(
        "engines",
        [
            {"first": "unknown"},
            {"first": "Default"},
            {"second": {"engine": "unknown"}},
            {"second": {"engine": "default"}},
            {"second": {"engine": "judge", "from": 0.9, "to": 0.1}},
            {"second": {"engine": "judge", "from": -1}},
            {"shadow": {"engine": "judge", "share": 0}},
            {"shadow": {"engine": "judge", "share": 1.5}},
            {"shadow": {"engine": "unknown"}},
            {"third": "judge"},
        ],
    )
    def test_mistakes_are_refused(self, gateway, engine, acme_admin_key, settings, engines):
        settings.DETECTION_ENGINES = "judge=openai+http://127.0.0.1:1/v1?model=m"

        r = gateway.request("PUT", "/v1/policy", key=acme_admin_key, json={"engines": engines})

        problem(r, 422, "validation_error")

    def test_it_is_read_as_it_was_written(self, gateway, engine, acme_admin_key, settings):
        settings.DETECTION_ENGINES = "judge=openai+http://127.0.0.1:1/v1?model=m rules=embedded:"
        engines = {
            "first": "rules",
            "second": {"engine": "judge", "from": 0.2, "to": 0.7},
            "shadow": {"engine": "default", "share": 0.25},
        }

        r = gateway.request("PUT", "/v1/policy", key=acme_admin_key, json={"engines": engines})

        assert r.json()["engines"] == engines
        assert gateway.get("/v1/policy", key=acme_admin_key).json()["engines"] == engines


class TestTheShadow:
    def test_it_sees_the_traffic_and_changes_nothing(self, gateway, fakes, use, acme_key):
        fakes[1].answer = fake_engines.go(0.95)
        use(shadow={"engine": "deep", "share": 1.0})

        answers = [gateway.detect(f"{HARMLESS} {n}", key=acme_key) for n in range(3)]
        flagged = gateway.detect(ATTACK, key=acme_key).json()
        wait_for_shadows(gateway)

        assert [r.json()["decision"] for r in answers] == ["allow"] * 3
        assert "engine" not in flagged
        assert len(fakes[1].asked) == 4
        [found] = comparisons.of_key(acme_key.row.pk)
        assert (found.engine, found.compared_to) == ("deep", "default")
        assert (found.agreed, found.only_own, found.only_shadow) == (1, 0, 3)
        assert found.milliseconds > 0
        assert found.own_milliseconds > 0
        rows = comparisons.disagreements_of(acme_key.row.pk)
        assert {str(row.request_id) for row in rows} == {r.json()["request_id"] for r in answers}
        assert {(row.is_malicious, row.shadow_score) for row in rows} == {(False, 0.95)}

    def test_no_answer_waits_for_it(self, gateway, fakes, use, acme_key):
        fakes[1].seconds = 1.0
        use(shadow={"engine": "deep", "share": 1.0})

        body = gateway.detect(HARMLESS, key=acme_key).json()

        assert body["processing_time_ms"] < 900
        assert len(shadows._calls) == 1

    def test_under_pressure_it_stops_first(self, gateway, fakes, use, acme_key, monkeypatch):
        use(shadow={"engine": "deep", "share": 1.0})
        monkeypatch.setattr(shadows, "PRESSURE", -1)

        gateway.detect(HARMLESS, key=acme_key)
        wait_for_shadows(gateway)

        assert fakes[1].asked == []
        assert EngineDay.objects.get().skipped == 1

    def test_at_most_so_many_are_under_way(self, gateway, fakes, use, acme_key):
        fakes[1].seconds = 1.0
        use(shadow={"engine": "deep", "share": 1.0})

        gateway.at_once(
            {
                "method": "POST",
                "url": "/v1/detect",
                "json": {"text": f"{HARMLESS} {n}"},
                "headers": {"X-API-Key": acme_key},
            }
            for n in range(20)
        )
        assert len(shadows._calls) <= shadows.IN_FLIGHT_MAX // 2
        wait_for_shadows(gateway)

        assert len(fakes[1].asked) <= shadows.IN_FLIGHT_MAX // 2
        day = EngineDay.objects.get()
        assert day.calls + day.skipped == 20

    @pytest.mark.hostile
    @pytest.mark.parametrize("name", ["quick", "rules"])
    def test_one_that_hangs_leaves_places_to_others(
        self, gateway, fakes, use, acme_key, make_key, globex, name
    ):
        fakes[1].seconds = 3600.0
        use(shadow={"engine": "deep", "share": 1.0})
        neighbour = make_key(globex)
        shadow = {"engines": {"shadow": {"engine": name, "share": 1.0}}}
        policies.save(neighbour.row, shadow, actor=Actor("test"))
        if name == "rules":
            fake_engines.add(gateway, name, "embedded:")
        for number in range(shadows.IN_FLIGHT_MAX):
            gateway.detect(f"{HARMLESS} {number}", key=acme_key)
        hanging = set(shadows._calls)

        gateway.detect(HARMLESS, key=neighbour)
        wait_for_shadows(gateway, but=hanging)
        if name == "rules":
            fake_engines.remove(gateway, name)

        assert len(hanging) == shadows.IN_FLIGHT_MAX // 2
        day = EngineDay.objects.get(api_key_id=neighbour.row.pk)
        assert (day.calls, day.failed, day.skipped) == (1, 0, 0)

    def test_its_trouble_is_counted_and_nobodys(self, gateway, fakes, use, acme_key):
        fakes[1].bad = "html"
        use(shadow={"engine": "deep", "share": 1.0})

        body = gateway.detect(HARMLESS, key=acme_key).json()
        wait_for_shadows(gateway)

        assert body["status"] == "complete"
        assert EngineDay.objects.get().failed == 1

    def test_a_share_is_a_share(self, gateway, fakes, use, acme_key):
        use(shadow={"engine": "deep", "share": 0.5})

        for number in range(40):
            gateway.detect(f"{HARMLESS} {number}", key=acme_key)
            wait_for_shadows(gateway)

        assert 5 < len(fakes[1].asked) < 35

    def test_its_text_is_kept_nowhere(self, gateway, fakes, use, acme_key):
        fakes[1].answer = fake_engines.go(0.95)
        use(shadow={"engine": "deep", "share": 1.0})
        gateway.detect("marzipan-4711", key=acme_key)
        wait_for_shadows(gateway)

        assert "marzipan" not in repr(list(Disagreement.objects.values()))
        assert Disagreement.objects.count() == 1

    def test_what_was_remembered_is_not_shown_to_it(self, gateway, fakes, use, acme_key):
        use(shadow={"engine": "deep", "share": 1.0})
        for _ in range(3):
            gateway.detect(HARMLESS, key=acme_key)
        wait_for_shadows(gateway)

        assert len(fakes[1].asked) == 1
