"""The first page: a text is judged right there, what the detector finds, what a plan gives.

Trying needs no account. The embedded detector judges, in this process: no engine is asked, no
usage is counted and nothing of the text is kept. How often it may be done is limited for an address
and for all together.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any, NamedTuple

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils.translation import gettext
from django.utils.translation import gettext_noop as _
from django.views.decorators.csrf import csrf_exempt

from accounts.models import Plan
from detection import embedded
from detection.embedded.detector import THRESHOLD
from detection.engines import analysts
from gateway_project.core import errors
from gateway_project.core.api.error_pages import refuse
from gateway_project.core.api.methods import require_http_methods
from gateway_project.core.api.responses import JSON, wants
from gateway_project.core.language import number
from gateway_project.core.ratelimit import get_limiter, per_minute
from gateway_project.core.telemetry.metrics import bound_reached
from portal.playground import EXAMPLES
from portal.views import base_url

TRY_CHARS_MAX = 2_000


class Measured(NamedTuple):
    """A figure of docs/detectors.md or benchmarks/README.md: a test holds it to that sentence."""

    figure: str
    what: str
    of: str
    source: str


# Texts that nothing was learnt from, or whose whole source was left out of training. What was
# learnt from would flatter.
FOUND = (
    Measured(
        _("14 of 25"),
        _("attacks without trigger words found"),
        _("our own texts, by technique; 1 of 25 harmless twins flagged"),
        "14 of 25 attacks by techniques without trigger words and 1 of 25 harmless twins",
    ),
    Measured(
        _("25 of 34"),
        _("attacks in 24 languages found"),
        _("our own texts; 0 of 34 harmless ones flagged"),
        "25 of 34 attacks in 24 languages and 0 of 34 harmless texts",
    ),
    Measured(
        _("12 of 18"),
        _("orders hidden in what tools return found"),
        _("our own texts; 0 of 20 harmless answers flagged"),
        "12 of 18 orders hidden in what tools return and 0 of 20 harmless",
    ),
    Measured(
        "69 %",
        _("of a password game's attacks found"),
        _("1,077 texts of gandalf, none of which it was trained on"),
        "| gandalf | 69 % of 1,077 |",
    ),
)
MISSED = (
    Measured(
        "59 %",
        _("of short English and German attacks found"),
        _("213 texts of deepset, none of which it was trained on; 2 of 351 harmless ones flagged"),
        "| deepset train | 59 % of 213 |",
    ),
    Measured(
        "24 %",
        _("of harmless role descriptions are flagged"),
        _("166 personas, a kind that the model had never met"),
        "| 24 % of 166 |",
    ),
)
SPEED = (
    Measured(
        _("6.2 ms"),
        _("added to the engine's own p95"),
        _("at 1,000 requests a second, two workers on two cores"),
        "4.3, 4.4 and 6.2 ms at the p95",
    ),
    Measured(
        _("2,561"),
        _("requests a second, each asking the engine"),
        _("the same two cores, shared with database, load and a stub engine"),
        "(must 8 \u00d7: met) | **2,561",
    ),
)


@csrf_exempt
@require_http_methods(["GET", "HEAD", "POST"])
def landing(request: HttpRequest) -> HttpResponse:
    """A POST of `text` is a try: JSON for the page's script, the page itself for who has none.

    It changes nothing, so that it needs no token of a form, and the page sets no cookie.
    """
    if request.method != "POST":
        return _page(request)
    if refusal := _refusal():
        return refuse(request, refusal)
    text = request.POST.get("text", "")
    wrong = _wrong(text)
    if wants(request, JSON):
        if wrong:
            fields = [{"field": "text", "message": wrong}]
            return refuse(request, errors.ValidationFailed(errors=fields))
        return JsonResponse(_verdict(text), headers={"Cache-Control": "no-store"})
    if wrong:
        return _page(request, text=text[:TRY_CHARS_MAX], wrong=wrong)
    return _page(request, text=text, verdict=_verdict(text))


def _page(request: HttpRequest, **facts: Any) -> HttpResponse:
    everything = {
        "text": EXAMPLES[0][1],
        **facts,
        "examples": [(gettext(label), text) for label, text in EXAMPLES],
        "chars_max": TRY_CHARS_MAX,
        "is_open": settings.TRIES_PER_MINUTE > 0,
        "plans": Plan.objects.order_by("rate_limit_per_day", "name"),
        "found": FOUND,
        "missed": MISSED,
        "speed": SPEED,
        "detector": embedded.DETECTOR,
        "version": settings.VERSION,
        "base_url": base_url(request),
    }
    return render(request, "portal/landing.html", everything)


def _refusal() -> errors.GatewayError | None:
    """Whether nobody may try just now. How often one address may is said in `portal/urls.py`."""
    if not settings.TRIES_PER_MINUTE:
        return errors.NotFound(
            gettext("Trying without an account is switched off here. Get a key instead.")
        )
    policy = per_minute("try", "{try}", settings.TRIES_PER_MINUTE)
    if not settings.RATE_LIMIT_ENABLED:
        return None
    decision = get_limiter().check_sync((policy,), (1,))
    if not decision.denied:
        return None
    bound_reached.labels("tries").inc()
    seconds = max(1, decision.retry_after_seconds)
    return errors.RateLimited(
        gettext("Many people try right now. Try again in %(n)s seconds, or use a key of your own.")
        % {"n": seconds},
        headers={"Retry-After": str(seconds)},
    )


def _wrong(text: str) -> str:
    if not text.strip():
        return gettext("The text is empty; write a text.")
    if len(text) > TRY_CHARS_MAX:
        message = gettext("The text has more than %(most)s characters; cut it, or get a key.")
        return message % {"most": number(TRY_CHARS_MAX)}
    return ""


def _verdict(text: str) -> dict[str, Any]:
    """What the page shows of it, in the words of the API where it has them."""
    began = perf_counter()
    finding = analysts.analyse_now(text, "user_input")
    milliseconds = (perf_counter() - began) * 1000
    analysis = finding.analysis
    is_flagged = analysis.score >= THRESHOLD
    is_whole = analysis.scanned_chars >= analysis.total_chars and not finding.unseen
    return {
        "decision": "flag" if is_flagged else "allow" if is_whole else "review",
        "confidence": analysis.score,
        "threshold": THRESHOLD,
        "threat_types": list(analysis.threat_types),
        "reason": analysis.reason or "",
        "language": analysis.language,
        "milliseconds": round(milliseconds, 1),
        "pieces": [{"text": part, "is_marked": marked} for part, marked in _pieces(text, analysis)],
    }


def _pieces(text: str, analysis: embedded.Analysis) -> list[tuple[str, bool]]:
    """The text in pieces; those that gave the verdict are marked."""
    marked = bytearray(len(text))
    for evidence in analysis.evidence:
        start, end = max(0, evidence.start), min(len(text), evidence.end)
        marked[start:end] = b"\1" * (end - start)
    pieces: list[tuple[str, bool]] = []
    begin = 0
    for at in range(1, len(text) + 1):
        if at == len(text) or marked[at] != marked[begin]:
            pieces.append((text[begin:at], bool(marked[begin])))
            begin = at
    return pieces
