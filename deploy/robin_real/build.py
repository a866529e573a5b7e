"""Build Robin and Robin UI from checkouts, or say what is missing and where it comes from."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

JAVA_MIN, NODE_MIN = 21, 20
JAVA_FOLDERS = Path("/usr/lib/jvm")
FONTS_HOST = "fonts.googleapis.com"
FONT_LINK = re.compile(r"\s*<link[^>]*fonts\.(?:googleapis|gstatic)\.com[^>]*>")


class Missing(Exception):
    """The run cannot begin; the message says what to install, in a sentence."""


@dataclass(frozen=True)
class Jdk:
    home: Path
    version: int

    @property
    def java(self) -> str:
        return str(self.home / "bin/java")


def find_jdk(environment: Mapping[str, str] = os.environ) -> Jdk:
    """The one of JAVA_HOME, or the newest that is installed."""
    found = [jdk for home in _homes(environment) if (jdk := _jdk_of(home)) is not None]
    if not found:
        raise Missing(
            f"Robin needs a JDK, {JAVA_MIN} or newer, and no JDK was found. Install one (Debian "
            f"13: apt-get install openjdk-{JAVA_MIN}-jdk-headless; anywhere: Eclipse Temurin), or "
            "name its folder: JAVA_HOME=/path make robin-real …"
        )
    best = max(found, key=lambda jdk: jdk.version)
    if best.version < JAVA_MIN:
        raise Missing(
            f"Robin needs a JDK, {JAVA_MIN} or newer; {best.home} is {best.version}. Install one "
            "beside it (Eclipse Temurin, or your system's package), and name its folder: "
            "JAVA_HOME=/path make robin-real …"
        )
    return best


def _homes(environment: Mapping[str, str]) -> Iterable[Path]:
    if named := environment.get("JAVA_HOME"):
        return [Path(named)]
    homes = {path.parents[1] for path in JAVA_FOLDERS.glob("*/bin/javac")}
    if javac := shutil.which("javac", path=environment.get("PATH")):
        homes.add(Path(javac).resolve().parents[1])
    return sorted(homes)


def _jdk_of(home: Path) -> Jdk | None:
    if not (home / "bin/javac").exists():
        return None
    answer = _output_of(str(home / "bin/javac"), "-version")
    version = re.search(r"javac (\d+)", answer)
    return Jdk(home, int(version[1])) if version else None


def check_node(environment: Mapping[str, str] = os.environ) -> None:
    node, npm = (shutil.which(name, path=environment.get("PATH")) for name in ("node", "npm"))
    version = re.match(r"v(\d+)", _output_of(node, "--version")) if node else None
    if npm and version and int(version[1]) >= NODE_MIN:
        return
    there = f"here is {version[0]}" if version else "none was found"
    raise Missing(
        f"Robin UI needs Node {NODE_MIN} or newer with npm, and {there}. Install it (your system's "
        "package nodejs, or nodejs.org), or leave UI away: make robin-real ROBIN=…"
    )


def check_maven(environment: Mapping[str, str] = os.environ) -> None:
    if shutil.which("mvn", path=environment.get("PATH")) is None:
        raise Missing(
            "Robin is built by Maven, and there is no mvn here. Install it (Debian: apt-get "
            "install maven; anywhere: maven.apache.org)."
        )


def check_checkout(folder: Path, file: str, project: str) -> None:
    if not (folder / file).exists():
        raise Missing(
            f"{folder} is no checkout of {project}: it has no {file}. Make one: git clone "
            f"https://github.com/{project}"
        )


def _output_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def build_robin(checkout: Path, jdk: Jdk, log: Path, more: list[str]) -> None:
    """`more` are arguments for Maven: `-Dmicrometer.version=…`, where a registry lacks one."""
    if (checkout / "target/robin.jar").exists():
        return
    command = ["mvn", "-B", "-q", "package", "-Dmaven.test.skip=true", *more]
    _run(command, checkout, log, {"JAVA_HOME": str(jdk.home)})


def class_path(checkout: Path) -> str:
    return f"{checkout / 'target/robin.jar'}:{checkout / 'target/classes/lib'}/*"


def build_ui(checkout: Path, output: Path, log: Path) -> None:
    """The production build of its unchanged source, into `output`.

    It fetches a font from Google and writes it into the page. Where that host is not to be had, the
    build would fail: then its page is taken without the link.
    """
    if (output / "index.html").exists():
        return
    if not (checkout / "node_modules").exists():
        _run(
            ["npm", "ci", "--no-audit", "--no-fund"], checkout, log, {"CYPRESS_INSTALL_BINARY": "0"}
        )
    command = ["npx", "ng", "build", "--configuration", "production"]
    command += ["--output-path", os.path.relpath(output, checkout)]
    if not _is_reachable(FONTS_HOST):
        index = output.parent / "index.html"
        index.write_text(FONT_LINK.sub("", (checkout / "src/index.html").read_text()))
        command += ["--index", os.path.relpath(index, checkout)]
    _run(command, checkout, log, {"NG_CLI_ANALYTICS": "false"})


def _is_reachable(host: str) -> bool:
    try:
        socket.create_connection((host, 443), timeout=5).close()
    except OSError:
        return False
    return True


def _run(command: list[str], folder: Path, log: Path, environment: dict[str, str]) -> None:
    print(f"{' '.join(command)} (its words: {log})", flush=True)
    with log.open("a") as output:
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **environment}, stdout=output, stderr=output
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise Missing(f"{command[0]} ended with code {done.returncode} in {folder}:\n{tail}")
