"""What is sent, when it is tried again, and when a webhook gets nothing more."""

from __future__ import annotations

import asyncio
import errno
from copy import copy
from datetime import timedelta

import pytest
import time_machine
from django.utils import timezone

from accounts.events import publish
from accounts.models import AuditEvent, OutboxEvent, Workspace
from gateway_project.core.stores import deletion
from gateway_project.core.telemetry.metrics import webhook_attempts
from gateway_project.core.upstream import names
from webhooks import services
from webhooks.delivery import engine, outbox, results, schedule, sending
from webhooks.models import Webhook, WebhookAttempt, WebhookDelivery, WebhookNotice
from webhooks.tests.conftest import ACTOR
from webhooks.tests.receiver import Answer


def tell(workspace, kind="detection.completed", **result):
    return publish(workspace, kind, result=result)


def delivery():
    return WebhookDelivery.objects.get()


def wait_over(seconds=0.0):
    """Make what is pending due now, as if its time had come."""
    WebhookDelivery.objects.filter(status="pending").update(
        next_attempt_at=timezone.now() - timedelta(seconds=seconds)
    )


class TestTheRequest:
    def test_it_is_signed_so_that_the_standards_library_verifies_it(self, receiver, acme, webhook):
        event = tell(acme, is_malicious=True)

        engine.deliver_all()

        [got] = receiver.received
        assert got.verified_by(webhook.secret) == event.body
        assert got.headers["webhook-id"] == str(event.pk)
        assert got.headers["content-type"] == "application/json"
        assert got.headers["user-agent"].startswith("Gateway-Webhooks/")

    def test_it_has_the_older_signature_too(self, receiver, acme, webhook):
        import base64
        import hashlib
        import hmac

        tell(acme)
        engine.deliver_all()

        [got] = receiver.received
        key = base64.b64decode(webhook.secret.removeprefix("whsec_"))
        expected = hmac.new(key, got.body, hashlib.sha256).hexdigest()
        assert got.headers["x-signature"] == f"sha256={expected}"

    def test_during_a_rotation_both_secrets_verify_and_afterwards_one(
        self, receiver, acme, webhook
    ):
        new, until = services.rotate_secret(webhook, overlap_seconds=3600, actor=ACTOR)
        tell(acme)
        engine.deliver_all()
        with time_machine.travel(until + timedelta(seconds=1)):
            tell(acme)
            engine.deliver_all()

            during, after = receiver.received
            assert after.verified_by(new)
            with pytest.raises(Exception, match="No matching signature"):
                after.verified_by(webhook.secret)
        assert during.verified_by(new) == during.verified_by(webhook.secret)

    def test_the_bytes_are_the_same_at_each_attempt(self, receiver, acme, webhook):
        receiver.answers(500, 200)
        tell(acme, text="äöü \u2028", number=0.1, deep={"b": 1, "a": [None, True]})

        engine.deliver_all()
        wait_over()
        engine.deliver_all()

        first, second = receiver.received
        assert first.body == second.body
        assert first.event_id == second.event_id

    def test_it_goes_to_those_who_asked_and_nobody_else(self, receiver, acme, globex, make_webhook):
        make_webhook("/both", ["detection.completed", "quota.80"])
        make_webhook("/quota", ["quota.80"])
        make_webhook("/stranger", ["detection.completed"], workspace=globex)

        tell(acme, "detection.completed")
        tell(acme, "batch.completed")
        engine.deliver_all()

        assert [got.path for got in receiver.received] == ["/both"]
        assert not OutboxEvent.objects.filter(published_at=None).exists()

    def test_a_redirect_is_a_failure_and_never_followed(self, receiver, acme, webhook):
        receiver.answers(Answer(302, {"Location": receiver.url("/elsewhere")}))
        tell(acme)

        engine.deliver_all()

        assert [got.path for got in receiver.received] == ["/hook"]
        assert (delivery().status, delivery().http_status) == ("pending", 302)

    def test_an_address_that_is_refused_by_now_is_never_dialled(
        self, receiver, acme, webhook, settings
    ):
        settings.WEBHOOK_ALLOWED_NETWORKS = ()
        tell(acme)

        engine.deliver_all()

        assert receiver.received == []
        [attempt] = WebhookAttempt.objects.all()
        assert attempt.http_status is None
        assert "private or reserved" in attempt.error
        assert delivery().status == "pending"

    def test_a_name_that_leads_to_a_private_address_by_now_is_never_dialled(
        self, receiver, acme, webhook, name_server
    ):
        Webhook.objects.update(url=f"https://rebinding.example:8443/{receiver.port}")
        tell(acme)

        name_server.resolves("rebinding.example", "10.1.2.3")
        engine.deliver_all()

        assert "private or reserved" in delivery().error
        assert "10.1" not in delivery().error

    def test_it_is_counted(self, receiver, acme, webhook):
        def counted(outcome):
            return webhook_attempts.labels(outcome)._value.get()

        before = counted("delivered"), counted("failed")
        receiver.answers(500, 200)
        tell(acme)
        engine.deliver_all()
        wait_over()
        engine.deliver_all()

        assert (counted("delivered"), counted("failed")) == (before[0] + 1, before[1] + 1)


class TestTheLog:
    def test_it_keeps_each_attempt(self, receiver, acme, webhook):
        receiver.answers(Answer(500, body=b"oh\x00 no"), Answer(204, body=b""))
        tell(acme)

        engine.deliver_all()
        wait_over()
        engine.deliver_all()

        first, second = WebhookAttempt.objects.all()
        assert (first.http_status, first.response_body) == (500, "oh\ufffd no")
        assert first.next_attempt_at is not None
        assert (second.http_status, second.response_body) == (204, "")
        assert second.next_attempt_at is None
        done = delivery()
        assert (done.status, done.http_status, done.attempts_made) == ("delivered", 204, 2)
        assert done.next_attempt_at is None
        assert done.finished_at is not None

    @pytest.mark.parametrize("size", [16 << 10, (16 << 10) + 1, 1 << 20])
    def test_of_a_body_16_kib_are_kept(self, receiver, acme, webhook, size):
        receiver.answers(Answer(200, body=b"x" * size))
        tell(acme)

        engine.deliver_all()

        assert WebhookAttempt.objects.get().response_body == "x" * (16 << 10)
        assert delivery().status == "delivered"

    def send_again(self, times):
        for _ in range(times):
            services.resend(delivery(), actor=ACTOR)
            engine.deliver_all()

    def test_of_one_delivery_the_last_ten_attempts_are_kept(self, receiver, acme, webhook):
        tell(acme)
        engine.deliver_all()
        first = WebhookAttempt.objects.get()

        self.send_again(9)
        assert WebhookAttempt.objects.filter(pk=first.pk).exists()

        self.send_again(2)
        assert WebhookAttempt.objects.count() == 10
        assert WebhookAttempt.objects.order_by("id")[0].pk > first.pk
        assert delivery().attempts_made == 12

    def test_answers_are_kept_of_the_last_two(self, receiver, acme, make_webhook):
        make_webhook("/one")
        make_webhook("/other")
        receiver.answers(*(Answer(500, body=b"%d" % number) for number in (1, 1, 2, 2, 3, 3)))
        tell(acme)

        for _ in range(3):
            engine.deliver_all()
            wait_over()

        for each in WebhookDelivery.objects.all():
            assert [attempt.response_body for attempt in each.attempts.all()] == ["", "2", "3"]
            assert [attempt.http_status for attempt in each.attempts.all()] == [500] * 3

    def test_an_attempt_forgets_no_more_than_its_bound(self, receiver, acme, webhook, monkeypatch):
        monkeypatch.setattr(results, "TRIMMED_MAX", 5)
        tell(acme)
        engine.deliver_all()
        old = WebhookAttempt(delivery=delivery(), at=timezone.now(), duration_ms=1)
        old.response_body = "x"
        WebhookAttempt.objects.bulk_create([copy(old) for _ in range(20)])
        WebhookDelivery.objects.update(attempts_made=21)

        self.send_again(1)
        assert WebhookAttempt.objects.count() == 22 - 5

        self.send_again(6)
        assert WebhookAttempt.objects.count() == 10
        assert WebhookAttempt.objects.exclude(response_body="").count() <= 2

    def test_a_first_attempt_looks_for_no_older_ones(self, receiver, acme, webhook, monkeypatch):
        asked = []
        monkeypatch.setattr(results, "delete_rows", lambda *rows: asked.append(rows))
        tell(acme)

        engine.deliver_all()

        assert not asked

    def test_nobody_there(self, receiver, acme, webhook):
        Webhook.objects.update(url="http://127.0.0.1:1/")
        tell(acme)

        engine.deliver_all()

        assert delivery().error == "no connection could be made"

    def test_one_that_hangs_up(self, receiver, acme, webhook):
        receiver.answers(Answer(hangs_up=True))
        tell(acme)

        engine.deliver_all()

        assert delivery().error == "the connection was closed without an answer"

    def test_one_that_does_not_answer_in_time(self, receiver, acme, webhook, monkeypatch):
        monkeypatch.setattr("webhooks.delivery.sending.TIMEOUT_SECONDS", 0.2)
        receiver.answers(Answer(hangs=True))
        tell(acme)
        before = timezone.now()

        engine.deliver_all()

        assert delivery().error == "no answer within 0.2 s"
        assert delivery().next_attempt_at - before >= timedelta(seconds=60)


class TestTheSchedule:
    def test_all_of_it(self, receiver, acme, webhook):
        receiver.answers(503)
        tell(acme)
        waits = []
        while True:
            engine.deliver_all()
            attempt = WebhookAttempt.objects.last()
            if attempt.next_attempt_at is None:
                break
            waits.append((attempt.next_attempt_at - attempt.at).total_seconds())
            wait_over()

        expected = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400]
        assert len(receiver.received) == 10
        assert len(waits) == 9
        for wait, scheduled in zip(waits, expected, strict=True):
            assert 0.8 * scheduled <= wait <= 1.2 * scheduled + 1
        assert delivery().status == "failed"

    @pytest.mark.parametrize(("retry_count", "attempts"), [(0, 1), (2, 3), (9, 10)])
    def test_retry_count_caps_it(self, receiver, acme, make_webhook, retry_count, attempts):
        make_webhook(retry_count=retry_count)
        receiver.answers(500)
        tell(acme)

        for _ in range(12):
            engine.deliver_all()
            wait_over()

        assert len(receiver.received) == attempts

    def test_jitter_spreads_within_a_fifth(self):
        waits = {
            schedule.delay_seconds(2, is_overloaded=False, retry_after_seconds=None)
            for _ in range(200)
        }

        assert len(waits) > 100
        assert 240 <= min(waits) < 260
        assert 340 < max(waits) <= 360

    @pytest.mark.parametrize("step", range(1, 10))
    @pytest.mark.parametrize("is_overloaded", [False, True])
    @pytest.mark.parametrize("asked", [None, 0.0, 1.0, 70.0, 400.0, 1e9, -5.0])
    def test_a_receiver_may_double_a_wait_and_not_shorten_it(self, step, is_overloaded, asked):
        wait = schedule.delay_seconds(step, is_overloaded=is_overloaded, retry_after_seconds=asked)

        least, most = 0.8 * schedule.DELAYS[step], 1.2 * schedule.DELAYS[step]
        if is_overloaded:
            least, most = max(least, 60), max(most, 60)
        assert least <= wait <= most * (2 if asked else 1)

    @pytest.mark.parametrize(
        ("headers", "least", "most"),
        [
            ({}, 60, 60),
            ({"Retry-After": "90"}, 90, 90),
            ({"Retry-After": "10"}, 60, 60),
            ({"Retry-After": "31536000"}, 120, 120),
            ({"Retry-After": "Fri, 31 Dec 2100 23:59:59 GMT"}, 120, 120),
            ({"Retry-After": "soon"}, 60, 60),
        ],
    )
    def test_429_waits_a_minute_at_least(self, receiver, acme, webhook, headers, least, most):
        receiver.answers(Answer(429, headers))
        tell(acme)

        engine.deliver_all()

        attempt = WebhookAttempt.objects.get()
        wait = (attempt.next_attempt_at - attempt.at).total_seconds()
        assert least <= wait <= most + 2


class TestDisabling:
    def test_410_ends_it_at_once_and_gives_up_the_rest(self, receiver, acme, webhook):
        receiver.answers(410)
        tell(acme)
        engine.deliver_all()
        tell(acme)
        engine.deliver_all()

        webhook.refresh_from_db()
        assert len(receiver.received) == 1
        assert (webhook.is_active, webhook.disabled_reason) == (False, "gone")
        assert delivery().status == "failed"
        assert Workspace.objects.get(pk=acme.pk).wanted_events == []
        assert AuditEvent.objects.filter(action="webhook.disabled", target=webhook.pk).exists()
        assert WebhookNotice.objects.get().kind == "disabled"

    def fail_every_half_day(self, acme, receiver, days):
        start = timezone.now()
        for half in range(2 * days + 1):
            with time_machine.travel(start + timedelta(hours=12 * half), tick=False):
                tell(acme)
                engine.deliver_all()

    def test_five_days_of_nothing_but_failures_do(self, receiver, acme, make_webhook):
        webhook = make_webhook(retry_count=0)
        receiver.answers(500)

        self.fail_every_half_day(acme, receiver, 4)
        webhook.refresh_from_db()
        assert webhook.is_active
        self.fail_every_half_day(acme, receiver, 5)

        webhook.refresh_from_db()
        assert (webhook.is_active, webhook.disabled_reason) == (False, "failing")
        assert WebhookNotice.objects.get().facts["reason"] == "failing"

    def test_one_success_in_between_starts_anew(self, receiver, acme, make_webhook):
        webhook = make_webhook(retry_count=0)
        receiver.answers(500, 500, 500, 500, 200, 500)

        self.fail_every_half_day(acme, receiver, 6)

        webhook.refresh_from_db()
        assert webhook.is_active

    def test_two_failures_a_week_apart_are_not_one_trouble(self, receiver, acme, make_webhook):
        webhook = make_webhook(retry_count=0)
        receiver.answers(500)
        tell(acme)
        engine.deliver_all()
        with time_machine.travel(timezone.now() + timedelta(days=7)):
            tell(acme)
            engine.deliver_all()

        webhook.refresh_from_db()
        assert webhook.is_active


class TestClaiming:
    def test_what_is_claimed_is_nobody_elses_until_its_lease_ends(self, receiver, acme, webhook):
        tell(acme)
        outbox.fan_out()

        first, second = outbox.Claims().take(10, {}, 4), outbox.Claims().take(10, {}, 4)
        with time_machine.travel(timezone.now() + outbox.LEASE + timedelta(seconds=1)):
            third = outbox.Claims().take(10, {}, 4)

        assert (len(first), len(second), len(third)) == (1, 0, 1)

    def test_a_webhook_without_room_is_passed_over(self, receiver, acme, make_webhook):
        slow, quick = make_webhook("/slow"), make_webhook("/quick")
        for _ in range(30):
            tell(acme)
        outbox.fan_out()

        jobs = outbox.Claims().take(10, {(slow.pk, ""): 0}, 4)

        assert {job.webhook_id for job in jobs} == {quick.pk}
        assert len(jobs) == 4

    def test_no_event_goes_twice_to_one_webhook(self, receiver, acme, webhook):
        tell(acme)
        assert [outbox.fan_out(), outbox.fan_out()] == [1, 0]

        assert WebhookDelivery.objects.count() == 1

    def test_one_that_was_disabled_in_between_gets_nothing(self, receiver, acme, webhook):
        tell(acme)
        outbox.fan_out()
        Webhook.objects.update(is_active=False)

        engine.deliver_all()

        assert receiver.received == []
        assert delivery().status == "failed"

    def test_one_that_was_deleted_in_flight_harms_nobody(self, receiver, acme, make_webhook):
        from webhooks.delivery.results import record
        from webhooks.delivery.sending import send_once

        gone, stays = make_webhook("/gone"), make_webhook("/stays")
        tell(acme)
        outbox.fan_out()
        results = [(job, send_once(job)) for job in outbox.Claims().take(10, {}, 4)]
        services.delete(gone, actor=ACTOR)
        deletion.erase()

        record(results)

        assert delivery().webhook == stays
        assert delivery().status == "delivered"


def test_one_that_hangs_holds_back_nobody(receiver, acme, make_webhook):
    """The hanging requests are let go only after all others have arrived."""
    import threading

    make_webhook("/hangs", ["quota.80"])
    for n in range(90):
        make_webhook(f"/{n}", ["detection.completed"])
    receiver.answers(Answer(hangs=True), path="/hangs")
    for _ in range(50):
        tell(acme, "quota.80")
    for _ in range(3):
        tell(acme, "detection.completed")

    done = threading.Event()

    def others():
        return len(receiver.received) - len(receiver.at("/hangs"))

    def watch():
        while not done.wait(0.02):
            if others() == 270:
                hanging.append(len(receiver.at("/hangs")))
                receiver.answers(200, path="/hangs")
                receiver.release()
                return

    hanging: list[int] = []
    watcher = threading.Thread(target=watch)
    watcher.start()
    engine.deliver_all()
    done.set()
    watcher.join()

    assert hanging == [engine.WINDOW_START]
    assert others() == 270
    assert len(receiver.at("/hangs")) == 50
    assert set(WebhookDelivery.objects.values_list("status", flat=True)) == {"delivered"}


def test_no_more_than_its_rate_begins_in_a_second(webhook, settings, monkeypatch):
    settings.WEBHOOK_RATE_PER_SECOND = 10
    now = 100.0
    monkeypatch.setattr(engine, "monotonic", lambda: now)
    lane = engine.ConcurrencyWindow()
    lane.limit = 1000

    def begin_all():
        begun = 0
        while lane.room() > 0:
            lane.begin()
            begun += 1
        return begun

    assert begin_all() == 10
    assert lane.waits_for_rate
    now += 0.5
    assert begin_all() == 5
    now += 60
    assert begin_all() == 10


def test_a_rate_delays_and_loses_nothing(receiver, acme, webhook, settings):
    settings.WEBHOOK_RATE_PER_SECOND = 50
    for _ in range(80):
        tell(acme)

    engine.deliver_all()

    assert len(receiver.ids) == len(receiver.received) == 80


@pytest.mark.hostile
class TestTroubleOfOurOwn:
    """It is not held against the receiver, and the delivery is only put off."""

    def put_off(self):
        found = delivery()
        webhook = Webhook.objects.get(pk=found.webhook_id)
        return (
            (found.status, found.step, found.attempts_made, found.is_claimed)
            == ("pending", 0, 0, False)
            and found.next_attempt_at > timezone.now()
            and webhook.failing_since is None
            and not WebhookAttempt.objects.exists()
        )

    @pytest.fixture
    def named(self, acme, webhook):
        Webhook.objects.update(url="https://there.example/hook")
        tell(acme)

    def test_name_servers_that_do_not_answer(self, named, name_server, monkeypatch):
        monkeypatch.setattr(names, "SECONDS_MAX", 0.1)
        name_server.is_silent = True

        engine.deliver_all()

        assert self.put_off()
        assert delivery().error == "our name servers did not answer"

    @pytest.mark.parametrize("number", sorted(sending.OURS | sending.NO_NETWORK))
    def test_a_network_that_is_not_there(self, named, name_server, monkeypatch, number):
        name_server.resolves("there.example", "8.8.8.8")

        async def connect(*_):
            raise OSError(number, "Connect call failed ('8.8.8.8', 443)")

        monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", connect)
        engine.deliver_all()

        assert self.put_off()

    def test_a_network_without_ipv6_is_the_receivers(self, named, name_server, monkeypatch):
        name_server.resolves("there.example", "2606:4700::1111")

        async def connect(*_):
            raise OSError(errno.ENETUNREACH, "Connect call failed ('2606:4700::1111', 443, 0, 0)")

        monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", connect)
        engine.deliver_all()

        assert (delivery().status, delivery().step) == ("pending", 1)

    def test_it_has_an_end(self, named, name_server, monkeypatch):
        monkeypatch.setattr(names, "SECONDS_MAX", 0.1)
        name_server.is_silent = True
        engine.deliver_all()
        names._channel.cache_clear()
        assert self.put_off()
        WebhookDelivery.objects.update(
            created_at=timezone.now() - timedelta(days=2), next_attempt_at=timezone.now()
        )

        engine.deliver_all()

        assert delivery().step == 1

    def test_names_that_hang_keep_no_other_delivery_waiting(
        self, receiver, acme, globex, make_webhook, name_server
    ):
        """Acme's hang when globex' has arrived."""
        for n in range(40):
            webhook = make_webhook()
            Webhook.objects.filter(pk=webhook.pk).update(url=f"https://hangs-{n}.example/hook")
        name_server.hangs(*(f"hangs-{n}.example" for n in range(40)))
        tell(acme)
        make_webhook("/globex", workspace=globex)
        tell(globex)
        seen = []
        monkeypatch = pytest.MonkeyPatch()
        monkeypatch.setattr(names, "SECONDS_MAX", 0.5)
        real = sending.Sender.send

        async def send(self, job):
            outcome = await real(self, job)
            seen.append(job.workspace_id)
            return outcome

        monkeypatch.setattr(sending.Sender, "send", send)
        engine.deliver_all()
        monkeypatch.undo()

        assert seen[0] == globex.pk
        assert len(seen) == 41
