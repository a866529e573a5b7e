"""Build the image, start each of its roles, and say how large it is: `make image`.

    python -m deploy.image [--tag gateway:local] [--extra engine] [--postgresql-client 16]
                           [--only build|check]

With Docker, where there is one. Else with buildah, as root and without a daemon: then the base is
taken from its registry or, where none is reached, made of Debian's own packages (`debootstrap`)
under the name that the Dockerfile gives it. What is made lies in `IMAGE_FOLDER`
(`~/.cache/gateway-image`), outside of the checkout.

The check runs the image as its Dockerfile says: as a user without rights, on a root that cannot be
written, beside the PostgreSQL and the Redis that the environment names (`deploy/services.py`). With
a PostgreSQL client it makes a backup, too, and tries it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyrage

from deploy.make_secrets import make
from deploy.services import StopError, say

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("IMAGE_FOLDER", Path.home() / ".cache/gateway-image"))
ABOVE_BASE_MB_MAX = 180
GRACE_SECONDS = 40  # of docker-compose.yml
PULL_SECONDS = 120
TOOLS = ("buildah", "debootstrap")
# Debian's packages that make a Python as the base has it, and the base's names of programs.
DEBIAN = ("python3", "python3-venv", "python3-pip", "ca-certificates")
NAMES = {"python": "python3", "pip": "pip3"}
# What the build asks a registry of packages with: this machine's, where it has its own.
MACHINES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")
FORBIDDEN = re.compile(
    r"/(site|dist)-packages/(pip|setuptools|pkg_resources|wheel)/|/ensurepip/|/python-wheels/"
    r"|/bin/(pip[\d.]*|wheel)$"
    r"|/venv/.*/site-packages/(pytest|_pytest|mypy|ruff|moto|hypothesis)/"
    r"|/venv/.*/site-packages/.*/tests/|/app/.*/tests/|/app/(\.git|\.env|secrets|var/secrets)"
    r"|/usr/bin/(gcc|g\+\+|cc|make)$"
)


def run(command: Sequence[str], **options: Any) -> str:
    done: Any = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        raise StopError(f"{' '.join(command[:4])} …: {(done.stdout + done.stderr)[-3000:]}")
    return str(done.stdout)


def base_name() -> str:
    names = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return str(names[-1])


class Running(Protocol):
    """A container in the foreground."""

    def output(self) -> str: ...

    def is_over(self) -> bool: ...

    def wait(self, seconds: float) -> int:
        """Its exit code. Raises `StopError` when it takes longer."""
        ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...


@dataclass
class Process:
    """Of a container: what shows its output, and how it is told to stop."""

    process: subprocess.Popen[bytes]
    log: Path
    stop_command: Sequence[str] = ()
    """A command that stops it; none: a signal to the process itself."""
    ended: Sequence[str] = ()
    """A command that leaves nothing of it, where the process is not the container itself."""

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def wait(self, seconds: float) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise StopError(f"it runs on after {seconds} s:\n{self.output()[-2000:]}") from None

    def stop(self) -> None:
        if self.stop_command:
            run(self.stop_command)
        else:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.ended:
            subprocess.run(self.ended, capture_output=True)  # mostly it is gone already


Start = Callable[[Sequence[str], Mapping[str, str], Path], Process]


class Docker:
    """By its daemon."""

    @staticmethod
    def is_here() -> bool:
        if not shutil.which("docker"):
            return False
        return not subprocess.run(["docker", "info"], capture_output=True).returncode

    def build(self, tag: str, arguments: Sequence[str]) -> None:
        run(["docker", "build", *arguments, "--tag", tag, "."], cwd=ROOT)

    def megabytes(self, name: str) -> float:
        look = ["docker", "image", "inspect", "--format", "{{.Size}}", name]
        with suppress(StopError):
            return int(run(look)) / 1e6
        run(["docker", "pull", "--quiet", name])  # BuildKit keeps the bases it takes to itself
        return int(run(look)) / 1e6

    @contextmanager
    def opened(self, tag: str, shared: Path) -> Iterator[tuple[Start, list[str]]]:
        """How to start its roles, and the paths of all its files."""
        # As root: some folders are open to nobody else.
        look = ["docker", "run", "--rm", "--user=0", "--entrypoint=find"]
        listed = run([*look, tag, "/", "-xdev"])

        def start(arguments: Sequence[str], env: Mapping[str, str], log: Path) -> Process:
            name = f"gateway-check-{os.getpid()}-{log.stem}"
            options = ["--rm", "--read-only", "--tmpfs=/tmp", "--network=host", "--cap-drop=ALL"]
            options += [f"--volume={shared}:{shared}", f"--name={name}"]
            own = [word for pair in env.items() for word in ("--env", "=".join(pair))]
            argv = ["docker", "run", *options, *own, tag, *arguments]
            stop = ["docker", "stop", f"--time={GRACE_SECONDS}", name]
            return _start(argv, log, stop, ["docker", "rm", "--force", name])

        yield start, listed.splitlines()


class Buildah:
    """Without a daemon, isolated by chroot alone: where no other container can be started, too."""

    @staticmethod
    def require() -> None:
        missing = [tool for tool in TOOLS if not shutil.which(tool)]
        if os.geteuid() != 0:
            raise StopError("without Docker this has to be root, and needs " + " and ".join(TOOLS))
        if missing:
            say(f"installing {' and '.join(missing)}")
            run(["apt-get", "update", "-qq"])
            run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing])

    def __call__(self, *arguments: str, **options: Any) -> str:
        storage = ("--root", str(FOLDER / "storage"), "--storage-driver", "vfs")
        return run(["buildah", *storage, *arguments], **options).strip()

    def build(self, tag: str, arguments: Sequence[str]) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        base = base_name()
        if not self._has(base):
            self._take(base)
        mounts = [f"--volume={path}:{path}:ro" for path in MACHINES if Path(path).exists()]
        say(f"building {tag} (a minute or two)")
        how = ("--isolation=chroot", "--network=host", "--pull-never", "--format=docker")
        self("build", *how, *mounts, *arguments, "--tag", tag, ".", cwd=ROOT)

    def megabytes(self, name: str) -> float:
        """Of all its layers, as they would be unpacked."""
        found = json.loads(self("inspect", "--type", "image", name))
        root = FOLDER / "storage"
        [listed] = [
            one
            for one in json.loads((root / "vfs-images/images.json").read_text())
            if one["id"] == found["FromImageID"]
        ]
        layers = {
            one["id"]: one for one in json.loads((root / "vfs-layers/layers.json").read_text())
        }
        size, layer = 0, listed["layer"]
        while layer:
            size += layers[layer]["diff-size"]
            layer = layers[layer].get("parent")
        return size / 1e6

    @contextmanager
    def opened(self, tag: str, shared: Path) -> Iterator[tuple[Start, list[str]]]:
        config = json.loads(self("inspect", "--type", "image", tag))["Docker"]["config"]
        container = self("from", "--pull-never", tag)
        try:
            root = Path(self("mount", container))
            for place in (shared, Path("/dev/shm")):
                (root / place.relative_to("/")).mkdir(parents=True, exist_ok=True)
            files = [f"/{path.relative_to(root)}" for path in root.rglob("*")]
            yield lambda *what: _in_chroot(root, config, shared, *what), files
        finally:
            self("umount", container)
            self("rm", container)

    def _has(self, name: str) -> bool:
        with suppress(StopError):
            self("inspect", "--type", "image", name)
            return True
        return False

    def _take(self, base: str) -> None:
        say(f"taking {base}")
        with suppress(StopError, subprocess.TimeoutExpired):
            self("pull", "--retry=0", base, timeout=PULL_SECONDS)
            return
        root = FOLDER / "base"
        if not (root / "usr/bin/python3").exists():
            release = base.rpartition("-")[2]
            say(f"making {base} of Debian's packages (five minutes, once)")
            shutil.rmtree(root, ignore_errors=True)
            include = f"--include={','.join(DEBIAN)}"
            run(["debootstrap", "--variant=minbase", include, release, str(root)])
        for name, program in NAMES.items():
            link = root / "usr/local/bin" / name
            link.unlink(missing_ok=True)
            link.symlink_to(f"/usr/bin/{program}")
        for left in (*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*")):
            if left.is_file():
                left.unlink()
        container = self("from", "scratch")
        self("add", "--quiet", container, str(root), "/")
        places = "PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
        self("config", "--env", places, "--cmd", "python3", container)
        self("commit", "--quiet", "--format=docker", container, base)
        self("rm", container)


def _in_chroot(
    root: Path,
    config: Mapping[str, Any],
    shared: Path,
    arguments: Sequence[str],
    env: Mapping[str, str],
    log: Path,
) -> Process:
    """As an engine of containers would, in a namespace of mounts that ends with the process."""
    user = config["User"]
    script = (
        f"set -e; mount --bind {root} {root}; mount -o remount,bind,ro {root}; "
        f"mount -t proc proc {root}/proc; mount -t tmpfs -o mode=1777 tmpfs {root}/tmp; "
        f"mount -t tmpfs -o mode=1777 tmpfs {root}/dev/shm; "
        f"mount --bind {shared} {root}{shared}; "
        f"exec chroot --userspec={user}:{user} --groups={user} {root} "
        f'sh -c \'cd "$0" && exec "$@"\' {config["WorkingDir"]} "$@"'
    )
    no_rights = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    inside = ["env", "-i", *config["Env"], *(f"{name}={value}" for name, value in env.items())]
    command = [*config["Entrypoint"], *(arguments or config["Cmd"])]
    return _start(
        ["unshare", "--mount", "sh", "-c", script, "sh", *no_rights, *inside, *command], log
    )


def _start(
    argv: Sequence[str], log: Path, stop_command: Sequence[str] = (), ended: Sequence[str] = ()
) -> Process:
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output, start_new_session=True)
    return Process(process, log, stop_command, ended)


# -- What has to be true of it --------------------------------------------------------------------


def examine(files: Sequence[str]) -> None:
    if found := [path for path in files if FORBIDDEN.search(path)]:
        raise StopError(f"{len(found)} files should not be in it, such as {found[:5]}")


def check(start: Start, shared: Path, *, has_client: bool) -> None:
    """Each role is started and answers, and ends within its grace when it is told to."""
    # Under the shared folder: nothing else of this machine is seen from inside.
    make(shared / "secrets")
    (shared / "secrets").chmod(0o755)
    metrics = shared / "metrics"
    metrics.mkdir()
    metrics.chmod(0o777)
    port, engine = _free_port(), _free_port()
    env = {
        "SECRET_KEY_FILE": f"{shared}/secrets/secret_key",
        "KEY_PEPPERS_FILE": f"{shared}/secrets/key_peppers",
        "FIELD_ENCRYPTION_KEYS_FILE": f"{shared}/secrets/field_encryption_keys",
        "DATABASE_URL": os.environ["DATABASE_URL"],
        "REDIS_URL": os.environ["REDIS_URL"],
        "DETECTION_ENGINE_URL": f"http://127.0.0.1:{engine}",
        "DETECTION_ENGINE_SCORE_FLOOR": "0",
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "ALLOWED_HOSTS": "127.0.0.1",
    }
    with ExitStack() as stack:

        def begin(*arguments: str) -> Process:
            name = arguments[0] if arguments else "serve"
            running = start(arguments, env, shared / f"{name}.log")
            stack.callback(running.kill)
            return running

        for path in ("/app/x", "/venv/x", "/x"):
            if begin("sh", "-c", f"echo > {path}").wait(20) == 0:
                raise StopError(f"{path} could be written")
        if begin("sh", "-c", "exit $(id -u)").wait(20) != 10001 % 256:
            raise StopError("it does not run as user 10001")
        if code := (migrate := begin("migrate")).wait(120):
            raise StopError(f"migrate ended with {code}:\n{migrate.output()[-2000:]}")
        say("migrate: ended with 0")
        if has_client:
            env["BACKUP_RECIPIENTS"] = _recipient(shared)
            for words in (("backup",), ("restore", "--verify", f"--identity={shared}/identity")):
                done = begin("manage", *words, f"{shared}/backups")
                if code := done.wait(120):
                    raise StopError(f"{words[0]} ended with {code}:\n{done.output()[-2000:]}")
                say(f"{words[0]}: {done.output().splitlines()[-1]}")
        roles = {
            "engine": (begin("engine", f"--port={engine}"), f"http://127.0.0.1:{engine}/health"),
            "serve": (begin(), f"http://127.0.0.1:{port}/health"),
            "worker": (begin("worker", "--concurrency=1"), f"http://127.0.0.1:{port}/health"),
            "beat": (begin("beat"), None),
        }
        expected = {"engine": '"status"', "serve": '"status"', "worker": '"worker":{"status":"up"'}
        for name, (running, url) in roles.items():
            began = time.monotonic()
            while not (_answers(url, expected[name]) if url else "is starting" in running.output()):
                if running.is_over() or time.monotonic() - began > 90:
                    raise StopError(f"{name} does not answer:\n{running.output()[-3000:]}")
                time.sleep(0.2)
            say(f"{name}: up")
        for name, (running, _) in roles.items():
            began = time.monotonic()
            running.stop()
            code = running.wait(GRACE_SECONDS)
            say(f"{name}: SIGTERM, ended with {code} after {time.monotonic() - began:.1f} s")
            if code not in (0, 143):
                raise StopError(f"{name} ended with {code}:\n{running.output()[-2000:]}")


def _recipient(shared: Path) -> str:
    """Of backups, whose identity and folder are there for the image's user."""
    identity = pyrage.x25519.Identity.generate()
    (shared / "identity").write_text(f"{identity}\n")
    (shared / "backups").mkdir()
    (shared / "backups").chmod(0o777)
    return str(identity.to_public())


def _answers(url: str, part: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=3) as answer:
        return part in answer.read().decode().replace(" ", "")
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> int:
    parser = argparse.ArgumentParser(prog="deploy.image", description=__doc__.split("\n")[0])
    parser.add_argument("--tag", default="gateway:local")
    parser.add_argument("--extra", default="", help="`engine`: with what a classifier needs")
    parser.add_argument("--postgresql-client", default="", metavar="VERSION")
    parser.add_argument("--only", choices=["build", "check"])
    options = parser.parse_args()
    try:
        tool: Docker | Buildah = Docker() if Docker.is_here() else Buildah()
        if isinstance(tool, Buildah):
            tool.require()
        given = {"EXTRA": options.extra, "POSTGRESQL_CLIENT": options.postgresql_client}
        if options.only != "check":
            tool.build(
                options.tag, [f"--build-arg={name}={value}" for name, value in given.items()]
            )
        base, all_of_it = tool.megabytes(base_name()), tool.megabytes(options.tag)
        above = all_of_it - base
        print(f"{options.tag}: {all_of_it:.0f} MB, {above:.0f} MB above its base ({base:.0f} MB)")
        if options.only != "build":
            is_root = os.access("/run", os.W_OK)  # who has Docker need not be
            place = "/run" if is_root else None
            shared = Path(tempfile.mkdtemp(prefix="gateway-image-", dir=place))
            shared.chmod(0o755)
            try:
                with tool.opened(options.tag, shared) as (start, files):
                    examine(files)
                    check(start, shared, has_client=bool(options.postgresql_client))
            finally:
                shutil.rmtree(shared, ignore_errors=True)
        if above > ABOVE_BASE_MB_MAX and not any(given.values()):
            raise StopError(f"more than {ABOVE_BASE_MB_MAX} MB above its base")
    except StopError as end:
        print(f"image: {end}", file=sys.stderr)
        return end.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
