"""One command for each example: python3 examples/run.py NAME

It makes what the example needs (an environment in examples/.venv, packages of npm), once. It takes
address and key of GATEWAY_URL and GATEWAY_API_KEY, or of a `make run` of this checkout. Without
MODEL_URL it starts a model that only repeats. For a receiver of webhooks it registers a webhook,
and deletes it at the end. Ctrl-C ends all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VENV = HERE / ".venv"
SDK = ROOT / "sdks"
EXAMPLES = {
    "chat": "a chat in the browser (PORT, 8400)",
    "rag": "answers by documents: … rag 'When do you open?'",
    "webhooks-fastapi": "receives events with FastAPI (PORT, 8500)",
    "webhooks-django": "the same with Django",
    "webhooks-express": "the same with Express, on Node",
    "webhooks-go": "the same in Go",
}
DEFAULT_PORTS = {"chat": 8400}


def main() -> int:
    listed = "\n".join(f"  {name:18}{about}" for name, about in EXAMPLES.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=listed, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=EXAMPLES, metavar="NAME")
    parser.add_argument(
        "--no-install", action="store_true", help="use this Python and what is there"
    )
    parser.add_argument("words", nargs="*", help="for the example")
    asked = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, _end)
    environment = {**os.environ, **gateway()}
    port = int(os.environ.get("PORT") or DEFAULT_PORTS.get(asked.name, 8500))
    environment["PORT"] = str(port)
    command, folder = command_of(asked.name, asked.words, port, install=not asked.no_install)
    with ExitStack() as running:
        if asked.name in ("chat", "rag") and not os.environ.get("MODEL_URL"):
            environment["MODEL_URL"] = running.enter_context(fake_model())
        if asked.name.startswith("webhooks-"):
            environment["WEBHOOK_SECRET"] = running.enter_context(webhook(environment, port))
        child = running.enter_context(process(command, folder, environment))
        return child.wait()


def _end(*_: object) -> None:
    raise KeyboardInterrupt


def gateway() -> dict[str, str]:
    """Where it is, and a key of it."""
    demo = ROOT / "var" / "demo.json"
    known: dict[str, str] = {}
    if os.environ.get("GATEWAY_API_KEY"):
        known["GATEWAY_API_KEY"] = os.environ["GATEWAY_API_KEY"]
        known["GATEWAY_URL"] = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")
    elif demo.exists():
        facts = json.loads(demo.read_text())
        known = {"GATEWAY_URL": facts["base_url"], "GATEWAY_API_KEY": facts["api_key"]}
    else:
        sys.exit("Start `make run` in another terminal, or set GATEWAY_URL and GATEWAY_API_KEY.")
    try:
        urlopen(f"{known['GATEWAY_URL']}/health/live", timeout=10).close()
    except (URLError, TimeoutError) as error:
        sys.exit(f"No gateway answers at {known['GATEWAY_URL']} ({error}). Start `make run`.")
    return known


def command_of(name: str, words: list[str], port: int, *, install: bool) -> tuple[list[str], Path]:
    """What starts it, and in which folder."""
    if name == "webhooks-go":
        return ["go", "run", "."], HERE / "webhooks" / "go"
    if name == "webhooks-express":
        folder = HERE / "webhooks" / "express"
        if install:
            subprocess.run(["npm", "ci", "--silent"], cwd=folder, check=True)
        return ["node", "server.js"], folder
    python = environment() if install else sys.executable
    if name == "webhooks-fastapi":
        folder = HERE / "webhooks" / "fastapi"
        server = [python, "-m", "uvicorn", "app:app", "--host", "127.0.0.1", "--port", str(port)]
        return [*server, "--log-level", "warning"], folder
    file = {
        "chat": "chat/app.py",
        "rag": "rag/pipeline.py",
        "webhooks-django": "webhooks/django/app.py",
    }
    return [python, str(HERE / file[name]), *words], ROOT


def environment() -> str:
    """The Python of examples/.venv, which has the library and what requirements.txt pins."""
    python, wanted = VENV / "bin" / "python", HERE / "requirements.txt"
    stamp = VENV / ".made"
    if not stamp.exists() or stamp.stat().st_mtime < wanted.stat().st_mtime:
        print("Installing requirements.txt and the Python library into examples/.venv", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        subprocess.run([*pip, "--require-hashes", "-r", str(wanted)], check=True)
        subprocess.run([*pip, "--no-deps", str(SDK / "python")], check=True)
        stamp.touch()
    return str(python)


@contextmanager
def process(
    command: list[str], folder: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    # A group of its own: `go run` starts the program as a child, which would outlive it.
    child = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
    try:
        yield child
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            child.wait(10)


@contextmanager
def fake_model() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "HOST": "127.0.0.1", "PORT": str(port)}
    with process([sys.executable, str(HERE / "fake_model.py")], HERE, environment):
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        print("MODEL_URL is not set: a model that only repeats answers instead", flush=True)
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def webhook(environment: dict[str, str], port: int) -> Iterator[str]:
    """A webhook at the receiver, for as long as it runs; its secret."""
    body = {"url": f"http://127.0.0.1:{port}/hook", "events": ["detection.flagged"]}
    made = call(environment, "POST", "/webhooks/register", body)
    print("Registered a webhook for detection.flagged; now detect something", flush=True)
    try:
        yield made["secret"]
    finally:
        call(environment, "DELETE", f"/webhooks/{made['id']}")


def call(
    environment: dict[str, str], method: str, path: str, body: object = None
) -> dict[str, str]:
    request = Request(
        environment["GATEWAY_URL"] + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "X-API-Key": environment["GATEWAY_API_KEY"],
            "Content-Type": "application/json",
        },
    )
    try:
        with urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"{}")
    except HTTPError as error:
        problem = json.loads(error.read())
        reasons = [f"{one['field']}: {one['message']}" for one in problem["errors"]]
        hint = "To send to this machine, start it with WEBHOOK_ALLOWED_NETWORKS=127.0.0.0/8."
        sys.exit("\n".join([f"{method} {path}: {problem['detail']}", *reasons, hint]))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
