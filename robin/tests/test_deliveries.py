"""What the log says of deliveries, in the words of the real Robin and of the stand-in."""

from __future__ import annotations

from datetime import UTC, datetime

from robin.logs import deliveries, parsing

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
ONE = "6f0c1a52-7c7e-4b1b-9a55-2d4b8b7f1e10"
TWO = "0b7f1e10-9a55-4b1b-7c7e-6f0c1a522d4b"
RANDOM = "11111111-2222-4333-8444-555555555555"
"""Robin's context holds the uid of a session that it made on the way, and not the one at hand."""


def line(second, thread, message, level="INFO", logger="queue.RelayDequeue"):
    return f"{level:5}|1129-1130{second:02}000|{thread}|{logger}|{RANDOM}|||{message}"


def begins(session, tries=0):
    return (
        f"Processing session: uid={session}, protocol=ESMTP, retryCount={tries}, envelopes=1, "
        "recipients=1"
    )


def ends(session, removed, remaining):
    return (
        f"Session processed: uid={session}, removedEnvelopes={removed}, "
        f"remainingEnvelopes={remaining}"
    )


def entries(*lines):
    text = "\n".join(lines).encode()
    return list(parsing.entries(text, now=NOW, zone=UTC))


LOG = entries(
    line(1, "t1", begins(ONE)),
    line(2, "t2", begins(TWO)),
    line(3, "t1", "Error: 451 4.3.2 try later", logger="smtp.EmailDelivery"),
    line(4, "t2", "Error: 550 5.1.1 No such user", logger="smtp.EmailDelivery"),
    line(5, "t1", ends(ONE, 0, 1)),
    line(6, "t2", ends(TWO, 0, 1)),
    line(7, "t2", f"Permanent 5xx failure, marking dead: uid={TWO}", "WARN"),
    line(8, "t1", "Something else went wrong", "WARN", "main.Server"),
    line(9, "t3", begins(ONE, 1)),
    line(10, "t3", ends(ONE, 1, 0)),
)


def test_each_try_with_what_the_other_side_said():
    tries = deliveries.tries_of(ONE, LOG)

    assert [(one.outcome, one.errors) for one in tries] == [
        ("failed", ["451 4.3.2 try later"]),
        ("delivered", []),
    ]
    assert tries[0].ended.second == 5
    assert deliveries.tries_of(TWO, LOG)[0].errors[0] == "550 5.1.1 No such user"


def test_a_try_that_has_not_ended_is_under_way():
    (running,) = deliveries.tries_of(ONE, LOG[:1])

    assert (running.outcome, running.ended) == ("under way", None)


def test_what_failed_last_by_session():
    found = deliveries.failures(LOG)

    # The first was delivered since; of the second the answer says more than that it is dead.
    assert {session: failure.text for session, failure in found.items()} == {
        TWO: "550 5.1.1 No such user"
    }
    assert deliveries.failures(LOG[:6])[ONE].text == "451 4.3.2 try later"


def test_a_line_that_names_its_session_needs_no_thread():
    failed = f"Delivery failed for session uid={ONE}: Connection refused"
    found = deliveries.failures(entries(line(1, "t9", failed, "ERROR")))

    assert "Connection refused" in found[ONE].text


def test_another_thread_of_that_name_is_not_taken_for_it():
    """A thread goes on with another session; what it says then is of that one."""
    log = entries(
        line(1, "t1", begins(ONE)),
        line(2, "t1", begins(TWO)),
        line(3, "t1", "Error: 421 4.3.2 no", logger="smtp.EmailDelivery"),
    )

    assert list(deliveries.failures(log)) == [TWO]
    assert deliveries.tries_of(ONE, log)[0].errors == []
