"""Make clients of a served gateway by other people's generators, and call it with each.

`make clients`: the document is linted, clients are generated from it, compiled as strictly as their
compilers can, and run. What that takes is installed into a folder that is gone afterwards, in the
versions that stand here and in the locks beside. Ends with a table, and with 1 when a cell failed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OAPI_CODEGEN = "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2"
NEEDED = {"node": "Node.js", "npm": "Node.js", "go": "Go"}
CALLS = (
    *("detect", "batch", "queued batch", "async job", "policy", "webhooks", "limits", "keys"),
    *("log and feedback", "errors"),
)
READY_SECONDS = 180


@dataclass(frozen=True)
class Client:
    """How one is made: the commands in their folder, one after the other."""

    name: str
    folder: str
    generate: tuple[str, ...]
    compile: tuple[str, ...]
    call: tuple[str, ...]
    done: dict[str, bool] = field(default_factory=dict)

    def has_passed(self) -> bool:
        return all(self.done.get(row) for row in ("generate", "compile", *CALLS))


def clients(tools: Path) -> list[Client]:
    python = str(tools / "python-env/bin/python")
    bin_ = tools / "node_modules/.bin"
    tsc = (str(bin_ / "tsc"), "--project", ".")
    return [
        Client(
            "openapi-python-client",
            "python",
            (
                *(
                    str(tools / "python-env/bin/openapi-python-client"),
                    "generate",
                    "--meta",
                    "none",
                ),
                *("--path", "../openapi.json", "--output-path", "gateway_client", "--overwrite"),
            ),
            (python, "-m", "mypy", "--strict", "--follow-imports", "silent", "calls.py"),
            (python, "calls.py"),
        ),
        Client(
            "openapi-typescript",
            "fetch",
            (str(bin_ / "openapi-typescript"), "../openapi.json", "-o", "schema.d.ts"),
            tsc,
            ("node", "out/calls.js"),
        ),
        Client(
            "@hey-api/openapi-ts",
            "hey",
            (str(bin_ / "openapi-ts"), "-i", "../openapi.json", "-o", "client"),
            tsc,
            ("node", "out/calls.js"),
        ),
        Client(
            "oapi-codegen",
            "go",
            (str(tools / "bin/oapi-codegen"), "-config", "oapi-codegen.yaml", "../openapi.json"),
            ("sh", "-c", "go vet ./... && go build -o calls ."),
            ("./calls",),
        ),
    ]


def main() -> int:
    if missing := sorted({NEEDED[name] for name in NEEDED if shutil.which(name) is None}):
        print(f"`make clients` needs {' and '.join(missing)}. Install it and try again.")
        return 1
    with tempfile.TemporaryDirectory(prefix="gateway-clients-") as name:
        folder = Path(name)
        shutil.copytree(HERE, folder, dirs_exist_ok=True)
        (folder / "go/gateway").mkdir()
        if not install(folder):
            return 1
        with served(folder) as environment:
            return make_all(folder, environment)


def install(folder: Path) -> bool:
    uv = str(Path(sys.prefix) / "bin/uv")
    python = str(folder / "python-env")
    go = {"GOBIN": str(folder / "bin"), "GOFLAGS": "-mod=mod"}
    steps: list[tuple[str, list[str], dict[str, str]]] = [
        ("generators of npm", ["npm", "ci", "--no-fund", "--no-audit", "--ignore-scripts"], {}),
        ("a Python environment", [uv, "venv", "--quiet", "--python", sys.executable, python], {}),
        (
            "generators of PyPI",
            [uv, "pip", "install", "--quiet", "--python", python, "-r", "requirements.txt"],
            {},
        ),
        ("oapi-codegen", ["go", "install", OAPI_CODEGEN], go),
    ]
    for what, command, more in steps:
        print(f"Installing {what}", flush=True)
        if not run(command, folder, more):
            return False
    return True


@contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """A gateway of this checkout with a demo account; how its clients find it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    var = folder / "var"
    environment = {**os.environ, "VAR_DIR": str(var), "PORT": str(port)}
    print(f"Starting a gateway on :{port}", flush=True)
    with (folder / "gateway.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "run"],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        document = wait_for(process, f"{url}/openapi.json", folder)
        (folder / "openapi.json").write_bytes(document)
        demo = json.loads((var / "demo.json").read_text())
        yield {"GATEWAY_URL": url, "GATEWAY_KEY": demo["api_key"]}
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def wait_for(process: subprocess.Popen[bytes], url: str, folder: Path) -> bytes:
    ends = time.monotonic() + READY_SECONDS
    while time.monotonic() < ends and process.poll() is None:
        try:
            with urlopen(url, timeout=10) as answer:
                found: bytes = answer.read()
                return found
        except OSError:
            time.sleep(0.5)
    sys.exit(f"The gateway did not start:\n{(folder / 'gateway.log').read_text()[-2000:]}")


def make_all(folder: Path, environment: dict[str, str]) -> int:
    bin_ = folder / "node_modules/.bin"
    lints = {
        "redocly": [
            *(str(bin_ / "redocly"), "lint", "openapi.json", "--max-problems", "20"),
            *("--config", str(ROOT / "redocly.yaml")),
        ],
        "spectral": [
            *(str(bin_ / "spectral"), "lint", "openapi.json", "--fail-severity", "warn"),
            *("--ruleset", str(ROOT / ".spectral.yaml")),
        ],
    }
    linted = {}
    for name, command in lints.items():
        print(f"Linting with {name}", flush=True)
        linted[name] = run(command, folder, {"REDOCLY_TELEMETRY": "off"}, refused="You have")
    made = clients(folder)
    for client in made:
        print(f"Making and calling with {client.name}", flush=True)
        make(client, folder, environment)
    show(linted, made)
    return 0 if all(linted.values()) and all(client.has_passed() for client in made) else 1


def make(client: Client, folder: Path, environment: dict[str, str]) -> None:
    at = folder / client.folder
    for row, command in (("generate", client.generate), ("compile", client.compile)):
        client.done[row] = run(list(command), at, {})
        if not client.done[row]:
            return
    found = subprocess.run(
        client.call, cwd=at, env={**os.environ, **environment}, capture_output=True, text=True
    )
    client.done.update(dict.fromkeys(found.stdout.splitlines(), True))
    if found.returncode:
        print(found.stderr, file=sys.stderr)


def run(command: list[str], at: Path, more: dict[str, str], *, refused: str = "\0") -> bool:
    """Whether it ended well, and never said `refused`; else what it said is shown."""
    done = subprocess.run(
        command,
        cwd=at,
        env={**os.environ, "CI": "true", "NO_COLOR": "1", **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    is_fine = done.returncode == 0 and refused not in done.stdout
    if not is_fine:
        print(f"{' '.join(command)}\n{done.stdout[-5000:]}", file=sys.stderr)
    return is_fine


def show(linted: dict[str, bool], made: list[Client]) -> None:
    def mark(is_fine: bool) -> str:
        return "ok" if is_fine else "FAILED"

    widths = [len(client.name) for client in made]
    print("\n" + "  ".join(f"{name}: {mark(is_fine)}" for name, is_fine in linted.items()))
    print(f"{'':18}" + "  ".join(client.name for client in made))
    for row in ("generate", "compile", *CALLS):
        cells = (
            f"{mark(client.done.get(row, False)):{w}}"
            for client, w in zip(made, widths, strict=True)
        )
        print(f"{row:18}" + "  ".join(cells))


if __name__ == "__main__":
    sys.exit(main())
