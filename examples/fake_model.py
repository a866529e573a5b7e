"""A model for the examples: OpenAI's `/chat/completions`, answered without one.

    python examples/fake_model.py            # on 127.0.0.1:8401; HOST and PORT say otherwise

It says what it was asked last, which shows what reached it. Only the standard library is needed.
"""

from __future__ import annotations

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Model(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        try:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            last = asked["messages"][-1]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            self._answer(400, {"error": {"message": f"not a chat: {error!r}"}})
            return
        message = {"role": "assistant", "content": f"You asked: {last}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._answer(200, {"object": "chat.completion", "model": "fake", "choices": [choice]})

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"id": "fake", "object": "model"}]})

    def _answer(self, status: int, body: dict[str, object]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    address = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8401"))
    ThreadingHTTPServer(address, Model).serve_forever()
