"""The stand-in's service API (8080): health, settings, metrics, and what nobody should proxy."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from robin.standin.seed_data import SeedData
from robin.standin.server import HTML, JSON, Call, Context, Reply, as_json

LANDING = (
    "<html><head><title>Service Endpoints</title></head>"
    "<body><h1>Service Endpoints</h1></body></html>"
)
CHARTS = "<html><head><title>Metrics Charts</title></head><body><canvas></canvas></body></html>"
GET, POST = frozenset({"GET"}), frozenset({"POST"})
COUNTERS = {
    "robin_email_receipt_limit": 3,
    "robin_email_rbl_rejection": 41,
    "robin_email_virus_rejection": 2,
    "robin_email_spam_rejection": 97,
    "robin_dos_ratelimit_rejection": 5,
    "robin_dos_tarpit": 12,
}


def contexts(seed: SeedData, *, profile: str = "stock") -> dict[str, Context]:
    api = ServiceAPI(seed, profile)
    found = {
        "/": Context(lambda call: Reply(LANDING, content_type=HTML)),
        "/favicon.ico": Context(
            lambda call: Reply(b"\0\0\1\0", content_type="image/x-icon"), needs_auth=False
        ),
        "/health": Context(api.health, needs_auth=False, work=api.count),
        "/config": Context(api.config, GET),
        "/config/reload": Context(api.reload, POST),
        "/config/sync/status": Context(api.sync_status, GET),
        "/metrics": Context(lambda call: Reply(CHARTS, content_type=HTML)),
        "/metrics/prometheus": Context(lambda call: Reply(api.prometheus())),
        "/metrics/graphite": Context(lambda call: Reply(api.graphite())),
        "/system/env": Context(lambda call: Reply("PATH=/usr/bin\nVAULT_TOKEN=env-secret\n")),
        "/system/props": Context(lambda call: Reply("java.version=21.0.4\n")),
        "/system/threads": Context(lambda call: Reply('"main" #1 prio=5 RUNNABLE\n')),
        "/system/heapdump": Context(api.heapdump),
    }
    if profile == "ui-fork":
        found["/config/json"] = Context(api.config_json)
        found["/metrics/system"] = Context(api.metrics_system)
        found["/metrics/queue"] = Context(api.metrics_queue)
        for name in ("clamav", "rspamd"):
            up = {"status": "UP", "version": "1.0"}
            found[f"/scanners/{name}/status"] = Context(lambda call, up=up: as_json(up))  # type: ignore[misc]
            found[f"/scanners/{name}/test"] = Context(
                lambda call: as_json({"success": True, "status": "UP", "message": "OK"}), POST
            )
        found["/blocklist"] = Context(api.blocklist)
    return found


class ServiceAPI:
    def __init__(self, seed: SeedData, profile: str) -> None:
        self.seed = seed
        self.profile = profile

    async def count(self, call: Call) -> None:
        """It waits for whoever has the queue."""
        await self.seed.queue.work(0.0)

    def health(self, call: Call) -> Reply:
        seed, uptime = self.seed, self.seed.uptime()
        if not call.is_authorised:
            return as_json({"status": "UP", "uptime": uptime})
        pool = {"core": 1, "max": 10, "size": 3, "largest": 5, "active": 2, "queue": 0}
        pool |= {"taskCount": 1234, "completed": 1230, "keepAliveSeconds": 60}
        report = {
            "status": "UP",
            "uptime": uptime,
            "listeners": [{"port": port, "threadPool": pool} for port in (25, 465)],
            "queue": self._queue(),
            "scheduler": self._scheduler(),
            "metricsCron": {
                "intervalSeconds": 5,
                "lastExecutionEpochSeconds": int(seed.clock()),
                "nextExecutionEpochSeconds": int(seed.clock()) + 5,
            },
            "botPool": {
                "enabled": True,
                "type": "cachedThreadPool",
                "poolSize": 0,
                "activeThreads": 0,
                "queueSize": 0,
                "taskCount": 0,
                "completedTaskCount": 0,
            },
            "lmtpPool": {"enabled": False},
        }
        return as_json(report)

    def _queue(self) -> dict[str, Any]:
        queue = self.seed.queue
        if self.profile == "legacy":
            histogram: dict[str, int] = {}
            for item in queue.select():
                histogram[str(item.retry)] = histogram.get(str(item.retry), 0) + 1
            return {"size": queue.size(), "retryHistogram": histogram}
        oldest = [min((i.created for i in queue.select([s])), default=0) for s in _LIVE]
        return {
            "size": queue.size(),
            "ready": queue.count("READY"),
            "claimed": queue.count("CLAIMED"),
            "dead": queue.dead_counter,
            "oldestReadyAtEpochSeconds": int(oldest[0]),
            "oldestClaimedAtEpochSeconds": int(oldest[1]),
            "reschedules": queue.reschedules,
        }

    def _scheduler(self) -> dict[str, Any]:
        now = int(self.seed.clock())
        config = {"totalRetries": 30, "firstWaitMinutes": 1, "growthFactor": 1.2}
        if self.profile == "legacy":
            cron = {"initialDelaySeconds": 10, "periodSeconds": 30}
            cron |= {"lastExecutionEpochSeconds": now - 10, "nextExecutionEpochSeconds": now + 20}
            return {"config": config, "cron": cron}
        service = {
            "startDelaySeconds": 10,
            "housekeepingIntervalSeconds": 30,
            "workerThreads": 8,
            "maxInFlight": 8,
            "dispatchIdleMinMillis": 5,
            "dispatchIdleMaxMillis": 250,
            "currentDispatchIdleMillis": 250,
            "outcomeBatchSize": 8,
            "outcomeFlushMillis": 5,
            "currentOutcomeQueueDepth": 0,
            "lastMutationBatchSize": 2,
            "lastMutationCommitDurationMillis": 9,
            "currentInFlight": self.seed.queue.count("CLAIMED"),
            "lastDispatchEpochSeconds": now,
            "lastHousekeepingEpochSeconds": now - 10,
            "nextHousekeepingEpochSeconds": now + 20,
        }
        return {"config": config, "service": service}

    # -- Settings ---------------------------------------------------------------------------------

    def config(self, call: Call) -> Reply:
        if self.seed.is_unreadable:
            text = "Failed to generate config viewer: java.io.EOFException: End of input"
            self.seed.note("ERROR", "endpoints.RobinServiceEndpoint", text)
            return Reply("Internal Server Error", 500)
        first, others = [], []
        for title, content in self.seed.config.items():
            text = escape(json.dumps(_floats(content), indent=2))
            if title in ("Properties", "Server"):
                pre = f'<h2>{title} Configuration</h2><pre id="{title.lower()}Config">{text}</pre>'
                first.append(f'<div class="config-section">{pre}</div>')
            else:
                section = f"<h2>{title}</h2><pre>{text}</pre>"
                others.append(f'<div class="config-section">{section}</div>')
        head = "<html><head><title>Configuration Viewer</title></head><body>"
        parts = [head, *first, '<div id="extraConfigs">', *others, "</div></body></html>"]
        return Reply("\n".join(parts), content_type=HTML)

    def config_json(self, call: Call) -> Reply:
        wanted = call.query.get("section", "").lower()
        for title, content in self.seed.config.items():
            if title.lower().removesuffix(" configuration") == wanted:
                return as_json(_floats(content))
        return as_json({"error": "Unknown section"}, 404)

    def reload(self, call: Call) -> Reply:
        self.seed.reloads += 1
        if "Server" in self.seed.broken:
            text = "Server reload trigger timed out or interrupted: JsonSyntaxException"
            self.seed.note("WARN", "main.Config", text)
            for title in self.seed.broken - {"Server"}:
                self.seed.config.pop(title, None)
        self.seed.is_unreadable = bool(self.seed.broken) and "Server" not in self.seed.broken
        text = '{"status":"OK", "message":"Configuration reloaded successfully"}'
        return Reply(text, content_type=JSON)

    def sync_status(self, call: Call) -> Reply:
        status: dict[str, Any] = {"enabled": False}
        status |= {"lastAttemptEpochMillis": 0, "lastSuccessEpochMillis": 0}
        status |= {"appliedFiles": [], "skippedFiles": [], "appliedCount": 0, "skippedCount": 0}
        return Reply(json.dumps(status, indent=2), content_type=JSON)

    # -- Metrics ----------------------------------------------------------------------------------

    def _counters(self) -> dict[str, int]:
        # They move with every look, so that a chart of them does.
        self.seed.received += 3
        self.seed.accepted += 2
        return {
            "robin_email_receipt_start": self.seed.received,
            "robin_email_receipt_success": self.seed.accepted,
            **COUNTERS,
        }

    def _gauges(self) -> list[tuple[str, str, float]]:
        used = 5.6e7 + self.seed.received % 100 * 1e5
        return [
            ("jvm_memory_used_bytes", '{area="heap",id="G1 Eden Space"}', 2.5165824e7),
            ("jvm_memory_used_bytes", '{area="heap",id="G1 Old Gen"}', used),
            ("jvm_memory_used_bytes", '{area="nonheap",id="Metaspace"}', 4.1e7),
            ("jvm_memory_max_bytes", '{area="heap",id="G1 Eden Space"}', -1.0),
            ("jvm_memory_max_bytes", '{area="heap",id="G1 Old Gen"}', 5.36870912e8),
            ("jvm_threads_live_threads", "", 31),
            ("system_cpu_count", "", 4),
            ("system_cpu_usage", "", 0.05 + self.seed.received % 10 / 100),
            ("system_load_average_1m", "", 0.42),
        ]

    def prometheus(self) -> str:
        lines = []
        for name, value in self._counters().items():
            lines += [f"# HELP {name}_total {name}", f"# TYPE {name}_total counter"]
            lines.append(f"{name}_total {float(value)}")
        known = set()
        for name, labels, number in self._gauges():
            if name not in known:
                lines += [f"# HELP {name} {name}", f"# TYPE {name} gauge"]
                known.add(name)
            lines.append(f"{name}{labels} {number}")
        return "\n".join(lines) + "\n"

    def graphite(self) -> str:
        now = int(self.seed.clock())
        lines = [f"{name} {float(value)} {now}" for name, value in self._counters().items()]
        # Tags are dropped, so that the same name comes several times.
        gauges = [(n.removesuffix("_bytes"), value) for n, _, value in self._gauges()]
        return "\n".join([*lines, *(f"{name} {value} {now}" for name, value in gauges)]) + "\n"

    def metrics_system(self, call: Call) -> Reply:
        return as_json({"cpu": {"usage": 8.3, "processors": 4}, "uptime": self.seed.uptime()})

    def metrics_queue(self, call: Call) -> Reply:
        return as_json({"queueSize": self.seed.queue.size()})

    def heapdump(self, call: Call) -> Reply:
        return Reply(f"Heap dump created at: heapdump-{int(self.seed.clock() * 1000)}.hprof")

    def blocklist(self, call: Call) -> Reply:
        if call.method != "GET":
            return as_json({"error": "Not Implemented"}, 501)
        return as_json({"enabled": True, "entries": self.seed.blocklist})


_LIVE: tuple[Any, ...] = ("READY", "CLAIMED")


def _floats(content: Any) -> Any:
    """Robin parses its files into untyped maps, where every number is a double."""
    if isinstance(content, dict):
        return {name: _floats(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_floats(value) for value in content]
    return float(content) if isinstance(content, int) and not isinstance(content, bool) else content
