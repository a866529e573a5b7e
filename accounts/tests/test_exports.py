"""Files of the log that are written behind: complete, once, told of, and nobody else's."""

from __future__ import annotations

import gzip
import json
from datetime import timedelta

import pytest
from django.core import mail

from accounts import retention, services
from accounts.models import LogExport, new_id
from accounts.tests.shapes import logged
from accounts.usage import exports
from gateway_project.core import clock, errors

ACTOR = services.Actor("dana@acme.example")
BASE = "https://gateway.example/app/requests/files/"


@pytest.fixture
def add(acme, acme_key):
    def add(count=1, **fields):
        for number in range(count):
            row = {
                "request_id": new_id(),
                "api_key_id": acme_key.row.pk,
                "workspace_id": acme.pk,
                "endpoint": "/v1/detect",
                "http_status": 200,
                "request_size": 1,
                "response_time_ms": 1.0,
                "created_at": clock.now() - timedelta(seconds=number + 1),
            }
            logged(row | fields)

    return add


def asked(workspace, **conditions):
    return exports.ask(workspace, conditions, BASE, by="dana@acme.example", actor=ACTOR)


def rows_of(export):
    export.refresh_from_db()
    content = gzip.decompress(b"".join(exports.pieces(export)))
    return [json.loads(line) for line in content.splitlines()]


def test_it_is_whole_and_mailed_about_once(add, acme, globex, monkeypatch):
    monkeypatch.setattr(exports, "ROWS_A_PART", 7)
    add(20)
    add(3, workspace_id=globex.pk)
    export = asked(acme)
    add(2, created_at=clock.now() + timedelta(seconds=1))  # after it was asked for
    mail.outbox.clear()

    for _ in range(3):
        exports.work()

    rows = rows_of(export)
    assert len({row["request_id"] for row in rows}) == len(rows) == 20
    assert (export.rows, export.parts) == (20, 3)
    [message] = mail.outbox
    assert message.to == ["dana@acme.example"]
    assert f"{BASE}{export.pk}" in message.body


def test_filters_hold(add, acme, acme_key):
    add(3, http_status=422)
    add(2)
    export = asked(acme, statuses=range(400, 500), api_key_id=acme_key.row.pk)

    exports.work()

    assert {row["http_status"] for row in rows_of(export)} == {422}
    assert export.rows == 3


def test_a_worker_that_dies_costs_no_row(add, acme, monkeypatch):
    monkeypatch.setattr(exports, "ROWS_A_PART", 5)
    add(12)
    export = asked(acme)
    exports._write_part(export.pk)
    write, calls = exports.line_of, []

    def fail(row):
        calls.append(row)
        if len(calls) == 3:
            raise MemoryError
        return write(row)

    monkeypatch.setattr(exports, "line_of", fail)
    with pytest.raises(MemoryError):
        exports._write_part(export.pk)
    monkeypatch.setattr(exports, "line_of", write)
    exports.work()

    assert len({row["request_id"] for row in rows_of(export)}) == 12


def test_a_mail_server_that_is_away_is_asked_again(add, acme, monkeypatch):
    add(1)
    export = asked(acme)

    def fail(self, messages):
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr("gateway_project.tests.waiting.Mail.send_messages", fail)
        exports.work()
    export.refresh_from_db()
    assert export.finished_at is not None
    assert export.told_at is None
    mail.outbox.clear()

    exports.work()
    assert len(mail.outbox) == 1


@pytest.mark.hostile
def test_one_at_a_time_and_an_end_to_them(add, acme, monkeypatch):
    add(1)
    asked(acme)
    with pytest.raises(errors.Conflict):
        asked(acme)
    exports.work()
    monkeypatch.setattr(exports, "KEPT_MAX", 1)

    with pytest.raises(errors.TooMany):
        asked(acme)


@pytest.mark.hostile
def test_a_file_has_an_end(add, acme, monkeypatch):
    monkeypatch.setattr(exports, "ROWS_A_PART", 5)
    monkeypatch.setattr(exports, "ROWS_MAX", 10)
    add(30)
    export = asked(acme)

    exports.work()

    assert len(rows_of(export)) == 10
    assert export.is_cut
    assert "It ends after 10 requests" in mail.outbox[-1].body


def test_it_goes_after_a_week(add, acme):
    add(1)
    asked(acme)
    exports.work()
    LogExport.objects.update(created_at=clock.now() - timedelta(days=8))

    retention.prune()

    assert not LogExport.objects.exists()
