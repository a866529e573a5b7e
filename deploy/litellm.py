"""LiteLLM's proxy, each version in an environment of its own: `.venv/bin/python -m deploy.litellm`.

It needs a hundred packages that are not ours, so nothing of it is in our locks. An environment is
built once, inside our own; `.ready` is there when it is whole.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

# The newest, and the newest that a mirror without the packages below can install as it is.
VERSIONS = ("1.110.2", "1.108.7")
# Pages and commands of LiteLLM's own, pinned to versions that mirrors may lack: then another, or
# none. The proxy itself does without.
COMPANIONS = "litellm-proxy; sys_platform == 'never'\nlitellm-proxy-extras\nlitellm-enterprise\n"
SECONDS_MAX = 600
HOME = Path(sys.prefix).resolve()


class NotInstallableError(Exception):
    """Why not, as a sentence."""


def program(version: str) -> Path:
    """The proxy's command, built if it is not there yet. Raises `NotInstallableError`."""
    folder = HOME / f"litellm-{version}"
    ready = folder / ".ready"
    with Path(HOME / ".litellm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes side by side
        if not ready.exists():
            _build(folder, version)
            ready.touch()
    return folder / "bin" / "litellm"


def _build(folder: Path, version: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    uv = HOME / "bin" / "uv"
    _run(uv, "venv", "--python", sys.executable, folder)
    python = folder / "bin" / "python"
    install = (uv, "pip", "install", "--python", python, f"litellm[proxy]=={version}")
    try:
        _run(*install)
    except NotInstallableError:
        overrides = folder / "overrides.txt"
        overrides.write_text(COMPANIONS)
        _run(*install, "--overrides", overrides)


def _run(*command: str | Path) -> None:
    # Ours would be found first.
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
    try:
        subprocess.run(
            [str(word) for word in command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=True,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NotInstallableError(f"{type(exc).__name__} of {command[0]}") from exc
    except subprocess.CalledProcessError as exc:
        last = exc.stderr.strip().splitlines()[-1:]
        raise NotInstallableError(" ".join(last)) from exc


if __name__ == "__main__":
    for one in VERSIONS:
        try:
            print(program(one))
        except NotInstallableError as exc:  # its tests are skipped, and say so as well
            print(f"LiteLLM {one} cannot be installed here: {exc}", file=sys.stderr)
