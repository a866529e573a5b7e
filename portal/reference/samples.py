"""How an operation is called: as commands and programs that run as they stand.

What differs by reader, the address of the gateway and the name of their key, stands in them as
`BASE` and `KEY`, so that all else is made once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from portal.reference.document import JSON, Operation

BASE, KEY = "@@base@@", "@@key@@"
PYTHON = {"true": "True", "false": "False", "null": "None"}
TOKEN = "$ACCESS_TOKEN"  # noqa: S105 - a name


class Sample(NamedTuple):
    language: str
    title: str
    code: str


def samples_of(operation: Operation) -> Iterator[Sample]:
    yield Sample("curl", "curl", _curl(operation))
    yield Sample("python", "Python", _python(operation))
    yield Sample("javascript", "JavaScript", _javascript(operation))


def _credential(operation: Operation) -> tuple[str, str] | None:
    if operation.takes_key:
        return "X-API-Key", KEY
    return ("Authorization", f"Bearer {TOKEN}") if operation.takes_token else None


def _curl(operation: Operation) -> str:
    address = f"{BASE}{operation.path_sample}"
    quoted = f"'{address}'" if "?" in address else address
    # `-d` makes a POST by itself.
    method, has_body = operation.method, operation.body_kind == JSON
    is_plain = method == "GET" or (method == "POST" and has_body)
    parts = [f"curl -s {quoted}" if is_plain else f"curl -s -X {operation.method} {quoted}"]
    if credential := _credential(operation):
        parts.append(f'-H "{credential[0]}: {credential[1]}"')
    if operation.body_kind == JSON:
        parts.append(f"-H 'Content-Type: {JSON}'")
        body = operation.body_sample.replace("'", "'\\''")
        parts.append(f"-d '{body}'")
    return " \\\n  ".join(parts)


def _python(operation: Operation) -> str:
    lines = ["import httpx", "", f"answer = httpx.{operation.method.lower()}"]
    arguments = [f'"{BASE}{operation.path_sample}"']
    if credential := _credential(operation):
        arguments.append(f'headers={{"{credential[0]}": "{credential[1]}"}}')
    if operation.body_kind == JSON:
        arguments.append(f"json={_indented(_literal(operation.body_sample))}")
    lines[-1] += "(\n    " + ",\n    ".join(arguments) + ",\n)"
    return "\n".join([*lines, "answer.raise_for_status()", "print(answer.json())"])


def _literal(text: str) -> str:
    """JSON as Python writes it."""
    return re.sub(r"(?<=[:\[ ] )(true|false|null)\b", lambda found: PYTHON[found[1]], text)


def _javascript(operation: Operation) -> str:
    options = [f'method: "{operation.method}"']
    headers = []
    if credential := _credential(operation):
        headers.append(f'"{credential[0]}": "{credential[1]}"')
    if operation.body_kind == JSON:
        headers.append(f'"Content-Type": "{JSON}"')
    if headers:
        options.append("headers: { " + ", ".join(headers) + " }")
    if operation.body_kind == JSON:
        options.append(f"body: JSON.stringify({_indented(operation.body_sample, 2)})")
    inner = ",\n  ".join(options)
    address = json.dumps(f"{BASE}{operation.path_sample}")
    return (
        f"const answer = await fetch({address}, {{\n  {inner},\n}});\n"
        "console.log(answer.status, await answer.json());"
    )


def _indented(text: str, by: int = 4) -> str:
    return text.replace("\n", "\n" + " " * by)
