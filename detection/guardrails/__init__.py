"""This gateway as a guardrail of other gateways, each in the words that it speaks."""

PATHS = tuple(
    f"/v1/guardrails/{name}"
    for name in (
        *("portkey", "kong", "agentgateway/request", "agentgateway/response"),
        "openguardrails/v1/evaluate",
    )
)
