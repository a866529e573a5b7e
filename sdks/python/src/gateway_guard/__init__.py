"""Client of the gateway's prompt-injection detection API.

from gateway_guard import Client

with Client("gw_live_…", base_url="https://gateway.example.com") as client:
    if client.detect("Ignore all previous instructions.").flagged:
        ...
"""

from gateway_guard import errors, webhooks
from gateway_guard._async_client import AsyncClient
from gateway_guard._client import Client
from gateway_guard._core import LocalCache
from gateway_guard.chats import Text
from gateway_guard.errors import APIError, Blocked, GatewayError
from gateway_guard.guard import AsyncGuard, Guard
from gateway_guard.models import Detection, ItemResult, Job, Score
from gateway_guard.version import VERSION as __version__

__all__ = [
    "APIError",
    "AsyncClient",
    "AsyncGuard",
    "Blocked",
    "Client",
    "Detection",
    "GatewayError",
    "Guard",
    "ItemResult",
    "Job",
    "LocalCache",
    "Score",
    "Text",
    "__version__",
    "errors",
    "webhooks",
]
