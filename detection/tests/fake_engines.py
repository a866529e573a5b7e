"""A local server that speaks what vendors document, well or badly; and engines that ask it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import isawaitable
from typing import Any

from aiohttp import web

from detection.engines import addresses, registry
from detection.engines.engine import Engine
from gateway_project.core.upstream import breaker
from gateway_project.tests.loop_thread import LoopThread

LATE = 2.0


class FakeServer:
    """Answers every POST with what `answer` makes of the body; `asked` has what came."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answer: Callable[[dict[str, Any]], Any] = lambda body: {}
        self.bad = ""
        self.health = 200
        self.version = '"f1"'
        """In JSON, of its health."""
        self.seconds = 0.0
        self.address = ""

    def is_well(self) -> None:
        self.asked.clear()
        self.headers.clear()
        self.paths.clear()
        self.bad, self.health, self.seconds = "", 200, 0.0
        self.version = '"f1"'

    async def post(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        self.paths.append(request.path_qs)
        if self.seconds:
            await asyncio.sleep(self.seconds)
        if self.bad:
            return await self._badly(request, body)
        found = self.answer(body)
        if isawaitable(found):
            found = await found
        return found if isinstance(found, web.StreamResponse) else web.json_response(found)

    async def get(self, request: web.Request) -> web.StreamResponse:
        text = f'{{"status": "healthy", "version": {self.version}}}'
        return web.Response(text=text, status=self.health, content_type="application/json")

    async def _badly(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        how = self.bad
        if how.isdigit():
            return web.json_response({"error": "no"}, status=int(how))
        if how == "late":
            await asyncio.sleep(LATE)
        if how == "half":
            response = web.StreamResponse(headers={"Content-Length": "5000"})
            await response.prepare(request)
            await response.write(b'{"flagged": fal')
            request.transport.close()
            return response
        if how == "closed":
            request.transport.abort()
            return web.Response()
        texts = {
            "html": "<html><body>Sign in to continue</body></html>",
            "empty": "",
            "null": "null",
            "list": "[]",
            "number": "0",
            "object": "{}",
            "text": '"harmless"',
            "cut": json.dumps(self.answer(body))[:-3],
            "large": json.dumps({"x": "y" * (3 << 20)}),
        }
        return web.Response(text=texts[how], content_type="application/json")

    def app(self) -> web.Application:
        app = web.Application(client_max_size=4 << 20)
        app.router.add_post("/{path:.*}", self.post)
        app.router.add_get("/{path:.*}", self.get)
        return app


EVERY_BAD = (
    *("late", "half", "closed", "html", "empty", "null", "list", "number", "object", "text"),
    *("cut", "large", "301", "400", "401", "402", "403", "404", "408", "413", "422", "429"),
    *("500", "502", "503", "504"),
)


@contextmanager
def serving() -> Iterator[FakeServer]:
    fake, thread = FakeServer(), LoopThread("fake-engine")

    async def start() -> web.AppRunner:
        runner = web.AppRunner(fake.app(), shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = thread.run(start())
    fake.address = f"127.0.0.1:{runner.addresses[0][1]}"
    yield fake
    thread.cancel()
    thread.run(runner.cleanup())
    thread.close()


def add(gateway: Any, name: str, url: str) -> Engine:
    """An engine of that name in the running gateway, as if the settings named it."""

    async def make() -> Engine:
        address = addresses.parse(url, name)
        engine = registry.KINDS[address.kind](address)
        registry.engines()._by_name[name] = engine
        return engine

    return gateway.run(make())


def remove(gateway: Any, name: str) -> None:
    gateway.run(registry.engines().asking.cancel_all())
    engine = registry.engines()._by_name.pop(name)
    gateway.run(engine.close())
    breaker._registry.pop(engine.breaker.name)


# -- What the vendors document --------------------------------------------------------------------


def go(score: float) -> Callable[[dict[str, Any]], Any]:
    kinds = ["injection"] if score >= 0.6 else []
    return lambda body: {
        "is_malicious": score >= 0.6,
        "confidence": score,
        "threat_types": kinds,
        "endpoint": "fake",
    }


def lakera(score: float) -> Callable[[dict[str, Any]], Any]:
    level = "l1_confident" if score >= 0.6 else "l5_unlikely"
    return lambda body: {
        "payload": [],
        "flagged": score >= 0.6,
        "metadata": {"request_uuid": "8b2b6c1c-9f7a-4f8a-9c2d-8a44ca72e975"},
        "breakdown": [
            {
                "project_id": "project-1",
                "policy_id": "policy-1",
                "detector_id": "detector-1",
                "detector_type": "prompt_attack",
                "detected": score >= 0.6,
                "result": level,
                "message_id": 0,
            },
            {"detector_type": "pii/name", "detected": True, "result": "l1_confident"},
        ],
    }


def azure(score: float) -> Callable[[dict[str, Any]], Any]:
    def answer(body: dict[str, Any]) -> Any:
        found = {"attackDetected": score >= 0.6}
        return {
            "userPromptAnalysis": found if body["userPrompt"] else {"attackDetected": False},
            "documentsAnalysis": [found for _ in body["documents"]],
        }

    return answer


def llmguard(score: float) -> Callable[[dict[str, Any]], Any]:
    risk = 1.0 if score >= 0.6 else -1.0
    return lambda body: {
        "is_valid": score < 0.6,
        "scanners": {"PromptInjection": risk, "Toxicity": -1.0},
        "sanitized_prompt": body["prompt"],
    }


def check_of(body: dict[str, Any]) -> str:
    """The word that stands in the instructions alone."""
    return body["messages"][0]["content"].split('"check" is exactly "')[1].split('"')[0]


def completion(content: Any, **more: Any) -> dict[str, Any]:
    """A chat completion, as OpenAI's reference shows it."""
    message = {"role": "assistant", "content": content, "refusal": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "judge-1",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 400, "completion_tokens": 60, "total_tokens": 460},
        **more,
    }


def verdict(body: dict[str, Any], score: float, **more: Any) -> dict[str, Any]:
    return {
        "check": check_of(body),
        "attack": round(score * 100),
        "verdict": "attack" if score >= 0.5 else "harmless",
        "kinds": ["injection"] if score >= 0.5 else [],
        **more,
    }


def judge(score: float) -> Callable[[dict[str, Any]], Any]:
    return lambda body: completion(json.dumps(verdict(body, score)))


VENDORS = {
    "go": ("http://{}", go),
    "judge": ("openai+http://:sk-1@{}/v1?model=judge-1", judge),
    "lakera": ("lakera+http://:lk-1@{}", lakera),
    "azure": ("azure+http://:az-1@{}", azure),
    "llmguard": ("llmguard+http://:lg-1@{}", llmguard),
}
