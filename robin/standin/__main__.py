"""`python -m robin.standin`: serves it without Django; `manage.py robin_standin` is the same."""

from __future__ import annotations

import asyncio
import signal
from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from robin.standin import ports
from robin.standin.robin import Robin
from robin.standin.seed_data import SeedData
from robin.standin.server import Auth


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--client-port", type=int, default=8090, help="the next free if taken")
    parser.add_argument("--service-port", type=int, default=8080, help="the next free if taken")
    parser.add_argument("--control-port", type=int, default=None, help="takes POST /faults/…")
    parser.add_argument("--profile", default="stock", choices=["stock", "legacy", "ui-fork"])
    parser.add_argument("--auth", default="none", choices=["none", "basic", "bearer"])
    parser.add_argument("--auth-value", default="", metavar="user:password|TOKEN")
    parser.add_argument("--allow", action="append", default=[], metavar="ADDRESS/BITS")
    parser.add_argument("--tick-seconds", type=float, default=2.0, help="0: no deliveries")
    parser.add_argument("--no-traffic", action="store_true", help="no new mails by themselves")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--parallel", action="store_true", help="many requests at a time")


async def serve(options: Mapping[str, Any]) -> None:
    """Until SIGINT or SIGTERM. `options` are those of `add_arguments`."""
    auth = Auth(options["auth"], options["auth_value"], tuple(options["allow"]))
    robin = Robin(
        SeedData(seed=options["seed"]),
        options["profile"],
        auth,
        tick_seconds=options["tick_seconds"],
        traffic=not options["no_traffic"],
    )
    robin.client.one_at_a_time = robin.service.one_at_a_time = not options["parallel"]
    host = options["host"]
    client_port = ports.next_free(options["client_port"], host=host)
    await robin.start(
        host=host,
        client_port=client_port,
        service_port=ports.next_free(options["service_port"], host=host, but=[client_port]),
        control_port=options["control_port"],
    )
    print(f"client API {robin.client.port}, service API {robin.service.port}", flush=True)  # noqa: T201
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await robin.stop()


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m robin.standin", description="A stand-in of Robin.")
    add_arguments(parser)
    asyncio.run(serve(vars(parser.parse_args())))
