"""Make `_client.py` of `_async_client.py`: the same client, without asyncio.

    python sdks/python/generate.py [--check]

With `--check` nothing is written; exit code 1: they differ.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "src" / "gateway_guard"
SOURCE, MADE = FOLDER / "_async_client.py", FOLDER / "_client.py"
WORDS = {
    r"\bAsyncIterator\b": "Iterator",
    r"\bhttpx\.AsyncClient\b": "httpx.Client",
    r"\bAsync(Client|Batches|Keys|Policies|Requests|Webhooks)\b": r"\1",
    r"\basync (def|for|with)\b": r"\1",
    r"\bawait ": "",
    r"\b__aenter__\b": "__enter__",
    r"\b__aexit__\b": "__exit__",
    r"\baclose\b": "close",
    r"\baiter_raw\b": "iter_raw",
    r"\basyncio\.sleep\b": "time.sleep",
    r"^import asyncio\n": "",
}
HEAD = '"""The client. Made by `generate.py` of `_async_client.py`: change that one."""'


def made() -> str:
    text = SOURCE.read_text()
    for pattern, word in WORDS.items():
        text = re.sub(pattern, word, text, flags=re.MULTILINE)
    text = re.sub(r'\A""".*?"""', HEAD, text, flags=re.DOTALL)
    text = _ruff(["check", "--fix", "--quiet", "--select", "I"], text)
    return _ruff(["format"], text)


def _ruff(command: list[str], text: str) -> str:
    return subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(MADE), "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def main() -> int:
    if "--check" in sys.argv:
        return int(MADE.read_text() != made())
    MADE.write_text(made())
    return 0


if __name__ == "__main__":
    sys.exit(main())
