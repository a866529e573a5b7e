"""What stands around a LiteLLM proxy: a model of OpenAI's kind behind it, and on the way to our
gateway somebody who writes down what passes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from gateway_project.tests.served import free_port

GUARDRAIL = "/beta/litellm_basic_guardrail_api"
START_SECONDS_MAX = 240
PIECE_CHARS = 12


class _Server:
    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with suppress(BrokenPipeError, ConnectionResetError):
                    outer.answer(self, body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        raise NotImplementedError

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, kind: str) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


class Model(_Server):
    """Says `text`, or calls a tool with `arguments`, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.is_well()

    def is_well(self) -> None:
        self.text = "It will be fine."
        self.arguments: str | None = None
        self.asked: list[dict[str, Any]] = []

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        asked = json.loads(body)
        self.asked.append(asked)
        if handler.path.endswith("/responses"):
            self.send(handler, 200, json.dumps(self._response(asked)).encode(), "application/json")
        elif asked.get("stream"):
            self._stream(handler)
        else:
            self.send(handler, 200, json.dumps(self._whole()).encode(), "application/json")

    def _message(self) -> dict[str, Any]:
        if self.arguments is None:
            return {"role": "assistant", "content": self.text}
        call = {"name": "search", "arguments": self.arguments}
        calls = [{"id": "call_1", "type": "function", "function": call}]
        return {"role": "assistant", "content": None, "tool_calls": calls}

    def _whole(self) -> dict[str, Any]:
        reason = "stop" if self.arguments is None else "tool_calls"
        choice = {"index": 0, "message": self._message(), "finish_reason": reason}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
        return {**head, "choices": [choice], "usage": usage}

    def _response(self, asked: dict[str, Any]) -> dict[str, Any]:
        content = [{"type": "output_text", "text": self.text, "annotations": []}]
        message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed"}
        return {
            "id": "resp_1", "object": "response", "created_at": 1, "status": "completed",
            "model": "m", "output": [{**message, "content": content}], "error": None,
            "incomplete_details": None, "instructions": asked.get("instructions"),
            "metadata": {}, "parallel_tool_calls": True, "temperature": 1, "tool_choice": "auto",
            "tools": [], "top_p": 1, "max_output_tokens": None, "previous_response_id": None,
            "reasoning": {}, "text": {"format": {"type": "text"}}, "truncation": "disabled",
            "usage": {
                "input_tokens": 1, "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": 1, "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 2,
            },
        }  # fmt: skip

    def _stream(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        for delta, reason in self._deltas():
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1}
            line = json.dumps({**head, "model": "m", "choices": [choice]})
            handler.wfile.write(f"data: {line}\n\n".encode())
            handler.wfile.flush()
        handler.wfile.write(b"data: [DONE]\n\n")
        handler.close_connection = True

    def _deltas(self):
        if self.arguments is not None:
            (call,) = self._message()["tool_calls"]
            yield {"role": "assistant", "tool_calls": [{"index": 0, **call}]}, None
            yield {}, "tool_calls"
            return
        yield {"role": "assistant", "content": ""}, None
        for at in range(0, len(self.text), PIECE_CHARS):
            yield {"content": self.text[at : at + PIECE_CHARS]}, None
        yield {}, "stop"


class Recorder(_Server):
    """Hands on to the gateway, and writes down. `how`: "well", "silent", or a status to answer."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_to("", "")
        self.is_well()

    def goes_to(self, url: str, key: str) -> None:
        """To that gateway, and with the key of the test instead of the proxy's own."""
        self._url, self._key = url, key

    def is_well(self) -> None:
        self.how: str | int = "well"
        self.passed: list[dict[str, Any]] = []

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if self.how == "silent":
            time.sleep(6)  # longer than the proxy waits
            return
        if isinstance(self.how, int):
            self.send(handler, self.how, b"{}", "application/json")
            return
        headers = {
            name: value
            for name, value in handler.headers.items()
            if name.lower() not in ("host", "connection", "content-length")
        }
        assert headers.get("x-api-key"), headers
        headers["x-api-key"] = self._key
        r = httpx.post(f"{self._url}{handler.path}", content=body, headers=headers, timeout=60)
        answer = r.json()
        self.passed.append({"request": json.loads(body), "status": r.status_code, "answer": answer})
        self.send(handler, r.status_code, r.content, r.headers["content-type"])


class LiteLLM:
    """The real proxy, with the configuration that a test gives it."""

    def __init__(self, program: Path, folder: Path, configuration: str, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(configuration)
        self._log = (folder / "litellm.log").open("a+b")
        kept = ("PATH", "LANG", "TMPDIR")
        self._process = subprocess.Popen(
            [program, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(self.port)],
            cwd=folder,
            env={
                **{name: os.environ[name] for name in kept if name in os.environ},
                "HOME": str(folder),
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks the network
                "LITELLM_TELEMETRY": "False",
                **environment,
            },
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.output()
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health/liveliness", timeout=2).status_code == 200:
                    return
            time.sleep(0.2)
        raise AssertionError(f"not up in time\n{self.output()}")

    def output(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-8_000:]

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()
