"""The gateway before the real Robin and the real Robin UI: `make robin-real ROBIN=path UI=path`.

    python -m deploy.robin_real --robin CHECKOUT [--ui CHECKOUT] [--parts …] [--items …]

`DATABASE_URL` and `REDIS_URL` name a PostgreSQL and a Redis, as `deploy/services.py run` gives
them. Exit codes: 0 fine, 1 a check failed, 2 the run could not begin. docs/robin-real.md has more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks.processes import BenchError, free_port
from benchmarks.stores import named_stores, private_stores
from deploy.robin_real import build, checks, record, ui_pages
from deploy.robin_real.build import Jdk, Missing
from deploy.robin_real.mta import NEVER_SECONDS, Kind, Mta
from deploy.robin_real.people import ADMIN, READER
from deploy.robin_real.sink import TAKEN
from deploy.robin_real.stack import ROOT, Development, Front, Gateway, sink
from deploy.robin_real.table import Table

PARTS = ("standing", "moving", "log", "rest", "bad", "dying", "walk", "https", "use", "serve")
RECORD = "record"
"""No part of all: it writes a file of the tests."""
ITEMS = (1000, 5000, 50_000)
DUE_MIN, DUE_SHARE = 5000, 0.25
"""So many mails are to be delivered: rounds are as long as lists, and those as the queue."""
LATER_SECONDS = 6 * 3600
SOME_ITEMS = 137
PICTURES = ROOT / "var/robin-real"


class Run:
    def __init__(self, options: argparse.Namespace, jdk: Jdk) -> None:
        self.options, self.jdk, self.table = options, jdk, Table()
        self.kind: Kind = options.queue

    def all(self) -> None:
        parts = self.options.parts
        if "standing" in parts or "moving" in parts:
            for items in self.options.items:
                self.do(f"{items:,} items in {self.kind}", partial(self.long_queue, items, parts))
        if "log" in parts:
            self.do("a long log, and large mails", self.log)
        if "rest" in parts:
            self.do("fates of mails, strangers, settings, a wrong token", self.rest)
        if "bad" in parts:
            self.do("bad input", self.bad)
        if RECORD in parts:
            self.do("answers recorded", self.record)
        if "dying" in parts:
            self.do("a Robin that is killed in the middle of actions", self.dying)
        if "walk" in parts and self.options.ui is not None:
            self.do("Robin UI, walked", self.ui_pages)
        if "https" in parts and self.options.ui is not None:
            self.do("Robin UI, walked by https", self.https)
        if "use" in parts and self.options.ui is not None:
            self.do("Robin UI, used", self.use)
        if "serve" in parts and self.options.ui is not None:
            self.do("Robin UI's development server, walked", self.serve)

    def do(self, name: str, part: Callable[[], None]) -> None:
        """What cannot go on leaves the other parts alone."""
        print(name, flush=True)
        try:
            part()
        except Exception as exc:
            traceback.print_exc()
            with self.table.check("1", name):
                raise BenchError(f"broke off: {exc}") from exc

    @contextmanager
    def robin(
        self, name: str, seed: Callable[[Mta], object] = lambda mta: None
    ) -> Iterator[tuple[Mta, Gateway, Path]]:
        """Neither is started, and Robin has what `seed` gave it; both are gone afterwards."""
        database_url, redis_url = named_stores()
        with ExitStack() as stack:
            place = tempfile.TemporaryDirectory(prefix="robin-real-", ignore_cleanup_errors=True)
            scratch = Path(stack.enter_context(place))
            stores = stack.enter_context(private_stores(database_url, redis_url, name))
            url = ""
            if self.kind == "pgsql":
                its = stack.enter_context(private_stores(database_url, redis_url, f"{name}_robin"))
                url = its.database_url
            (home := scratch / "robin").mkdir()
            mta = Mta(self.options.robin, home, self.jdk, kind=self.kind, database_url=url)
            stack.callback(mta.stop)
            gateway = Gateway(stores, mta, scratch)
            stack.callback(gateway.stop)
            with ThreadPoolExecutor(1) as beside:
                prepared = beside.submit(gateway.prepare)
                seed(mta)
                prepared.result()
            yield mta, gateway, scratch

    def long_queue(self, items: int, parts: list[str]) -> None:
        seconds = self.options.sink_seconds
        port, are_moving = free_port(), "moving" in parts
        due = self.options.due or max(DUE_MIN, int(DUE_SHARE * items))

        def seed(mta: Mta) -> None:
            if "standing" in parts:
                mta.seed(items, "later.north.example", port, later_seconds=LATER_SECONDS)
            else:
                mta.seed(items + due, TAKEN, port)

        with (
            self.robin("long", seed) as (mta, gateway, scratch),
            sink(scratch, port, seconds) as file,
        ):
            if "standing" in parts:
                mta.start(start_seconds=NEVER_SECONDS)
                gateway.start()
                checks.standing(self.table, mta, gateway, items)
                gateway.stop()
                mta.stop()
                if are_moving:
                    mta.seed(due, TAKEN, port)
            if are_moving:
                mta.start()
                mta.list_seconds()  # its first takes half as long again
                gateway.start(nicer=10)
                checks.moving(
                    self.table,
                    mta,
                    gateway,
                    file,
                    items,
                    rounds=self.options.rounds,
                    alone_seconds=self.options.seconds,
                    watched_seconds=self.options.watched_seconds,
                )

    def log(self) -> None:
        with self.robin("log") as (mta, gateway, _):
            checks.write_log(mta, checks.LOG_BYTES, datetime.now(UTC))
            mails = checks.write_mails(mta)
            mta.start(start_seconds=NEVER_SECONDS)
            gateway.start()
            checks.long_log(self.table, mta, gateway)
            checks.large_mails(self.table, gateway, mails)

    def rest(self) -> None:
        port = free_port()
        with (
            self.robin("rest", self.some_mails) as (mta, gateway, scratch),
            sink(scratch, port, 0.0) as file,
        ):
            mta.start()
            gateway.start()
            checks.fates(self.table, mta, gateway, file, port, checks.closed_port())
            checks.strangers(self.table, mta, gateway, port)
            checks.settings(self.table, mta, gateway)
            checks.refused(self.table, mta, gateway)

    def bad(self) -> None:
        with self.robin("bad", self.some_mails) as (mta, gateway, _):
            odd = checks.write_odd(mta)
            mta.start(start_seconds=NEVER_SECONDS)
            gateway.start()
            checks.bad_input(self.table, gateway, odd, SOME_ITEMS)
            checks.as_recorded(self.table, mta)

    def record(self) -> None:
        port = free_port()
        with self.robin("record") as (mta, _, scratch), sink(scratch, port, 0.0):
            mta.start()
            record.record(self.table, mta, port, checks.closed_port())

    def dying(self) -> None:
        def seed(mta: Mta) -> None:
            refused = checks.closed_port()
            mta.seed(3 * checks.PIECE, "later.north.example", refused, later_seconds=LATER_SECONDS)

        with self.robin("dying", seed) as (mta, gateway, _):
            mta.start(start_seconds=NEVER_SECONDS)
            gateway.start()
            checks.dying(self.table, mta, gateway)

    @contextmanager
    def fronts(
        self, name: str, *, https_only: bool = False
    ) -> Iterator[tuple[Mta, Gateway, Path, Callable[..., ui_pages.UiPages]]]:
        """Robin and the gateway started, and a function that puts nginx with Robin UI before it."""
        with (
            self.robin(name, self.some_mails) as (mta, gateway, scratch),
            ui_pages.browser() as browser,
            ExitStack() as stack,
        ):
            checks.write_mails(mta)
            mta.start()
            gateway.start(HTTPS_ONLY=str(https_only).lower())

            def front(how: str) -> ui_pages.UiPages:
                place = scratch / how
                found = Front(self.options.dist, gateway.port, place, is_tls=how == "https")
                stack.callback(found.stop)
                return ui_pages.UiPages(browser, self.table, how, found.url, PICTURES / how)

            yield mta, gateway, scratch, front

    def some_mails(self, mta: Mta) -> None:
        refused = checks.closed_port()
        mta.seed(SOME_ITEMS, "later.north.example", refused, later_seconds=LATER_SECONDS)

    def ui_pages(self) -> None:
        with self.fronts("walk") as (_, _, _, front):
            plain = front("http")
            plain.pages(ADMIN)
            plain.pages(READER, may=frozenset({403}))

    def https(self) -> None:
        with self.fronts("https", https_only=True) as (_, _, _, front):
            front("https").pages(ADMIN)

    def use(self) -> None:
        port = free_port()
        with (
            self.fronts("use") as (mta, gateway, scratch, front),
            sink(scratch, port, 0.0) as file,
        ):
            checks.fates(self.table, mta, gateway, file, port, checks.closed_port())
            plain = front("http")
            plain.dead_item(gateway)
            plain.blocklist()
            plain.dovecot()
            plain.export()
            plain.robin_down(mta)
            gateway.stop()
            gateway.start(ACCESS_TOKEN_EXPIRE_MINUTES="1")
            plain.expiry()

    def serve(self) -> None:
        with (
            self.robin("serve", self.some_mails) as (mta, gateway, scratch),
            ui_pages.browser() as browser,
        ):
            mta.start()
            gateway.start()
            server = Development(self.options.ui, gateway.port, scratch)
            try:
                name = "ng serve"
                ui_pages.UiPages(browser, self.table, name, server.url, PICTURES / name).pages(
                    ADMIN
                )
            finally:
                server.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="make robin-real", description=__doc__.split("\n")[0])
    parser.add_argument("--robin", type=Path, required=True, help="checkout of transilvlad/robin")
    parser.add_argument("--ui", type=Path, help="checkout of transilvlad/robin-ui")
    parser.add_argument(
        "--parts", type=_names, default=[*PARTS], help=f"of {','.join(PARTS)}, or {RECORD}"
    )
    parser.add_argument("--items", type=_numbers, default=[*ITEMS])
    parser.add_argument("--queue", choices=["mapdb", "pgsql"], default="mapdb")
    parser.add_argument("--due", type=int, help="mails to deliver, beside --items")
    parser.add_argument("--rounds", type=int, default=2, help="of each kind")
    parser.add_argument("--seconds", type=float, default=60, help="of the others")
    parser.add_argument("--watched-seconds", type=float, default=240, help="of the watched ones")
    parser.add_argument("--sink-seconds", type=float, default=0.5, help="over each mail")
    parser.add_argument("--maven", action="append", default=[], help="an argument for it")
    options = parser.parse_args()
    if unknown := {*options.parts} - {*PARTS, RECORD}:
        parser.error(f"only {', '.join(PARTS)} are parts, not {', '.join(unknown)}")
    try:
        jdk = prepare(options)
        run = Run(options, jdk)
        run.all()
    except (Missing, BenchError) as exc:
        print(exc, file=sys.stderr)
        return 2
    if options.ui is not None:
        print(f"Pictures of Robin UI: {PICTURES}", flush=True)
    print(f"\n{run.table.text()}")
    return 0 if run.table.is_ok else 1


def prepare(options: argparse.Namespace) -> Jdk:
    """Build both, where that was not done; raises `Missing`."""
    options.robin = options.robin.resolve()
    build.check_checkout(options.robin, "pom.xml", "transilvlad/robin")
    jdk = build.find_jdk()
    if options.ui is not None:
        options.ui = options.ui.resolve()
        build.check_checkout(options.ui, "angular.json", "transilvlad/robin-ui")
        build.check_node()
    build.check_maven()
    work = ROOT / "var/robin-real"
    work.mkdir(parents=True, exist_ok=True)
    build.build_robin(options.robin, jdk, work / "robin-build.log", options.maven)
    if options.ui is not None:
        options.dist = work / "ui"
        build.build_ui(options.ui, options.dist, work / "ui-build.log")
    return jdk


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
