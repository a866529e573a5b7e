"""`python -m gateway_project.core.telemetry.exporter`: the metrics folder over HTTP, no Django.

For a host or pod that has workers and no web process: there nobody else answers Prometheus. It
shows what `PROMETHEUS_MULTIPROC_DIR` holds and nothing that has to be looked up in a store, and it
asks for no token: let only Prometheus reach its port.
"""

from __future__ import annotations

import argparse
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from gateway_project.core.telemetry.multiprocess import MetricsFolder

PATH = "/metrics"


def page(folder: MetricsFolder) -> bytes:
    registry = CollectorRegistry()
    registry.register(folder)
    return generate_latest(registry)


def server(folder: MetricsFolder, host: str, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != PATH:
                self.send_error(404)
                return
            content = page(folder)
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """A scrape each few seconds is no news."""

    return ThreadingHTTPServer((host, port), Handler)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway_project.core.telemetry.exporter")
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104 - Prometheus is on another host
    parser.add_argument("--port", type=int, default=9101)
    options = parser.parse_args()
    path = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not path:
        parser.error("PROMETHEUS_MULTIPROC_DIR is not set: name the folder that workers count in.")
    with server(MetricsFolder(Path(path)), options.host, options.port) as httpd:
        httpd.serve_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
