"""Sentences that are written before it is known who reads them."""

from __future__ import annotations

import json

import pytest
from django.utils import translation

from gateway_project.core import errors
from gateway_project.core.sentences import Sentence
from portal import labels
from webhooks.receiving import inbox
from webhooks.receiving.debugger import Verdict

OLD = Sentence("the old secret that signs until %(at)s", at="2026-05-01 12:00 UTC")
SENTENCES = [
    (Sentence("Saved."), "Saved.", "Gespeichert."),
    (Sentence("%(number)s minutes", number="5"), "5 minutes", "5 Minuten"),
    (
        Sentence("The allow list has %(most)s texts. Take one off first.", most=1000),
        "The allow list has 1,000 texts. Take one off first.",
        "Die Zulassungsliste hat 1.000 Texte. Nehmen Sie zuerst einen herunter.",
    ),
    (
        Sentence("But for that it fits %(secret)s.", secret=OLD),
        "But for that it fits the old secret that signs until 2026-05-01 12:00 UTC.",
        "Davon abgesehen passt es: das alte Geheimnis, das bis 2026-05-01 12:00 UTC signiert.",
    ),
    (Sentence("Nobody knows it, 80 %."), "Nobody knows it, 80 %.", "Nobody knows it, 80 %."),
    (Sentence(""), "", ""),
]


@pytest.mark.parametrize(
    ("sentence", "english", "german"), SENTENCES, ids=lambda one: str(one)[:20]
)
def test_it_is_english_for_programs_and_said_to_people(sentence, english, german):
    kept = Sentence.unpacked(json.loads(json.dumps(sentence.packed())))
    for one in (sentence, kept):
        assert (str(one), one.translated()) == (english, english)
        with translation.override("de"):
            assert (str(one), one.translated()) == (english, german)


def test_facts_are_no_templates():
    named = Sentence("%(email)s is invited. The link works for seven days.", email="%(email)s {}%")

    assert named.translated() == "%(email)s {}% is invited. The link works for seven days."


@pytest.mark.parametrize("kind", sorted(errors.registered()))
def test_a_refusal_is_said_in_german_and_answered_in_english(kind):
    try:
        refusal = errors.registered()[kind]()
    except TypeError:
        pytest.skip("made with more than its words")
    english = str(refusal.detail)
    with translation.override("de"):
        body = json.loads(errors.problem(refusal, instance="/", request_id="x"))
        assert str(refusal.detail) == body["detail"] == english
        assert refusal.for_people() != english


def test_what_an_inbox_found_is_said_to_who_looks_at_it(gateway, acme):
    found = inbox.of(acme)
    with translation.override("de"):  # whatever the sender speaks
        inbox.receive(found.pk, {"accept-language": "de"}, b"{}")

    [got] = inbox.received(found)
    assert got.findings[0][1]["text"].startswith("No webhook sends here")
    assert inbox.findings_of(got)[0][1].startswith("No webhook sends here")
    with translation.override("de"):
        assert inbox.findings_of(got) == [
            ("warn", "Kein Webhook sendet hierher, also gibt es kein Geheimnis zum Prüfen.")
        ]
    got.findings = [["good", "A sentence of an older version."]]
    assert inbox.findings_of(got) == [("good", "A sentence of an older version.")]


def test_what_no_store_takes_is_left_out_of_a_finding(gateway, acme):
    verdict = Verdict()
    verdict.add(
        "bad", "“%(text)s” is no v1 signature: it must read “v1,” and then base64.", text="\x00"
    )

    assert "\x00" not in str(inbox.kept(verdict.findings[0].sentence))


@pytest.mark.parametrize(
    ("fault", "german"),
    [
        ("no answer within 15 s", "keine Antwort binnen 15 s"),
        ("no answer within 0.2 s", "keine Antwort binnen 0.2 s"),
        ("no TLS connection could be made", "es kam keine TLS-Verbindung zustande"),
        ("HTTP 500", "HTTP 500"),
        ("", ""),
    ],
)
def test_what_went_wrong_with_a_delivery(fault, german):
    assert labels.fault(fault) == fault
    with translation.override("de"):
        assert labels.fault(fault) == german
