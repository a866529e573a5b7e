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
from gateway_guard.errors import APIError, GatewayError
from gateway_guard.models import Detection, ItemResult, Job, Score
from gateway_guard.version import VERSION as __version__

__all__ = [
    "APIError",
    "AsyncClient",
    "Client",
    "Detection",
    "GatewayError",
    "ItemResult",
    "Job",
    "LocalCache",
    "Score",
    "__version__",
    "errors",
    "webhooks",
]
