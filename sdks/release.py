"""One version of all client libraries.

    python sdks/release.py --check [VERSION]
    python sdks/release.py VERSION

With `--check` nothing is written; exit code 1: they differ, or one changelog says nothing of it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

SDKS = Path(__file__).resolve().parent
PLACES = {
    "python/pyproject.toml": r'(?m)^(version = ")([^"]+)(")',
    "python/src/gateway_guard/version.py": r'(VERSION = ")([^"]+)(")',
    "typescript/package.json": r'("version": ")([^"]+)(")',
    "typescript/package-lock.json": r'(\A\{\s*"name": "[^"]+",\s*"version": ")([^"]+)(")',
    "typescript/src/client.ts": r'(VERSION = ")([^"]+)(")',
    "go/client.go": r'(Version = ")([^"]+)(")',
}
"""Where it stands, and how it is found there: the second group."""
CHANGELOGS = ("python/CHANGELOG.md", "typescript/CHANGELOG.md", "go/CHANGELOG.md")
NUMBERS = re.compile(r"\d+\.\d+\.\d+(?:-?(?:a|b|rc)\.?\d+)?\Z")


def versions() -> dict[str, str]:
    found = {}
    for name, pattern in PLACES.items():
        match = re.search(pattern, (SDKS / name).read_text())
        found[name] = match[2] if match else "none"
    return found


def wrong(wanted: str | None) -> list[str]:
    """What does not fit, as sentences."""
    found = versions()
    wanted = wanted or found["python/pyproject.toml"]
    problems = [
        f"sdks/{name} says {one}, not {wanted}." for name, one in found.items() if one != wanted
    ]
    for name in CHANGELOGS:
        if not re.search(rf"(?m)^## {re.escape(wanted)}\b", (SDKS / name).read_text()):
            problems.append(f"sdks/{name} has no section of {wanted}.")
    return problems


def write(version: str) -> None:
    for name, pattern in PLACES.items():
        path = SDKS / name
        # The lock says it twice at its head: of the package, and of its root.
        count = 2 if name.endswith("lock.json") else 1
        text = re.sub(pattern, rf"\g<1>{version}\g<3>", path.read_text(), count=1)
        if count == 2:
            text = re.sub(
                r'("": \{\s*"name": "[^"]+",\s*"version": ")([^"]+)(")',
                rf"\g<1>{version}\g<3>",
                text,
                count=1,
            )
        path.write_text(text)


def main(arguments: list[str]) -> int:
    is_check = "--check" in arguments
    given = next((one for one in arguments if not one.startswith("-")), None)
    if given is not None and not NUMBERS.match(given):
        print(f"{given} is no version such as 1.2.3.", file=sys.stderr)
        return 2
    if not is_check:
        if given is None:
            print(__doc__, file=sys.stderr)
            return 2
        write(given)
    problems = wrong(given)
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
