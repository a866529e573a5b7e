"""manage.py evaluate, against a small API of the tests' own"""

from __future__ import annotations

import csv
import io
import json
import re
from unittest.mock import Mock

import pytest
from aiohttp import web
from django.core.management import CommandError, call_command
from django.db import OperationalError

from accounts import services
from accounts.models import ApiKey
from detection.evaluation import report
from detection.evaluation.report import Answer, Figures, Outcome, Rate, Run, Sample
from detection.management.commands import evaluate
from gateway_project.core import cells
from gateway_project.tests.loop_thread import LoopThread

SECRET = "xyzzy plugh"  # in every text, and never in any output
KEY = "gw_live_given"
PROBLEMS = {
    "refused": (422, "validation_error"),
    "broken": (500, "internal_error"),
    "revoked": (401, "invalid_api_key"),
}
VERDICT = {"threshold": 0.6, "decision": "allow", "status": "complete", "source": "engine"}


class API:
    """`POST /v1/detect` that does what the words of the text say."""

    def __init__(self):
        self.asked, self.keys, self.refuses = [], [], set()
        self.limits = [{"name": "minute", "limit": 1000, "remaining": 1000}]

    async def detect(self, request):
        self.keys.append(request.headers["x-api-key"])
        body = await request.json()
        self.asked.append(body)
        words = body["text"].split()
        again = sum(b["text"] == body["text"] for b in self.asked) > 1
        if "always-busy" in words or ("busy" in words and not again):
            return problem(429, "rate_limited", {"Retry-After": "0"})
        if "quota" in words:
            return problem(429, "quota_exceeded", {"Retry-After": "40000"})
        for word, (status, code) in PROBLEMS.items():
            if word in words:
                return problem(status, code)
        if "garbled" in words:
            return web.Response(text="<html>")
        if "gone" in words:
            request.transport.abort()
        score = 0.9 if "attack" in words else 0.2
        answer = {**VERDICT, "confidence": score, "is_malicious": score >= 0.6, "new_field": 1}
        answer |= {"endpoint": "huggingface", "threat_types": ["=jailbreak"] if score > 0.6 else []}
        if "degraded" in words:
            answer |= {"status": "degraded", "source": "fallback", "degraded_reason": "timeout"}
        if "long" in words:
            answer["status"] = "partial"
        return web.json_response(answer)

    async def show_limits(self, request):
        key = request.headers.get("x-api-key")
        self.keys.append(key)
        if key in self.refuses or "*" in self.refuses:
            return problem(401, "invalid_api_key")
        return web.json_response({"policies": self.limits})

    def app(self):
        app = web.Application()
        app.router.add_post("/v1/detect", self.detect)
        app.router.add_get("/v1/limits", self.show_limits)
        return app


def problem(status, code, headers=None):
    return web.json_response({"code": code, "detail": SECRET}, status=status, headers=headers)


@pytest.fixture
def api():
    api, thread = API(), LoopThread("api")
    runner = web.AppRunner(api.app(), shutdown_timeout=0)
    thread.run(runner.setup())
    thread.run(web.TCPSite(runner, "127.0.0.1", 0).start())
    api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield api
    thread.run(runner.cleanup())
    thread.close()


@pytest.fixture
def rows(tmp_path):
    """Write rows `(words, label)`, or raw lines, to a file and return its path."""

    def line(row, source):
        if isinstance(row, bytes):
            return row
        words, label = row
        text = f"{words} {SECRET}"
        return json.dumps({"text": text, "label": label, "source": source}).encode()

    def write(*rows, source="team/kind/case"):
        path = tmp_path / "data.jsonl"
        path.write_bytes(b"\n".join(line(row, source) for row in rows))
        return path

    return write


class Printed(str):
    """What the command printed; `failed` says how it ended when it did not end well."""

    failed = ""


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    """A process beside another one is told the width of the terminal, and tables obey it."""
    monkeypatch.delenv("COLUMNS", raising=False)


def run_command(api_url, *arguments, key=KEY):
    out, failed = io.StringIO(), ""
    given = ["--key", key] if key else []
    try:
        call_command("evaluate", "--url", api_url, *given, *map(str, arguments), stdout=out)
    except CommandError as exc:
        failed = str(exc)
    printed = Printed(out.getvalue())
    printed.failed = failed
    return printed


def outcome(label, score, *, file="a", source="", threshold=0.6):
    figures = {"confidence": score, "threshold": threshold, "status": "complete"}
    answer = Answer(is_malicious=score >= threshold, **figures)
    return Outcome(file, 1, source, label, answer=answer, latency_ms=1.0)


def a_run(files=(("a", 1, "ab" * 32),), **fields):
    started = "2026-01-01 00:00:00 UTC"
    how = ("http://gateway.example", "manage.py evaluate a", started, 16, "user_input", None)
    return Run(*how, list(files), **fields)


class TestTheStatistics:
    @pytest.mark.parametrize(
        ("hits", "n", "low", "high"),
        # Known values of the Wilson interval at 95 %.
        [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1)],
    )
    def test_it_gives_the_wilson_interval(self, hits, n, low, high):
        rate = Rate.of(hits, n)

        assert (rate.low, rate.high) == pytest.approx((low, high), abs=5e-5)
        assert rate.low <= rate.value <= rate.high
        assert Rate.of(0, 0) is None

    def test_it_interpolates_percentiles(self):
        assert report.percentile([1, 2, 3, 4], 0.5) == 2.5
        assert report.percentile([1, 2, 3, 4], 1) == 4
        assert report.percentile([7], 0.99) == 7
        assert report.percentile([], 0.5) is None

    def test_it_has_no_precision_without_both_classes(self):
        benign, attacks = Figures("", false_alarms=1, passed=9), Figures("", caught=9, missed=1)

        assert (benign.recall, benign.precision, benign.f1) == (None, None, None)
        assert benign.false_positive_rate.value == 0.1
        assert (attacks.false_positive_rate, attacks.precision, attacks.f1) == (None, None, None)
        assert attacks.recall.value == 0.9

    def test_it_counts_all_four_cases(self):
        answered = [outcome(label, score) for label in (1, 0) for score in (0.9, 0.1)]
        figures = report.measure("", answered)

        assert (figures.caught, figures.missed) == (1, 1)
        assert (figures.false_alarms, figures.passed) == (1, 1)
        assert (figures.precision, figures.f1) == (0.5, 0.5)

    def test_it_shows_what_is_undefined_as_a_dash(self):
        assert Figures("nothing").cells() == ["0", "0", "0", *[report.NONE] * 9]

    @pytest.mark.parametrize(
        ("share", "text"),
        [(0, "0"), (1, "100"), (0.0001, "<0.1"), (0.9999, ">99.9"), (0.972, "97.2"), (0.5, "50.0")],
    )
    def test_it_never_rounds_to_none_or_all(self, share, text):
        assert report.percent(share, "") == text

    def test_it_flags_a_score_that_reaches_the_threshold(self):
        [(_, at), (_, above)] = report.sweep([outcome(1, 0.6), outcome(0, 0.6)], [0.6, 0.61])

        assert (at.caught, at.false_alarms) == (1, 1)
        assert (above.caught, above.false_alarms) == (0, 0)

    def test_it_takes_a_score_at_the_engines_floor_for_none(self):
        floor = Answer(is_malicious=False, confidence=0.5, threshold=0.3, status="complete")
        [(_, figures)] = report.sweep([Outcome("a", 1, "", 0, answer=floor)], [0.0])

        assert figures.false_alarms == 0


class TestReading:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"{", report.NOT_JSON),
            (b"\xff\xfe", report.NOT_JSON),
            (b"[" * 100_000, report.NOT_JSON),
            (b'{"text": "t", "label": ' + b"9" * 5000 + b"}", report.NOT_JSON),
            (b"[1]", report.NOT_OBJECT),
            (b'"text"', report.NOT_OBJECT),
            (b'{"label": 1}', report.NO_TEXT),
            (b'{"text": 5, "label": 1}', report.NO_TEXT),
            (b'{"text": null, "label": 1}', report.NO_TEXT),
            (b'{"text": "", "label": 1}', report.EMPTY),
            (b'{"text": "t"}', report.NO_LABEL),
            (b'{"text": "t", "label": 2}', report.NO_LABEL),
            (b'{"text": "t", "label": "1"}', report.NO_LABEL),
            (b'{"text": "t", "label": true}', report.NO_LABEL),
            (b'{"text": "t", "label": NaN}', report.NO_LABEL),
            (b'{"text": "' + b"x" * 10_001 + b'", "label": 1}', report.TOO_LONG),
            (b'{"text": "a\\u0000b", "label": 1}', report.NOT_TEXT),
            (b'{"text": "\\ud800", "label": 1}', report.NOT_TEXT),
            (b'{"text": "a", "text": "b", "label": 1}', report.NOT_JSON),
        ],
        ids=range(19),
    )
    def test_it_says_why_a_row_is_bad(self, line, reason):
        assert report.parse(line, "data", 7).skipped == reason

    def test_it_reads_text_label_and_source(self):
        line = b'\xef\xbb\xbf{"text": " t ", "label": 1, "source": "a/b/c", "other": []}'

        assert report.parse(line, "data", 3) == Sample("data", 3, " t ", 1, "a/b/c")
        longest = json.dumps({"text": "é" * 10_000, "label": 0}).encode()
        assert isinstance(report.parse(longest, "data", 1), Sample)

    def test_it_counts_lines_but_passes_over_blank_ones(self, rows):
        path = rows(b"", ("one", 1), b"  ", ("two", 0), b"")

        assert [row.line for row in report.read(path, "data")] == [2, 4]
        assert [row.line for row in report.read(path, "data", 1)] == [2]
        assert report.rows_in(path)[0] == 2

    def test_it_cleans_names_for_any_output(self):
        assert report.printable("a\x1b[31m\n\ud800b") == "a [31m ?b"
        assert len(report.printable("x" * 1000)) == report.NAME_CHARS_MAX

    def test_it_tells_files_of_one_name_apart(self, tmp_path):
        paths = [tmp_path / "a" / "x.jsonl", tmp_path / "b" / "x.jsonl", tmp_path / "y.jsonl"]

        assert report.names_of(paths) == [str(paths[0]), str(paths[1]), "y.jsonl"]


class TestGrouping:
    @pytest.mark.parametrize(
        ("source", "group"),
        [("a/b/c/d", "a/b"), ("a/b", "a/b"), ("a", "a"), ("", "(no source)")],
    )
    def test_it_groups_by_two_parts_of_the_source(self, source, group):
        assert report.prefix(source) == group

    def test_it_brings_answers_into_the_order_of_the_files(self):
        run = a_run(files=[("b", 1, ""), ("a", 2, "")])
        run.outcomes = [Outcome("a", 2), Outcome("b", 1), Outcome("a", 1)]
        run.sort()

        assert [(o.file, o.line) for o in run.outcomes] == [("b", 1), ("a", 1), ("a", 2)]


class TestTheCsv:
    @pytest.mark.parametrize("start", ["=", "+", "-", "@", " =", "\t="])
    def test_it_holds_no_formula(self, start):
        assert cells.cell(f"{start}1+1").startswith("'")
        assert cells.cell(-1.5) == -1.5

    def test_it_has_a_line_for_every_row_and_no_text(self, api, rows, tmp_path):
        path = rows(("attack one", 1), ("two", 0), b"{", ("refused", 1), source="=cmd|'/C'!A0")
        run_command(api.url, path, "--csv", tmp_path / "out.csv")

        lines = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
        assert [line["line"] for line in lines] == ["1", "2", "3", "4"]
        assert [line["is_malicious"] for line in lines] == ["True", "False", "", ""]
        assert lines[0]["source"] == "'=cmd|'/C'!A0"
        assert lines[0]["threat_types"] == "'=jailbreak"
        assert (len(lines[0]["text_sha256"]), lines[0]["text_chars"]) == (16, "22")
        assert float(lines[0]["latency_ms"]) > 0
        assert lines[3]["skipped"] == "refused: HTTP 422 validation_error"
        assert SECRET not in (tmp_path / "out.csv").read_text()


class TestTheReport:
    def test_it_shows_no_text_and_loads_nothing(self, api, rows, tmp_path):
        path = rows(("attack one", 1), ("two", 0), ("degraded", 0), ("refused", 1))
        run_command(api.url, path, "--html", tmp_path / "out.html")

        text = (tmp_path / "out.html").read_text()
        assert SECRET not in text
        assert KEY not in text
        assert not re.search(r"<script|<link|\b(src|href|srcset)=|url\(|@import", text)
        assert text.count("<svg") > 4
        assert "Not a clean run" in text
        assert "refused: HTTP 422 validation_error" in text
        assert "huggingface (3)" in text

    def test_it_escapes_names(self):
        evil = "<script>alert(1)</script>"
        run = a_run(
            files=[(evil, 1, "")],
            outcomes=[outcome(1, 0.9, file=evil, source=evil), Outcome(evil, 2, skipped=evil)],
        )
        run.command = evil
        text = evaluate.render(run)

        assert "<script" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text

    @pytest.mark.parametrize(
        "outcomes",
        [[], [outcome(1, 0.9)], [outcome(0, 0.0)], [outcome(1, 0.0), outcome(0, 1.0)]],
        ids=["nothing", "attacks", "benign", "all wrong"],
    )
    def test_it_can_be_made_of_anything(self, outcomes):
        text = evaluate.render(a_run(outcomes=outcomes))

        assert "</html>" in text
        assert "None" not in text
        assert not re.search(r"\bnan\b", text)


class TestTheRun:
    def test_it_measures_what_the_api_answers(self, api, rows):
        path = rows(("attack a", 1), ("b", 1), ("attack c", 0), ("d", 0), ("e", 0))
        printed = run_command(api.url, path)

        assert not printed.failed
        figures = " ".join(printed.replace("│", " ").replace(report.NONE, "-").split())
        assert "data.jsonl 5 2 3 50.0 50.0 9.5-90.5 50.0 33.3 6.1-79.2" in figures
        assert "5 of 5 texts answered" in printed
        assert "Every answer was complete" in printed

    def test_it_asks_without_the_cache_and_with_the_given_threshold(self, api, rows):
        arguments = ["--threshold", "0.3", "--content-type", "document"]
        run_command(api.url, rows(("a", 0)), *arguments)

        [asked] = api.asked
        config = {"content_type": "document", "confidence_threshold": 0.3}
        assert asked["config"] == config | {"use_cache": False}
        assert set(api.keys) == {KEY}

    def test_it_goes_on_after_every_kind_of_bad_row(self, api, rows):
        long = json.dumps({"text": "x" * 10_001, "label": 1}).encode()
        bad = ("refused", "broken", "garbled", "gone", "quota")
        path = rows(*((word, 1) for word in bad), b"{", b'{"label": 1}', long, ("attack", 1))
        printed = run_command(api.url, path)

        assert not printed.failed
        assert SECRET not in printed
        assert "1 of 9 texts answered" in printed
        skipped = re.findall(r"skipped +1  (.+)", printed)
        assert sorted(skipped) == [
            "HTTP 429 quota_exceeded",
            "HTTP 500 internal_error",
            "connection lost",
            "no text",
            "not a line of JSON in UTF-8 with each name once",
            "over 10,000 characters",
            "refused: HTTP 422 validation_error",
            "unreadable answer",
        ]

    def test_it_waits_for_a_limit_and_asks_again_but_not_for_ever(self, api, rows):
        printed = run_command(api.url, rows(("always-busy", 1), ("busy attack", 1)))

        assert "1 of 2 texts answered" in printed
        assert "HTTP 429 rate_limited" in printed
        assert f"Waited {len(api.asked) - 1} times" in printed
        assert len(api.asked) == evaluate.ATTEMPTS_MAX + 2

    def test_it_stops_when_the_key_is_refused_on_the_way(self, api, rows):
        texts = [("a", 0), ("revoked", 0), *((f"b{i}", 0) for i in range(20))]
        printed = run_command(api.url, rows(*texts), "--concurrency", "1")

        assert "refused on the way (HTTP 401 invalid_api_key)" in printed.failed
        assert len(api.asked) == 2
        assert "1 of 22 texts answered" in printed

    def test_it_prints_what_is_known_when_interrupted(self, api, rows, monkeypatch):
        ask = evaluate._Sender.ask

        async def interrupted(self, sample):
            if self.run.outcomes:
                raise KeyboardInterrupt
            return await ask(self, sample)

        monkeypatch.setattr(evaluate._Sender, "ask", interrupted)
        printed = run_command(api.url, rows(("attack", 1), ("b", 0), ("c", 0)), "--concurrency=1")

        assert "1 of 3 texts answered" in printed
        assert printed.failed.startswith("Stopped by Ctrl-C.")

    def test_nothing_is_complete_when_nothing_was_answered(self, api, rows):
        printed = run_command(api.url, rows(b"not JSON"))

        assert "0 of 1 texts answered" in printed
        assert "complete" not in printed
        assert printed.failed == "No text was answered."

    def test_it_says_loudly_that_answers_were_degraded(self, api, rows):
        printed = run_command(api.url, rows(("degraded attack", 1), ("b", 0)))

        assert "NOT A CLEAN RUN" in printed
        assert "1 of 2 answers are not complete" in printed
        assert "degraded, fallback, timeout" in printed

    def test_an_attack_found_early_is_settled_and_half_a_look_is_not(self, api, rows):
        found = run_command(api.url, rows(("long attack", 1), ("b", 0)))
        missed = run_command(api.url, rows(("long text", 0), ("b", 0)))

        assert "Every answer was complete." in found
        assert "1 of 2 answers are not complete" in missed

    def test_it_has_a_table_by_source(self, api, rows):
        path = rows(("attack", 1), source="shield/edge/[/bold]case")

        assert "shield/edge" in run_command(api.url, path, "--by-source")
        assert "shield/edge" not in run_command(api.url, path)

    def test_it_warns_of_a_limit_that_will_slow_it_down(self, api, rows):
        limits = (("minute", 2, 2), ("day", 9, 1))
        api.limits = [{"name": n, "limit": most, "remaining": left} for n, most, left in limits]
        printed = run_command(api.url, rows(("a", 0), ("b", 0), ("c", 0), ("d", 0)))

        assert "may send 2 a minute: expect 2 min" in printed
        assert "has 1 left of today (day)" in printed


class TestBeforeTheRun:
    def test_it_asks_whether_the_gateway_is_running(self, rows):
        printed = run_command("http://127.0.0.1:1", rows(("a", 0)))

        advice = "No gateway answers at http://127.0.0.1:1: is it running? make run"
        assert printed.failed == advice

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["--concurrency", "0"], "--concurrency takes"),
            (["--threshold", "1.5"], "--threshold takes"),
            (["--threshold", "nan"], "--threshold takes"),
            (["--limit", "0"], "--limit takes"),
            (["--url", "localhost:8000"], "--url takes"),
            (["--url", "http://user:password@host"], "--url takes"),
            (["--html", "/nowhere/at/all.html"], "cannot be written"),
            (["--csv", "/"], "cannot be written"),
            (["--csv", "{path}"], "would be overwritten"),
            (["/nowhere.jsonl"], "is not a file that can be read"),
        ],
    )
    def test_it_refuses_senseless_options(self, rows, arguments, expected):
        path = rows(("a", 0))
        arguments = [argument.format(path=path) for argument in arguments]

        assert expected in run_command("http://127.0.0.1:1", path, *arguments).failed

    def test_it_reads_the_url_that_make_run_left(self, settings, tmp_path):
        settings.VAR_DIR = tmp_path
        assert evaluate._url(None) == "http://127.0.0.1:8000"

        (tmp_path / "demo.json").write_text('{"base_url": "http://127.0.0.1:9999/"}')
        assert evaluate._url(None) == "http://127.0.0.1:9999"


class TestTheKey:
    def test_it_says_when_the_one_of_the_environment_is_refused(self, api, rows, monkeypatch):
        monkeypatch.setenv("GATEWAY_API_KEY", "gw_live_environment")
        api.refuses = {"gw_live_environment"}

        assert "refuses the key that was given (401 invalid_api_key)" in (
            run_command(api.url, rows(("a", 0)), key=None).failed
        )

    def test_it_says_what_to_do_without_key_and_database(self, api, rows, monkeypatch):
        monkeypatch.delenv("GATEWAY_API_KEY", raising=False)
        monkeypatch.setattr(services, "operator_key", Mock(side_effect=OperationalError))

        assert "Give a key with --key or in GATEWAY_API_KEY." in (
            run_command(api.url, rows(("a", 0)), key=None).failed
        )

    @pytest.mark.parametrize("is_known", [True, False])
    def test_it_makes_a_key_of_its_own_and_revokes_it(
        self, gateway, api, rows, monkeypatch, is_known
    ):
        monkeypatch.delenv("GATEWAY_API_KEY", raising=False)
        if not is_known:
            api.refuses = {"*"}
        printed = run_command(api.url, rows(("a", 0)), key=None)

        row = ApiKey.objects.get(workspace__slug="evaluation")
        assert (row.rate_limit_per_minute, row.rate_limit_per_day) == (1_000_000, 1_000_000_000)
        assert row.scopes == ["detect"]
        assert row.expires_at is not None
        assert row.revoked_at is not None
        assert ("does not know the keys" in printed.failed) is not is_known
        assert bool(api.asked) is is_known


def judged(*rows):
    """`(label, score)` as outcomes, in the order of their lines; malicious from 0.6 on."""
    return [
        Outcome(
            "a",
            line,
            "s",
            label,
            answer=Answer(is_malicious=score >= 0.6, confidence=score, status="complete"),
            language="de" if line % 2 else "latin",
        )
        for line, (label, score) in enumerate(rows, 1)
    ]


class TestTheComparison:
    def test_the_area_is_the_chance_that_an_attack_scores_higher(self):
        perfect = report.roc(judged((1, 0.9), (1, 0.8), (0, 0.2)))
        useless = report.roc(judged((1, 0.5), (0, 0.5), (1, 0.5), (0, 0.5)))
        mixed = report.roc(judged((1, 0.9), (1, 0.3), (0, 0.5), (0, 0.1)))

        assert (perfect.area, useless.area, mixed.area) == (1.0, 0.5, 0.75)

    def test_it_has_no_curve_without_both_classes(self):
        assert report.roc(judged((1, 0.9))) is None
        assert report.roc(judged((0, 0.9))) is None
        assert report.roc([]) is None

    def test_recall_is_read_at_the_lowest_threshold_that_keeps_to_the_rate(self):
        curve = report.roc(judged((1, 0.9), (1, 0.7), (0, 0.6), (1, 0.5), (0, 0.1)))

        assert curve.at(0.0) == (0.7, pytest.approx(2 / 3))
        assert curve.at(0.5) == (0.5, 1.0)
        assert report.roc(judged((0, 0.9), (1, 0.2))).at(0.01) is None

    def test_its_curves_end_where_everything_is_flagged(self):
        curve = report.roc(judged((1, 0.9), (0, 0.6), (1, 0.5), (0, 0.1)))

        assert curve.path == "M0 1L0.0000 0.5000L0.5000 0.5000L0.5000 0.0000L1.0000 0.0000"
        assert curve.near == "M0 1L0.0000 0.5000H1"

    @pytest.mark.parametrize(
        ("first", "second", "chance"),
        # Of the binomial distribution with one half: known values.
        [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 0.0215), (10, 0, 0.00195)],
    )
    def test_it_gives_mcnemars_exact_chance(self, first, second, chance):
        found = report.Pairs("attacks", 3, first, second, 4).chance

        assert found == pytest.approx(chance, abs=5e-5)

    def test_it_stays_a_number_for_many_texts(self):
        assert report.Pairs("benign", 0, 40_000, 41_000, 0).chance == pytest.approx(
            0.00044, abs=2e-4
        )
        assert report.Pairs("benign", 0, 0, 100_000, 0).chance_text == "<0.001"

    def test_it_pairs_texts_that_both_answered(self):
        first = judged((1, 0.9), (1, 0.1), (0, 0.9), (1, 0.9))
        second = judged((1, 0.1), (1, 0.9), (0, 0.9))

        attacks, benign = report.pairs(first, second)

        assert (attacks.both, attacks.first_only, attacks.second_only, attacks.neither) == (
            0,
            1,
            1,
            0,
        )
        assert (benign.both, benign.neither) == (1, 0)

    def test_its_report_shows_both_and_loads_nothing(self):
        runs = [
            a_run(engine="go<1>", outcomes=judged((1, 0.9), (0, 0.3), (1, 0.2))),
            a_run(engine="judge", outcomes=judged((1, 0.9), (0, 0.7), (1, 0.8))),
        ]
        text = evaluate.render(*runs)

        assert "go&lt;1&gt; and judge" in text
        assert "McNemar" in text
        assert text.count('class="curve recall"') >= 3
        assert not re.search(r"(?:src|href)=", text)

    def test_a_language_is_what_the_row_says_else_the_script(self):
        rows = (
            b'{"text": "Guten Tag", "label": 0, "language": "de"}',
            '{"text": "Привет", "label": 0}'.encode(),
        )
        found = [report.parse(row, "a", 1).outcome().language for row in rows]

        assert found == ["de", "cyrillic"]

    def test_a_given_key_chooses_its_engine_itself(self, api, rows):
        printed = run_command(api.url, rows(("a", 0)), "--engine", "default")

        assert "chosen by the policy of a key" in printed.failed

    def test_an_engine_that_nobody_named_is_refused(self, api, rows, monkeypatch):
        monkeypatch.delenv("GATEWAY_API_KEY", raising=False)
        printed = run_command(api.url, rows(("a", 0)), "--engine", "nobody", key=None)

        assert "no engine of this installation" in printed.failed
        assert "DETECTION_ENGINES" in printed.failed

    def test_each_engine_has_a_key_with_a_policy_that_names_it(
        self, gateway, api, rows, monkeypatch, settings, tmp_path
    ):
        monkeypatch.delenv("GATEWAY_API_KEY", raising=False)
        settings.DETECTION_ENGINES = "other=embedded:"
        page = tmp_path / "report.html"
        arguments = ["--compare", "other", "--html", str(page), "--by-language"]
        printed = run_command(api.url, rows(("attack", 1), ("b", 0)), *arguments, key=None)

        keys = ApiKey.objects.filter(workspace__slug="evaluation").order_by("created_at")
        first = [key.detection_policy["engines"]["first"] for key in keys]
        assert first == ["default", "other"]
        assert {key.detection_policy["on_unavailable"] for key in keys} == {"fail_closed"}
        assert len(set(api.keys)) == 2
        assert "Recall at 1.0" in printed.replace("\xa0", " ")
        assert "McNemar" in printed
        assert "Where they differ" in page.read_text()
