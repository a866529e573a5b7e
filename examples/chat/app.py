"""A chat in the browser, whose every message is checked before the model reads it.

What people write is checked as `user_input`, what the model says as `model_output`. What is refused
goes neither to the model nor into the history. Any model with an API of OpenAI's kind will do.

GATEWAY_URL, GATEWAY_API_KEY, MODEL_URL, MODEL_KEY, MODEL, HOST and PORT are the settings.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections import OrderedDict
from http import HTTPStatus
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from gateway_guard import Client, GatewayError

PAGE = (Path(__file__).parent / "page.html").read_bytes()
INSTRUCTIONS = {
    "role": "system",
    "content": "You are a friendly assistant. Answer in one paragraph.",
}
REFUSED = "I cannot help with that."
AWAY = "I am not available right now. Please try again."
MESSAGE_CHARS_MAX, TURNS_MAX, CHATS_MAX = 4_000, 20, 1_000


class Chats:
    """The histories, by the cookie of each browser; the oldest are forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._histories: OrderedDict[str, list[dict[str, str]]] = OrderedDict()

    def of(self, chat_id: str) -> list[dict[str, str]]:
        with self._lock:
            history = self._histories.setdefault(chat_id, [])
            self._histories.move_to_end(chat_id)
            while len(self._histories) > CHATS_MAX:
                self._histories.popitem(last=False)
            return list(history)

    def add(self, chat_id: str, *turn: dict[str, str]) -> None:
        with self._lock:
            history = self._histories.setdefault(chat_id, [])
            history.extend(turn)
            del history[: -2 * TURNS_MAX]


class Assistant:
    """Check, ask the model, check."""

    def __init__(self) -> None:
        self.guard = Client(timeout=15)
        self.chats = Chats()
        key = os.environ.get("MODEL_KEY", "")
        self.model = httpx.Client(
            base_url=os.environ.get("MODEL_URL", "http://127.0.0.1:8401/v1"),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=60,
        )

    def is_fine(self, text: str, content_type: str) -> bool:
        return self.guard.detect(text, content_type=content_type).decision == "allow"

    def reply(self, chat_id: str, text: str) -> dict[str, object]:
        """`{text, refused}`: what is shown, and whether the check stopped something."""
        try:
            if not self.is_fine(text, "user_input"):
                return {"text": REFUSED, "refused": True}
            asked = {"role": "user", "content": text}
            message = self.ask([INSTRUCTIONS, *self.chats.of(chat_id), asked])
            if not self.is_fine(message["content"], "model_output"):
                return {"text": REFUSED, "refused": True}
        except (GatewayError, httpx.HTTPError, KeyError, ValueError) as error:
            print(f"no answer: {error}", flush=True)
            return {"text": AWAY, "refused": False}
        self.chats.add(chat_id, asked, message)
        return {"text": message["content"], "refused": False}

    def ask(self, messages: list[dict[str, str]]) -> dict[str, str]:
        name = os.environ.get("MODEL", "gpt-4o-mini")
        answer = self.model.post("/chat/completions", json={"model": name, "messages": messages})
        message = answer.raise_for_status().json()["choices"][0]["message"]["content"]
        return {"role": "assistant", "content": message or "…"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    assistant: Assistant

    def do_GET(self) -> None:
        if self.path != "/":
            self.send(HTTPStatus.NOT_FOUND, b"not found", "text/plain")
            return
        cookie = f"chat={secrets.token_urlsafe(16)}; HttpOnly; SameSite=Strict; Path=/"
        self.send(HTTPStatus.OK, PAGE, "text/html; charset=utf-8", ("Set-Cookie", cookie))

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        if self.path != "/messages" or size > 4 * MESSAGE_CHARS_MAX:
            self.close_connection = True  # the body was not read
            self.send(HTTPStatus.BAD_REQUEST, b"not a message", "text/plain")
            return
        try:
            text = json.loads(self.rfile.read(size))["text"].strip()[:MESSAGE_CHARS_MAX]
        except (ValueError, KeyError, TypeError, AttributeError):
            text = ""
        if not text:
            self.send(HTTPStatus.BAD_REQUEST, b"not a message", "text/plain")
            return
        found = SimpleCookie(self.headers.get("Cookie")).get("chat")
        answer = self.assistant.reply(found.value if found else "", text)
        self.send(HTTPStatus.OK, json.dumps(answer).encode(), "application/json")

    def send(self, status: HTTPStatus, body: bytes, kind: str, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    Handler.assistant = Assistant()
    address = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8400"))
    print(f"Open http://{address[0]}:{address[1]}", flush=True)
    ThreadingHTTPServer(address, Handler).serve_forever()


if __name__ == "__main__":
    main()
