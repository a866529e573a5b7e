"""`manage.py evaluate FILE.jsonl…`: how well, and how fast, does the running gateway detect?"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shlex
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import IO, Any, cast, get_args

import aiohttp
import httpx
import orjson
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError
from django.template.loader import render_to_string
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from accounts import services
from accounts.models import ApiKey
from detection.content_types import ContentType
from detection.engines import registry
from detection.engines.addresses import DEFAULT
from detection.evaluation.report import (
    COLUMNS,
    NONE,
    RATES,
    Answer,
    Figures,
    Outcome,
    Run,
    Sample,
    bins,
    curves,
    latency_plot,
    names_of,
    pairs,
    percent,
    printable,
    read,
    rows_in,
    sweep,
)
from detection.policies import policy
from gateway_project.core import cells, clock
from gateway_project.core.stores import database

ACTOR = services.Actor("manage.py evaluate")
OWN_KEY_PER_MINUTE = 1_000_000
OWN_KEY_PER_DAY = 1_000_000_000
OWN_KEY_LIFE = timedelta(days=1)

ANSWER_SECONDS_MAX = 75.0  # the API's own longest budget is 60
ATTEMPTS_MAX = 10
WAIT_SECONDS_MAX = 120.0  # a minute limit frees places sooner; a day's quota is not waited for

CSV_FIELDS = (
    *("file", "line", "source", "label", "is_malicious", "confidence", "decision"),
    *("threat_types", "status", "latency_ms", "skipped", "text_sha256", "text_chars"),
    *("language", "engine"),
)
OPTIONS = (
    *("url", "engine", "compare", "concurrency", "threshold", "limit"),
    *("content_type", "html", "csv"),
)
CHOICES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # thresholds to choose from
SOURCES_SHOWN_MAX = 300


class Command(BaseCommand):
    help = "Send labelled texts through the running API and say how well it detects."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "files",
            nargs="+",
            type=Path,
            metavar="FILE.jsonl",
            help="text, label (1: attack), source",
        )
        parser.add_argument("--url", help="default: of var/demo.json, or http://127.0.0.1:8000")
        parser.add_argument(
            "--key",
            help="default: GATEWAY_API_KEY, or on the gateway's own machine a key for this run",
        )
        parser.add_argument("--engine", metavar="NAME", help="one of the settings; own key only")
        parser.add_argument("--compare", metavar="NAME", help="another one, for the same texts")
        parser.add_argument("--concurrency", type=int, default=16, metavar="N")
        parser.add_argument("--threshold", type=float, metavar="T", help="default: the policy's")
        parser.add_argument("--limit", type=int, metavar="N", help="the first N rows of each file")
        parser.add_argument("--content-type", default="user_input", choices=get_args(ContentType))
        parser.add_argument("--by-source", action="store_true", help="a table by source as well")
        parser.add_argument("--by-language", action="store_true", help="and one by language")
        parser.add_argument("--html", type=Path, metavar="FILE", help="write a report to look at")
        parser.add_argument("--csv", type=Path, metavar="FILE", help="write a line for every text")

    def handle(self, *args: Any, **options: Any) -> None:
        # Rich ends its own lines; Django's wrapper would add more.
        self.stdout.ending = ""
        console = Console(file=cast(IO[str], self.stdout), highlight=False)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = 132
        paths = _check(options)
        url = _url(options["url"])
        _require_running(url)
        given = options["key"] or os.environ.get("GATEWAY_API_KEY")
        engines = _engines(options, given)
        runs: list[Run] = []
        for engine in engines:
            runs.append(_measured(console, url, given, engine, paths, options))
            if runs[-1].stopped or not runs[-1].answered:
                break
        self._show(console, runs, options)

    def _show(self, console: Console, runs: list[Run], options: dict[str, Any]) -> None:
        for run in runs:
            if len(runs) > 1:
                console.print(f"\nEngine {run.engine}", style="bold", markup=False)
            _print(console, run, by_source=options["by_source"], by_language=options["by_language"])
        if len(runs) > 1:
            _print_comparison(console, *runs)
        if options["csv"]:
            with options["csv"].open("w", encoding="utf-8", newline="") as file:
                write_csv(file, runs)
            console.print(f"Every text: {options['csv']}", markup=False)
        if options["html"]:
            options["html"].write_text(render(*runs), encoding="utf-8")
            console.print(f"Report: {options['html']}", markup=False)
        run = runs[-1]
        if not run.answered:
            raise CommandError(f"No text was answered. {run.stopped}".strip())
        if run.stopped:
            raise CommandError(f"{run.stopped} The figures are of what was answered until then.")


# -- Options --------------------------------------------------------------------------------------


def _check(options: dict[str, Any]) -> list[Path]:
    """The files, each once. Raises on anything that would only fail after minutes of work."""
    if not 1 <= options["concurrency"] <= 1000:
        raise CommandError("--concurrency takes 1 to 1000 requests in flight.")
    if options["threshold"] is not None and not 0 <= options["threshold"] <= 1:
        raise CommandError("--threshold takes a number from 0 to 1.")
    if options["limit"] is not None and options["limit"] < 1:
        raise CommandError("--limit takes a number of rows, 1 or more.")
    paths = list({path.resolve(): path for path in options["files"]}.values())
    for path in paths:
        if not path.is_file() or not os.access(path, os.R_OK):
            raise CommandError(f"{path} is not a file that can be read.")
    for output in filter(None, (options["html"], options["csv"])):
        if output.resolve() in {path.resolve() for path in paths}:
            raise CommandError(f"{output} is one of the files to read; it would be overwritten.")
        place = output if output.exists() else output.parent
        if output.is_dir() or not place.exists() or not os.access(place, os.W_OK):
            raise CommandError(f"{output} cannot be written.")
    return paths


def _url(asked: str | None) -> str:
    """The gateway's base URL, without a slash at its end."""
    url = asked
    if url is None:
        try:
            url = str(json.loads((settings.VAR_DIR / "demo.json").read_text())["base_url"])
        except (OSError, ValueError, KeyError, TypeError):
            url = "http://127.0.0.1:8000"
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL()
    if parts.scheme not in ("http", "https") or not parts.host or parts.userinfo:
        raise CommandError("--url takes http://HOST[:PORT] or https://HOST[:PORT].")
    return url.rstrip("/")


def _command(options: dict[str, Any]) -> str:
    """The command as it can be repeated. The key stays out of it."""
    words = ["manage.py", "evaluate", *map(str, options["files"])]
    for name in OPTIONS:
        if options[name] is not None:
            words += [f"--{name.replace('_', '-')}", str(options[name])]
    words += [f"--by-{name}" for name in ("source", "language") if options[f"by_{name}"]]
    return printable(shlex.join(words), chars_max=2000)


def _measured(
    console: Console,
    url: str,
    given: str | None,
    engine: str,
    paths: list[Path],
    options: dict[str, Any],
) -> Run:
    """All texts of all files, judged by one engine."""
    run = Run(
        url=url,
        command=_command(options),
        started=clock.now().strftime("%Y-%m-%d %H:%M:%S UTC"),
        concurrency=options["concurrency"],
        content_type=options["content_type"],
        asked_threshold=options["threshold"],
        engine=engine,
        files=[],
    )
    names = names_of(paths)
    for path, name in zip(paths, names, strict=True):
        rows, digest = rows_in(path)
        run.files.append((name, min(rows, options["limit"] or rows), digest))
    with _key(url, given, engine) as key:
        _print_limits(console, url, key, run.rows)
        rows_of = (read(p, n, options["limit"]) for p, n in zip(paths, names, strict=True))
        _send(run, key, chain.from_iterable(rows_of))
    run.sort()
    return run


def _engines(options: dict[str, Any], given: str | None) -> list[str]:
    """Whom to ask, one after the other; empty: whom the key's policy says."""
    first, second = options["engine"], options["compare"]
    if first is None and second is None:
        return [""]
    if given:
        raise CommandError(
            "An engine is chosen by the policy of a key. Leave the key out (--key, "
            "GATEWAY_API_KEY) on the gateway's own machine, or give one whose policy names it."
        )
    asked = [first or DEFAULT, *([second] if second else [])]
    known = registry.configured()
    for name in asked:
        if name not in known:
            raise CommandError(
                f"{name} is no engine of this installation. It has: {', '.join(sorted(known))}. "
                "More are named in DETECTION_ENGINES."
            )
    if len(set(asked)) < len(asked):
        raise CommandError("--compare takes another engine than --engine.")
    return asked


# -- Reaching the gateway -------------------------------------------------------------------------


def _get(url: str, key: str = "") -> httpx.Response:
    database.let_go()
    headers = {"X-API-Key": key} if key else {}
    try:
        return httpx.get(url, headers=headers, timeout=10, trust_env=False)
    except (httpx.HTTPError, UnicodeEncodeError, ValueError) as exc:
        raise CommandError(f"{url} did not answer ({type(exc).__name__}).") from exc


def _require_running(url: str) -> None:
    try:
        _get(f"{url}/health/live")
    except CommandError as exc:
        raise CommandError(f"No gateway answers at {url}: is it running? make run") from exc


def _refusal(response: httpx.Response) -> str:
    """Why a key is refused: `401 invalid_api_key`; empty when it is accepted."""
    if response.status_code == 200:
        return ""
    return f"{response.status_code} {_code(response.content)}".strip()


def _code(body: bytes) -> str:
    """The stable code of a problem. Its detail might quote the text, so it is not used."""
    try:
        return printable(str(orjson.loads(body)["code"]), chars_max=40)
    except (ValueError, KeyError, TypeError):
        return ""


@contextmanager
def _key(url: str, given: str | None, engine: str) -> Iterator[str]:
    """The key to send: a given one, or one of our own, revoked at the end. Its policy names the
    engine, and nobody else answers for it."""
    if given:
        if refusal := _refusal(_get(f"{url}/v1/limits", given)):
            raise CommandError(f"{url} refuses the key that was given ({refusal}).")
        yield given
        return
    advice = "Give a key with --key or in GATEWAY_API_KEY."
    try:
        text = services.operator_key(
            "evaluation",
            name="manage.py evaluate",
            scopes=["detect"],
            per_minute=OWN_KEY_PER_MINUTE,
            per_day=OWN_KEY_PER_DAY,
            actor=ACTOR,
        )
        row = ApiKey.objects.get(key_hash=settings.KEY_PEPPERS.digest(text))
    except DatabaseError as exc:
        raise CommandError(
            f"No key was given, and none can be made: the gateway's database is away. {advice}"
        ) from exc
    try:
        # Should this process be killed, nobody revokes the key: it ends by itself as well.
        expiry = {"expires_at": clock.now() + OWN_KEY_LIFE}
        services.update_key(row, expiry, actor=ACTOR, within_plan=False)
        if engine:
            wanted = {"engines": {"first": engine}, "on_unavailable": "fail_closed"}
            policy.save(row, wanted, actor=ACTOR)
        if refusal := _refusal(_get(f"{url}/v1/limits", text)):
            raise CommandError(
                f"{url} does not know the keys of this machine's database ({refusal}). {advice}"
            )
        yield text
    finally:
        try:
            services.revoke_key(row, actor=ACTOR)
        except DatabaseError as exc:
            raise CommandError(
                "The key of this run could not be revoked: the database is away. It ends in a day."
            ) from exc


def _print_limits(console: Console, url: str, key: str, rows: int) -> None:
    """Say beforehand when the key's limits will make it slow or cut it short."""
    try:
        policies = _get(f"{url}/v1/limits", key).json()["policies"]
        known = {str(p["name"]): (int(p["limit"]), int(p["remaining"])) for p in policies}
    except (ValueError, KeyError, TypeError):
        return
    for name, (limit, remaining) in known.items():
        if name == "minute" and limit < rows:
            console.print(f"This key may send {limit:,} a minute: expect {rows / limit:,.0f} min.")
        elif name != "minute" and remaining < rows:
            console.print(
                f"This key has {remaining:,} left of today ({printable(name)}): "
                f"of {rows:,} texts the rest will be skipped.",
                markup=False,
            )


# -- Sending --------------------------------------------------------------------------------------


class _Sender:
    """Texts in, outcomes out; `key_refused` ends it, since every further text would be too."""

    def __init__(self, run: Run, http: aiohttp.ClientSession) -> None:
        self.run = run
        self.http = http
        self.key_refused = ""

    async def work(self, rows: Iterator[Sample | Outcome], progress: _Progress) -> None:
        # All workers draw from the one iterator; between two awaits nobody else does.
        for row in rows:
            if self.key_refused:
                return
            outcome = row if isinstance(row, Outcome) else await self.ask(row)
            self.run.outcomes.append(outcome)
            progress.advance()

    async def ask(self, sample: Sample) -> Outcome:
        config: dict[str, Any] = {"use_cache": False, "content_type": self.run.content_type}
        if self.run.asked_threshold is not None:
            config["confidence_threshold"] = self.run.asked_threshold
        body = orjson.dumps({"text": sample.text, "config": config})
        url = f"{self.run.url}/v1/detect"
        for attempt in range(ATTEMPTS_MAX):
            started = perf_counter()
            try:
                async with self.http.post(url, data=body, allow_redirects=False) as r:
                    content = await r.read()
            except TimeoutError:
                return sample.outcome(skipped=f"no answer within {ANSWER_SECONDS_MAX:.0f} s")
            except (aiohttp.ClientError, OSError):
                return sample.outcome(skipped="connection lost")
            latency_ms = (perf_counter() - started) * 1000
            if r.status != 429:
                return self._outcome(sample, r.status, content, latency_ms)
            wait_seconds = _retry_after(r.headers.get("Retry-After"))
            if wait_seconds > WAIT_SECONDS_MAX:
                break
            self.run.limit_waits += 1
            # Those in flight were refused together: apart, and ever later, each finds a place.
            wait_seconds *= 1.5**attempt * random.uniform(1, 1.5)
            await asyncio.sleep(min(wait_seconds, WAIT_SECONDS_MAX))
        return sample.outcome(skipped=f"HTTP 429 {_code(content)}".strip())

    def _outcome(self, sample: Sample, status: int, body: bytes, latency_ms: float) -> Outcome:
        if status == 200:
            try:
                answer = Answer.model_validate_json(body)
            except ValidationError:
                return sample.outcome(skipped="unreadable answer")
            return sample.outcome(answer=answer, latency_ms=latency_ms)
        why = f"HTTP {status} {_code(body)}".strip()
        if status in (401, 403):
            self.key_refused = why
        return sample.outcome(skipped=f"refused: {why}" if status == 422 else why)


def _retry_after(value: str | None) -> float:
    """Seconds. A date, which this API never sends, counts as a second."""
    return float(value) if value and value.isascii() and value.isdigit() else 1.0


class _Progress:
    def __init__(self, total: int) -> None:
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("Detecting"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("Detecting", total=total)

    def advance(self) -> None:
        self.bar.advance(self.task)


def _send(run: Run, key: str, rows: Iterator[Sample | Outcome]) -> None:
    """Fill `run.outcomes`. Ctrl-C, or a key that is refused, ends it early and says so."""
    database.let_go()

    async def send(progress: _Progress) -> None:
        async with aiohttp.ClientSession(
            headers={
                "X-API-Key": key,
                "Content-Type": "application/json",
                "Accept-Encoding": "identity",
            },
            connector=aiohttp.TCPConnector(limit=run.concurrency),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX),
        ) as http:
            sender = _Sender(run, http)
            await asyncio.gather(*(sender.work(rows, progress) for _ in range(run.concurrency)))
            if sender.key_refused:
                run.stopped = f"The key was refused on the way ({sender.key_refused})."

    progress = _Progress(run.rows)
    started = perf_counter()
    try:
        with progress.bar:
            asyncio.run(send(progress))
    except KeyboardInterrupt:
        run.stopped = "Stopped by Ctrl-C."
    run.seconds = perf_counter() - started


# -- Showing --------------------------------------------------------------------------------------


def _print(console: Console, run: Run, *, by_source: bool, by_language: bool) -> None:
    total = run.total()
    _print_table(console, "File", run.by_file(), total)
    if by_source:
        _print_table(console, "Source", run.by_source(), total)
    if by_language:
        _print_table(console, "Language", run.by_language(), total)
    rate = f"{run.per_second:,.0f} a second" if run.per_second else "none answered"
    console.print(
        f"{len(run.answered):,} of {run.rows:,} texts answered in {run.seconds:,.1f} s: {rate}, "
        f"{run.concurrency} in flight. Shares in %, latencies in ms, FPR: false-positive rate."
    )
    if run.limit_waits:
        console.print(f"Waited {run.limit_waits:,} times for the key's limits (429).")
    for reason, n in run.skipped():
        console.print(f"  skipped {n:>7,}  {reason}", markup=False)
    if degraded := run.degraded():
        lines = "\n".join(f"{n:>7,}  {what}" for what, n in degraded)
        count = sum(n for _, n in degraded)
        text = Text(
            f"{count:,} of {len(run.answered):,} answers are not complete: the figures are not "
            f"those of the engine alone.\n{lines}"
        )
        console.print(Panel(text, title="NOT A CLEAN RUN", border_style="bold red"))
    elif run.answered:
        console.print("Every answer was complete.")


def _print_table(console: Console, heading: str, rows: list[Figures], total: Figures) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(heading, overflow="fold")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for figures in rows[:SOURCES_SHOWN_MAX]:
        table.add_row(Text(figures.name), *figures.cells())
    table.add_section()
    table.add_row(Text(total.name), *total.cells(), style="bold")
    console.print(table)
    if len(rows) > SOURCES_SHOWN_MAX:
        console.print(f"… and {len(rows) - SOURCES_SHOWN_MAX:,} more; --csv has every text.")


def _print_comparison(console: Console, first: Run, second: Run) -> None:
    """Both at thresholds of their own, and whether their difference could be chance."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("Engine", overflow="fold")
    for rate in RATES:
        table.add_column(f"Recall at {percent(rate)} FPR", justify="right")
    table.add_column("Area", justify="right")
    for run in (first, second):
        table.add_row(Text(run.engine), *_at_rates(run))
    console.print(table)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("Flagged")
    for column in ("both", f"{first.engine} only", f"{second.engine} only", "neither", "chance"):
        table.add_column(Text(column), justify="right")
    for row in pairs(first.outcomes, second.outcomes):
        counts = (row.both, row.first_only, row.second_only, row.neither)
        table.add_row(row.name, *(f"{n:,}" for n in counts), row.chance_text)
    console.print(table)
    console.print("Chance: of a split so uneven if both were as good (McNemar's exact test).")


def _at_rates(run: Run) -> list[str]:
    found = run.roc()
    if found is None:
        return [NONE] * (len(RATES) + 1)
    at = (found.at(rate) for rate in RATES)
    return [*(NONE if one is None else percent(one[1]) for one in at), f"{found.area:.3f}"]


def write_csv(file: IO[str], runs: Iterable[Run]) -> None:
    """One line a row and engine, answered or skipped, and never its text."""
    writer = cells.writer(file, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for engine, o in ((run.engine, o) for run in runs for o in run.outcomes):
        a = o.answer
        verdict: tuple[Any, ...] = (None,) * 5
        if a is not None:
            kinds = printable(" ".join(a.threat_types))
            verdict = (
                a.is_malicious,
                a.confidence,
                printable(a.decision),
                kinds,
                printable(a.status),
            )
        latency = None if o.latency_ms is None else round(o.latency_ms, 2)
        row = (o.file, o.line, o.source, o.label, *verdict, latency, o.skipped, o.sha256, o.chars)
        row += (o.language, engine)
        writer.writerow([cells.cell(value) for value in row])


def render(run: Run, other: Run | None = None) -> str:
    """The report: one page that loads nothing. All but what compares them is of the first run."""
    answered, applied, total = run.answered, run.threshold(), run.total()
    sources = run.by_source()
    choices = sorted({*CHOICES, *([] if applied is None else [applied])})
    context = {
        "run": run,
        "version": settings.VERSION,
        "columns": COLUMNS,
        "total": total,
        "files": (files := run.by_file()),
        "rates": [
            (
                figures.name,
                [
                    ("Recall", "attack", figures.recall),
                    ("False-positive rate", "benign", figures.false_positive_rate),
                ],
            )
            for figures in (*files, total)
        ],
        "sources": sources[:SOURCES_SHOWN_MAX],
        "sources_left": max(0, len(sources) - SOURCES_SHOWN_MAX),
        "threshold": applied,
        "choices": [(t, t == applied, figures) for t, figures in sweep(answered, choices)],
        "bins": bins(answered),
        "curves": curves(answered),
        "languages": run.by_language(),
        "compared": _compared(run, other),
        "rates_asked": [percent(rate) for rate in RATES],
        "pairs": [] if other is None else pairs(run.outcomes, other.outcomes),
        "latency": latency_plot(total.latencies_ms),
        "endpoints": run.answers(lambda a: printable(a.endpoint or "not said")),
        "by": run.answers(lambda a: printable(f"{a.source}, {a.status}")),
    }
    return render_to_string("detection/evaluation.html", context)


def _compared(*runs: Run | None) -> list[dict[str, Any]]:
    """Of each engine: its name, its curve, its recall at some false-positive rates, its shares by
    source and by language."""
    return [
        {
            "name": run.engine or "this run",
            "roc": run.roc(),
            "at": _at_rates(run),
            "total": run.total(),
            "groups": run.by_source()[:SOURCES_SHOWN_MAX] + run.by_language(),
        }
        for run in runs
        if run is not None
    ]
