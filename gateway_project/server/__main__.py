"""The web server: uvicorn, with a stop that a proxy in front can follow (docs/request-life.md).

`command` is how `serve`, `run`, tests and benchmarks start it. SIGTERM: not ready, serve on for
`DRAIN_SECONDS`, close the listeners, finish what is in flight, flush. SIGINT, or SIGTERM again: the
same without the waiting. SIGHUP, with several workers: replace them one by one.
"""

from __future__ import annotations

import argparse
import signal
import sys

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from gateway_project.server.supervisor import Supervisor
from gateway_project.server.web_process import Server

BACKLOG = 2048
WS_BYTES_MAX = 4096  # of a message from a client; nothing is expected of one
GRACEFUL_SECONDS = 15
# More than proxies keep theirs (nginx and most balancers: 60 s). Who closes an idle connection must
# not be the one that waits for requests on it.
KEEP_ALIVE_SECONDS = 75
START_SECONDS_MAX = 30


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway_project.server")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    options = parser.parse_args()
    config = uvicorn.Config(
        "gateway_project.asgi:application",
        host=options.host,
        port=options.port,
        workers=options.workers,
        loop="uvloop",
        http="gateway_project.server.protocol:BoundedHTTPProtocol",
        lifespan="on",
        ws="gateway_project.server.protocol:BoundedWebSocketProtocol",
        ws_max_size=WS_BYTES_MAX,
        # Each client would take 100 KB for it, and the same text would be compressed for each.
        ws_per_message_deflate=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
        timeout_worker_healthcheck=START_SECONDS_MAX,
        # Which proxies to believe is our own setting, and the access log is our own event.
        proxy_headers=False,
        access_log=False,
        server_header=False,
        log_config=None,  # the settings have set it up, in what the web processes are forked from
        log_level="warning",
    )
    sockets = [config.bind_socket()]
    if config.workers > 1:
        supervisor = Supervisor(config, sockets)
        supervisor.run()
        failed = any(worker.exitcode == STARTUP_FAILURE for worker in supervisor.processes)
        return STARTUP_FAILURE if failed else 0
    server = Server(config)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # it would lose what is not written yet
        signal.signal(signal.SIGHUP, server.handle_exit)
    server.run(sockets)
    return 0


if __name__ == "__main__":
    sys.exit(main())
