"""`make sdk-test`: every library against the vectors, with the libraries that it is made for, as it
is installed, and against a gateway that is served.

So are the snippets of the guides, in all languages, and the examples, with what they install.

What is not on this machine is left out with a sentence. Exit code 1: something failed.

    python sdks/test.py [PART …]      python, integrations, go, typescript, served; default: all
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

SDKS = Path(__file__).resolve().parent
ROOT = SDKS.parent
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:randomly")
PARTS = ("python", "integrations", "go", "typescript", "served")
LOCK = SDKS / "python/tests/integrations/requirements.txt"


def run(*command: str, folder: Path = ROOT, **environment: str) -> bool:
    print("→", *command[-3:], flush=True)
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, check=False)
    return done.returncode == 0


def has(program: str, what: str) -> bool:
    found = shutil.which(program) is not None
    if not found:
        print(f"{program} is not on the path: {what} is left out.")
    return found


def integrations() -> bool:
    """With the libraries themselves, in an environment of their own that is made once."""
    digest = sha256(LOCK.read_bytes()).hexdigest()[:12]
    folder = Path(sys.prefix).resolve() / f"sdks-{digest}"
    python = folder / "bin/python"
    if not (folder / ".ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        uv = str(Path(sys.prefix) / "bin/uv")
        install = ("pip", "install", "--quiet", "--require-hashes", "--python", str(python))
        is_there = run(uv, "venv", "--quiet", "--python", sys.executable, str(folder)) and run(
            uv, *install, "-r", str(LOCK)
        )
        if not is_there:
            print("The libraries of others cannot be installed here: integrations are left out.")
            return True
        (folder / ".ready").touch()
    own = ("-c", "sdks/python/pyproject.toml", "--rootdir", "sdks/python", "sdks/python/tests")
    return run(str(python), "-m", "pytest", "-q", *own)


def go() -> bool:
    folder = SDKS / "go"
    vet, test = ("go", "vet", "./..."), ("go", "test", "-count=1", "./...")
    return run(*vet, folder=folder) & run(*test, folder=folder)  # no cache: it knows no vectors


def typescript() -> bool:
    folder = SDKS / "typescript"
    quiet = ("--no-audit", "--no-fund", "--silent")
    is_well = run("npm", "ci", *quiet, folder=folder) and run("npm", "test", *quiet, folder=folder)
    others = folder / "integrations"
    if not run("npm", "ci", *quiet, folder=others):
        print("The libraries of others cannot be installed here: integrations are left out.")
        return is_well
    return is_well & run("npm", "test", *quiet, folder=others)


def main(parts: list[str]) -> int:
    wanted = parts or list(PARTS)
    languages, is_well = ["python"], True
    if "python" in wanted:
        is_well &= run(*PYTEST, "sdks/python/tests")
    if "integrations" in wanted:
        is_well &= integrations()
    if has("go", "sdks/go"):
        languages.append("go")
        is_well &= "go" not in wanted or go()
    if has("npm", "sdks/typescript"):
        languages.append("typescript")
        is_well &= "typescript" not in wanted or typescript()
    if "served" in wanted:
        tests = (f"gateway_project/tests/test_{name}.py" for name in ("sdks", "guides", "examples"))
        served = ("deploy/services.py", "run", "--", *PYTEST, *tests)
        is_well &= run(sys.executable, *served, SDK_LANGUAGES=",".join(languages), EXAMPLES="1")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
