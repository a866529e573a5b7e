"""A server that answers as a vector says."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        server = self.server
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        server.seen.append((time.monotonic(), dict(self.headers), body))
        server.lines.append((self.command, self.path))
        reply = server.replies[min(len(server.seen), len(server.replies)) - 1]
        if reply.get("silent"):
            server.over.wait(10)
            return self._hang_up()
        if reply.get("drop"):
            return self._hang_up()
        content = reply["text"] if "text" in reply else json.dumps(reply.get("body"))
        content = (content * reply.get("times", 1)).encode()
        self.send_response(reply["status"])
        for name, value in reply.get("headers", {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if reply.get("half"):
            self.wfile.write(content[: len(content) // 2])
            return self._hang_up()
        if reply.get("drip"):
            for byte in content:
                if server.over.wait(0.1):
                    return self._hang_up()
                try:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                except OSError:
                    return self._hang_up()
            return None
        self.wfile.write(content)
        return None

    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST  # noqa: N815 - names of http.server

    def _hang_up(self):
        self.close_connection = True

    def log_message(self, *args):
        pass


@contextmanager
def replaying(replies):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.replies, server.seen, server.lines = replies, [], []
    server.over = threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def address(server):
    return f"http://127.0.0.1:{server.server_address[1]}"
