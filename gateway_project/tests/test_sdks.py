"""The client libraries against a gateway that is served, and against the OpenAPI document.

What they do alike without one is in their own tests (`make sdk-test`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

from accounts.models import SCOPES
from gateway_project.tests.served import Worker

ROOT = Path(__file__).resolve().parents[2]
SDKS = ROOT / "sdks"
TEXTS = 150  # more than are judged within the call, so a job
CUSTOMERS = ("/v1/", "/auth/", "/webhooks/")
ELSEWHERE = "made in the portal or by /auth/register, before there is a key"
RARE = "rare: `Call` and `raw` reach it"
LEFT_OUT = {
    "python": {"POST /auth/register": ELSEWHERE, "DELETE /auth/revoke": "keys.revoke does that"},
    "typescript": {
        "POST /auth/register": ELSEWHERE,
        "DELETE /auth/revoke": "keys.revoke does that",
    },
    "go": dict.fromkeys(
        (
            *("POST /auth/register", "DELETE /auth/revoke", "GET /auth/profile"),
            *("POST /v1/detect/async", "GET /v1/detect/async/{id}"),
            *("GET /v1/keys/{id}", "PATCH /v1/keys/{id}"),
            *("GET /v1/requests", "GET /v1/requests/{request_id}"),
            *("GET /webhooks/{id}", "PATCH /webhooks/{id}", "GET /webhooks/events"),
            *("GET /webhooks/{id}/deliveries", "GET /webhooks/deliveries/{id}"),
            *("POST /webhooks/deliveries/{id}/resend", "POST /webhooks/{id}/recover"),
            *("POST /webhooks/{id}/rotate-secret", "POST /webhooks/test"),
            *("GET /webhooks/per-request", "GET /v1/audit"),
        ),
        RARE,
    ),
}


COMMANDS = {
    "python": (sys.executable, "tests/conformance.py"),
    "typescript": ("node", "test/conformance.mjs"),
    "go": ("go", "run", "./cmd/conformance"),
}
LANGUAGES = os.environ.get("SDK_LANGUAGES", "python").split(",")
"""`make sdk-test` names all three; the others need more than Python."""


@pytest.fixture
def scenario(serve, make_key, tmp_path):
    """`scenario("go")` has that library do everything once; a worker is there."""
    served = serve(WORKERS="1")
    worker = Worker(tmp_path, settings.REDIS_URL, "--pool=threads", "--concurrency=2")
    key = make_key(scopes=[*SCOPES], rate_limit_per_minute=1000, rate_limit_per_day=9000)

    def run(language):
        environment = {
            **os.environ,
            "GATEWAY_URL": served.url,
            "GATEWAY_API_KEY": key,
            "TEXTS": str(TEXTS),
            "PYTHONPATH": str(SDKS / "python" / "src"),
        }
        done = subprocess.run(
            COMMANDS[language],
            cwd=SDKS / language,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    yield run
    worker.close()


EXPECTED = {
    "decision": "flag",
    "limits": ["day", "minute", "workspace_day", "workspace_minute"],
    "empty": "validation_error",
    "wrong_key": "invalid_api_key",
    "revoked_key": "invalid_api_key",
    "webhook": "validation_error",
    "missing": "not_found",
    "ids": [str(n) for n in range(TEXTS)],
    "statuses": ["ok"],
    "mode": "enforce",
    "version_conflict": "precondition_failed",
    "key": "made by a library",
}


@pytest.mark.served
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_library_asks_a_gateway_that_is_served(scenario, language):
    assert scenario(language) == EXPECTED


def operations():
    document = json.loads((ROOT / "docs" / "openapi.json").read_text())
    return {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
        if method in ("get", "post", "put", "patch", "delete") and path.startswith(CUSTOMERS)
    }


def source(language):
    files = {
        "python": "python/src/gateway_guard/_async_client.py",
        "typescript": "typescript/src/client.ts",
        "go": "go/client.go",
    }
    return (SDKS / files[language]).read_text()


@pytest.mark.parametrize("language", LEFT_OUT)
def test_each_operation_is_there_or_left_out_for_a_reason(language):
    text = source(language)
    missing = set()
    for operation in operations():
        path = operation.partition(" ")[2]
        # `/v1/keys/{id}`: what stands for the id differs, and may end the text.
        pattern = "".join(
            re.escape(part) if not part.startswith("{") else r"[^\n]*?"
            for part in re.split(r"(\{\w+\})", path)
        )
        if not re.search(pattern + r"[\"`?]" if not path.endswith("}") else pattern, text):
            missing.add(operation)

    assert missing <= set(LEFT_OUT[language])
    assert set(LEFT_OUT[language]) <= operations()


def test_the_client_without_asyncio_is_made_of_the_other():
    done = subprocess.run([sys.executable, "generate.py", "--check"], cwd=SDKS / "python")

    assert done.returncode == 0, "Run: python sdks/python/generate.py"


def test_each_library_says_one_version():
    found = {
        "python": re.search(
            r'^version = "(.+)"', (SDKS / "python/pyproject.toml").read_text(), re.M
        ),
        "python module": re.search(
            r'VERSION = "(.+)"', (SDKS / "python/src/gateway_guard/version.py").read_text()
        ),
        "typescript": re.search(
            r'"version": "(.+)"', (SDKS / "typescript/package.json").read_text()
        ),
        "typescript module": re.search(r'VERSION = "(.+)"', source("typescript")),
        "go": re.search(r'Version = "(.+)"', source("go")),
    }

    assert len({match[1] for match in found.values() if match}) == 1
    assert all(found.values())
