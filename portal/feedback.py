"""What members say of a verdict: right, a false alarm, a missed attack."""

from __future__ import annotations

from urllib.parse import urlencode
from uuid import UUID

from django import forms
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext, gettext_lazy

from accounts.models import UsageLog
from detection.feedback import services
from detection.models import Feedback
from gateway_project.core import errors
from gateway_project.core.api.forms import Form
from portal.members import Member, workspace_page
from portal.posting import posts_for

VERDICT_LABELS = {
    Feedback.Verdict.CORRECT: gettext_lazy("Right"),
    Feedback.Verdict.FALSE_POSITIVE: gettext_lazy("False alarm"),
    Feedback.Verdict.FALSE_NEGATIVE: gettext_lazy("Missed attack"),
}


class FeedbackForm(Form):
    """The verdict is the button that was pressed. `at`: when the request was answered."""

    note = forms.CharField(
        required=False,
        max_length=services.NOTE_CHARS_MAX,
        label=gettext_lazy("Note (optional)"),
        widget=forms.Textarea(attrs={"rows": 2}),
    )
    at = forms.DateTimeField()
    verdict = forms.ChoiceField(choices=list(VERDICT_LABELS.items()))


def facts(member: Member, row: UsageLog) -> dict[str, object]:
    """For the page of a request: the feedback on it, and the form to give it."""
    feedback = Feedback.objects.filter(
        workspace=member.workspace, request_id=row.request_id
    ).first()
    form = FeedbackForm(initial={"note": feedback.note if feedback else ""})
    return {
        "has_verdict": row.is_malicious is not None,
        "feedback": feedback,
        "feedback_label": VERDICT_LABELS[Feedback.Verdict(feedback.verdict)] if feedback else "",
        "feedback_form": form,
        "answered_at": row.created_at.isoformat(),
        "verdicts": list(VERDICT_LABELS.items()),
    }


@posts_for("portal-request")
@workspace_page
def give(request: HttpRequest, member: Member, request_id: UUID) -> HttpResponse:
    member.must_change()
    form = FeedbackForm(request.POST)
    if not form.is_valid():
        if "at" in form.errors or "verdict" in form.errors:  # which nobody typed
            raise Http404
        messages.error(request, " ".join(map(str, form.errors["note"])))
        return redirect(_page_of(request_id, request.POST["at"]))
    try:
        services.give(
            member.workspace,
            services.judged(member.workspace, request_id, form.cleaned_data["at"]),
            form.cleaned_data["verdict"],
            form.cleaned_data["note"],
            actor=member.actor(request),
        )
    except errors.NotFound:
        raise Http404 from None
    except errors.ValidationFailed:
        text = gettext("This request ended without a verdict, so there is nothing to say of one.")
        messages.error(request, text)
    else:
        messages.success(request, gettext("Noted, thank you."))
    return redirect(_page_of(request_id, request.POST["at"]))


def _page_of(request_id: UUID, at: str) -> str:
    page = reverse("portal-request", kwargs={"request_id": request_id})
    return f"{page}?{urlencode({'at': at})}"
