"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path

from benchmarks.processes import BenchError


def require_tools() -> None:
    """Raise with what to install when wrk or nginx is missing."""
    missing = [tool for tool in ("nginx", "wrk") if not shutil.which(tool, path=_tool_path())]
    if missing:
        raise BenchError(
            f"Missing: {' and '.join(missing)}; run `apt-get install nginx-light wrk`."
        )


def nginx_echo_module() -> Path | None:
    """What lets nginx wait before it answers (Debian: libnginx-mod-http-echo)."""
    path = Path("/usr/lib/nginx/modules/ngx_http_echo_module.so")
    return path if path.exists() else None


def nginx_path() -> str:
    """nginx lies in /usr/sbin, which is not on everybody's PATH."""
    return shutil.which("nginx", path=_tool_path()) or "nginx"


def _tool_path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"


def describe() -> dict[str, str]:
    """Processor, cores, memory, system and the versions of the tools."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    meminfo = Path("/proc/meminfo").read_text()
    memory = re.search(r"^MemTotal:\s*(\d+)", meminfo, re.MULTILINE)
    return {
        "processor": model[1] if model else platform.processor() or "?",
        "cores": str(cores()),
        "memory": f"{int(memory[1]) / 1024**2:.0f} GiB" if memory else "?",
        "kernel": ".".join(platform.release().split(".")[:2]),
        "wrk": _tool_version(["wrk", "-v"], r"^wrk\s+(?:debian/)?([\d.]+)"),
        "nginx": _tool_version([nginx_path(), "-v"], r"nginx/([\d.]+)"),
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def busy_share(seconds: float = 1.0) -> float:
    """Share of all cores (0 to 1) that is busy over `seconds`, with every process counted."""

    def read() -> tuple[int, int]:
        values = [int(value) for value in Path("/proc/stat").read_text().split()[1:9]]
        return sum(values), values[3] + values[4]  # all, idle and waiting for disks

    total, idle = read()
    time.sleep(seconds)
    total_later, idle_later = read()
    return 1 - (idle_later - idle) / max(total_later - total, 1)


def _tool_version(command: list[str], pattern: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(pattern, done.stdout + done.stderr, re.MULTILINE)
    return found[1] if found else "?"
