"""`make sdk-test`: every library against the vectors, then against a gateway that is served.

What is not on this machine is left out with a sentence. Exit code 1: something failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SDKS = Path(__file__).resolve().parent
ROOT = SDKS.parent
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:randomly")


def run(*command: str, folder: Path = ROOT, **environment: str) -> bool:
    print("→", *command[-3:], flush=True)
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, check=False)
    return done.returncode == 0


def main() -> int:
    languages, is_well = ["python"], True
    is_well &= run(*PYTEST, "sdks/python/tests")
    if shutil.which("go"):
        languages.append("go")
        is_well &= run("go", "vet", "./...", folder=SDKS / "go")
        is_well &= run("go", "test", "./...", folder=SDKS / "go")
    else:
        print("Go is not on the path: sdks/go is left out.")
    if shutil.which("npm"):
        languages.append("typescript")
        folder = SDKS / "typescript"
        is_well &= run("npm", "ci", "--no-audit", "--no-fund", "--silent", folder=folder)
        is_well &= run("npm", "test", "--silent", folder=folder)
    else:
        print("npm is not on the path: sdks/typescript is left out.")
    served = ("deploy/services.py", "run", "--", *PYTEST, "gateway_project/tests/test_sdks.py")
    is_well &= run(sys.executable, *served, SDK_LANGUAGES=",".join(languages))
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
