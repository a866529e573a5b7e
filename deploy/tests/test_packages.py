"""`deploy/packages.py`: by uv where uv can be told what pip is told, by pip otherwise."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from deploy import packages
from deploy.tests.test_locks import ROOT

LISTED = """\
:env:.default-timeout='180'
:env:.disable-pip-version-check='1'
:env:.find-links='/wheels /more'
freeze.all='true'
global.cert='/ca.pem'
global.find-links='/elsewhere'
global.index-url='https://user:it%27s@host/simple'
install.trusted-host='\\none.example\\ntwo.example'
"""


def test_what_pip_is_told_is_read_with_what_wins() -> None:
    assert packages.pip_settings(LISTED) == {
        "cert": "/ca.pem",
        "default-timeout": "180",
        "disable-pip-version-check": "1",
        "find-links": "/wheels /more",
        "index-url": "https://user:it%27s@host/simple",
        "trusted-host": "\none.example\ntwo.example",
    }


def test_uv_is_told_the_same() -> None:
    flags, variables = packages.uv_options(packages.pip_settings(LISTED), "23.2")

    assert sorted(zip(flags[::2], flags[1::2], strict=True)) == [
        ("--allow-insecure-host", "one.example"),
        ("--allow-insecure-host", "two.example"),
        ("--cert", "/ca.pem"),
        ("--default-index", "https://user:it%27s@host/simple"),
        ("--find-links", "/more"),
        ("--find-links", "/wheels"),
    ]
    assert variables == {"UV_HTTP_TIMEOUT": "180"}


@pytest.mark.parametrize(
    ("settings", "pip", "flags"),
    [
        ({"no-index": "true", "no-cache-dir": "1"}, "23.2", ["--no-index", "--no-cache"]),
        ({"no-index": "false"}, "23.2.1", []),
        ({}, "25.0", ["--system-certs"]),
        ({"cert": "/a"}, "25.0", ["--cert", "/a"]),
        (
            {"extra-index-url": "https://a/ https://b/"},
            "24.0",
            [*("--index", "https://a/", "--index", "https://b/"), "--index-strategy",
             "unsafe-best-match"],
        ),
    ],
)  # fmt: skip
def test_what_is_no_single_flag(settings: dict[str, str], pip: str, flags: list[str]) -> None:
    assert packages.uv_options(settings, pip)[0] == flags


def test_uv_knows_every_flag_that_it_is_given() -> None:
    uv = Path(sys.executable).with_name("uv")
    text = subprocess.check_output([uv, "pip", "install", "--help"], text=True)

    for flag in (*packages.FLAGS.values(), *packages.SWITCHES.values(), "--system-certs"):
        assert f"{flag} " in text or f"{flag}\n" in text, f"uv has no {flag}"


def make_wheel(folder: Path, name: str) -> str:
    """A wheel with one module; the line of a lock that names it."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={urlsafe_b64encode(digest).decode().rstrip('=')},{len(text)}\n"
        for path, text in files.items()
        for digest in [hashlib.sha256(text.encode()).digest()]
    )
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"{name}==1.0 --hash=sha256:{digest}\n"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip is told of, and of nothing else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.mark.parametrize(
    ("variable", "by"),
    [("PIP_QUIET", "uv"), ("PIP_CONSTRAINT", "pip")],
)
def test_pips_folder_is_enough_and_what_uv_cannot_be_told_pip_does(
    wheels: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    variable: str,
    by: str,
) -> None:
    lock, none = tmp_path / "lock.txt", tmp_path / "none.txt"
    lock.write_text(make_wheel(wheels, "needle"))
    none.touch()
    monkeypatch.setenv(variable, "1" if by == "uv" else str(none))
    uv, folder = Path(sys.executable).with_name("uv"), tmp_path / "venv"
    subprocess.run([uv, "venv", "--quiet", f"--python={sys.executable}", folder], check=True)

    packages.install(lock, folder / "bin/python", is_compiled=False)

    [installer] = folder.glob("lib/python*/site-packages/needle-1.0.dist-info/INSTALLER")
    assert installer.read_text().strip() == by
    output = capfd.readouterr().out
    assert output == ("" if by == "uv" else (
        "uv has nothing for pip's setting `constraint`; so pip does it, which takes longer.\n"
    ))  # fmt: skip


def test_without_uv_pip_does_it_and_what_no_lock_names_goes(wheels: Path, tmp_path: Path) -> None:
    lock, older = tmp_path / "lock.txt", tmp_path / "older.txt"
    lock.write_text(make_wheel(wheels, "needle"))
    older.write_text(make_wheel(wheels, "left_over"))
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "-q", "install", "-r", older], check=True)

    done = subprocess.run(
        [python, ROOT / "deploy/packages.py", lock, "--only"], capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert "uv does not come" in done.stdout
    assert f"Removing what {lock} does not name: left-over\n" in done.stdout
    code = "import needle, importlib.util as i; print(i.find_spec('left_over'))"
    assert subprocess.check_output([python, "-c", code], text=True) == "None\n"
