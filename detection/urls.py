from django.urls import path

from detection.engines.views import CostViewSet
from detection.feedback.views import FeedbackViewSet
from detection.guardrails.agentgateway import AgentgatewayViewSet
from detection.guardrails.kong import KongViewSet
from detection.guardrails.openguardrails import OpenGuardrailsViewSet
from detection.guardrails.portkey import PortkeyViewSet
from detection.jobs.views import AsyncViewSet, BatchViewSet, JobViewSet
from detection.litellm.views import GuardrailViewSet
from detection.policies.views import PolicyViewSet
from detection.views import DetectViewSet, ScoreViewSet

urlpatterns = [
    path("v1/detect", DetectViewSet.as_view({"post": "create"}), name="detection-detect"),
    path("v1/detect/score", ScoreViewSet.as_view({"post": "create"}), name="detection-score"),
    path("v1/detect/batch", BatchViewSet.as_view({"post": "create"}), name="detection-batches"),
    path(
        "v1/detect/batch/<uuid:id>",
        JobViewSet.as_view({"get": "batch", "delete": "cancel"}),
        name="detection-batch",
    ),
    path("v1/detect/async", AsyncViewSet.as_view({"post": "create"}), name="detection-async"),
    path(
        "v1/detect/async/<uuid:id>", JobViewSet.as_view({"get": "single"}), name="detection-outcome"
    ),
    path(
        "v1/policy",
        PolicyViewSet.as_view({"get": "retrieve", "put": "update"}),
        name="detection-policy",
    ),
    path(
        "beta/litellm_basic_guardrail_api",
        GuardrailViewSet.as_view({"post": "create"}),
        name="detection-litellm",
    ),
    path(
        "v1/guardrails/portkey",
        PortkeyViewSet.as_view({"post": "create"}),
        name="guardrail-portkey",
    ),
    path("v1/guardrails/kong", KongViewSet.as_view({"post": "create"}), name="guardrail-kong"),
    path(
        "v1/guardrails/agentgateway/request",
        AgentgatewayViewSet.as_view({"post": "prompt"}),
        name="guardrail-agentgateway-request",
    ),
    path(
        "v1/guardrails/agentgateway/response",
        AgentgatewayViewSet.as_view({"post": "choices"}),
        name="guardrail-agentgateway-response",
    ),
    path(
        "v1/guardrails/openguardrails/v1/evaluate",
        OpenGuardrailsViewSet.as_view({"post": "evaluate"}),
        name="guardrail-openguardrails",
    ),
    path("v1/engines/costs", CostViewSet.as_view({"get": "list"}), name="detection-costs"),
    path("v1/feedback", FeedbackViewSet.as_view({"post": "create"}), name="detection-feedback"),
]
