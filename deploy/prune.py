"""Take out of an environment what no process of ours reads: `python deploy/prune.py /venv`.

Tests, sources and headers of compiled parts, stubs, static files (`collectstatic` has copied them)
and languages that our pages do not speak; and, where there is `strip`, the names
for debuggers in what packages compiled. Only what packages brought is touched.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ENDINGS = (".po", ".pot", ".pyx", ".pxd", ".pxi", ".c", ".cpp", ".h", ".hpp", ".pyi", ".map")
SPOKEN = ("en", "en_US", "de")  # the settings' LANGUAGES: the build has no settings to ask


def prune(environment: Path) -> int:
    """Bytes that went."""
    [packages] = environment.glob("lib/python*/site-packages")
    before = _size(packages)
    for folder in [*packages.rglob("tests"), *packages.rglob("static")]:
        is_code = folder.name == "static" and (folder / "__init__.py").exists()  # Celery has one
        if folder.is_dir() and not is_code:
            shutil.rmtree(folder)
    for path in list(packages.rglob("*")):
        is_foreign = path.suffix == ".mo" and path.parent.parent.name not in SPOKEN
        if path.is_file() and (path.suffix in ENDINGS or is_foreign):
            path.unlink()
    if shutil.which("strip"):
        # Not the libraries beside (`.libs`), which were edited so that they are found there.
        compiled = [path for path in packages.rglob("*.so") if ".libs" not in str(path.parent)]
        for path in compiled:
            subprocess.run(["strip", "--strip-unneeded", str(path)], check=True)
    return before - _size(packages)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    print(f"{prune(Path(sys.argv[1])) / 1e6:.0f} MB of the packages are left out")
