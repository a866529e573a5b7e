"""Names of tables and columns, as the admin says them in the reader's language.

Models have Django's own names, made of their attributes: those are English, and stay so in
migrations. Once a model is shown to staff, its names and hints are looked up when a page says them.
"""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext_lazy, gettext_noop

TABLES = (
    *(gettext_noop("user"), gettext_noop("users")),
    *(gettext_noop("workspace"), gettext_noop("workspaces")),
    *(gettext_noop("membership"), gettext_noop("memberships")),
    *(gettext_noop("API key"), gettext_noop("API keys")),
    *(gettext_noop("request"), gettext_noop("requests")),
    *(gettext_noop("sum of requests"), gettext_noop("sums of requests")),
    *(gettext_noop("audit event"), gettext_noop("audit events")),
    *(gettext_noop("job"), gettext_noop("jobs")),
    *(gettext_noop("policy version"), gettext_noop("policy versions")),
    *(gettext_noop("feedback"), gettext_noop("parked")),
    *(gettext_noop("plan"), gettext_noop("plans")),
    *(gettext_noop("incident"), gettext_noop("incidents")),
    *(gettext_noop("incident update"), gettext_noop("incident updates")),
    *(gettext_noop("announcement"), gettext_noop("announcements")),
    gettext_noop("Robin access"),
    *(gettext_noop("session"), gettext_noop("sessions")),
    gettext_noop("document of Robin UI"),
    gettext_noop("documents of Robin UI (stored here, not applied to Robin)"),
    gettext_noop("blocklist entry"),
    gettext_noop("blocklist (stored here, not applied to Robin)"),
    *(gettext_noop("webhook"), gettext_noop("webhooks")),
    *(gettext_noop("webhook delivery"), gettext_noop("webhook deliveries")),
)
COLUMNS = (
    *(gettext_noop("action"), gettext_noop("active"), gettext_noop("actor")),
    *(gettext_noop("allowed cidrs"), gettext_noop("api key"), gettext_noop("api key id")),
    *(gettext_noop("at"), gettext_noop("attempts"), gettext_noop("attempts made")),
    *(gettext_noop("audit days"), gettext_noop("bucket"), gettext_noop("cached")),
    *(gettext_noop("client ip"), gettext_noop("components"), gettext_noop("confidence")),
    *(gettext_noop("content"), gettext_noop("content type"), gettext_noop("correlation id")),
    *(gettext_noop("created at"), gettext_noop("created by"), gettext_noop("decision")),
    *(gettext_noop("degraded"), gettext_noop("deleted at"), gettext_noop("period")),
    *(gettext_noop("deletes at"), gettext_noop("description"), gettext_noop("detection policy")),
    *(gettext_noop("details"), gettext_noop("digest"), gettext_noop("disabled reason")),
    *(gettext_noop("e-mail"), gettext_noop("email confirmed at"), gettext_noop("endpoint")),
    *(gettext_noop("ends at"), gettext_noop("error"), gettext_noop("error code")),
    *(gettext_noop("event"), gettext_noop("event type"), gettext_noop("events")),
    *(gettext_noop("expires at"), gettext_noop("failed"), gettext_noop("failing since")),
    *(gettext_noop("finished at"), gettext_noop("flagged"), gettext_noop("grace until")),
    *(gettext_noop("http status"), gettext_noop("impact"), gettext_noop("is active")),
    *(gettext_noop("is confirmed"), gettext_noop("is malicious"), gettext_noop("is per request")),
    *(gettext_noop("is robin operator"), gettext_noop("is session"), gettext_noop("is test")),
    *(gettext_noop("keys max"), gettext_noop("kind"), gettext_noop("language")),
    *(gettext_noop("last used at"), gettext_noop("last used ip"), gettext_noop("level")),
    *(gettext_noop("log days"), gettext_noop("mails off")),
    *(gettext_noop("metadata"), gettext_noop("name"), gettext_noop("next attempt at")),
    *(gettext_noop("note"), gettext_noop("number"), gettext_noop("origin")),
    *(gettext_noop("owner"), gettext_noop("payload bytes"), gettext_noop("policy")),
    *(gettext_noop("prefix"), gettext_noop("price"), gettext_noop("rate limit per day")),
    *(gettext_noop("rate limit per minute"), gettext_noop("reason"), gettext_noop("replaced by")),
    *(gettext_noop("request bytes"), gettext_noop("request id"), gettext_noop("request size")),
    *(gettext_noop("requires two factors"), gettext_noop("resolved at"), gettext_noop("role")),
    *(gettext_noop("response time ms"), gettext_noop("retry count"), gettext_noop("revoked at")),
    *(gettext_noop("revoked because"), gettext_noop("scopes"), gettext_noop("slug")),
    *(gettext_noop("source"), gettext_noop("started at"), gettext_noop("starts at")),
    *(gettext_noop("state"), gettext_noop("status"), gettext_noop("subject id")),
    *(gettext_noop("succeeded"), gettext_noop("suspended at"), gettext_noop("tags")),
    *(gettext_noop("target"), gettext_noop("text"), gettext_noop("title")),
    *(gettext_noop("total"), gettext_noop("type"), gettext_noop("updated at")),
    *(gettext_noop("updated by"), gettext_noop("upstream ms"), gettext_noop("url")),
    *(gettext_noop("user agent"), gettext_noop("value"), gettext_noop("verdict")),
    *(gettext_noop("version"), gettext_noop("waiting bytes max"), gettext_noop("webhook url")),
    *(gettext_noop("waiting items max"), gettext_noop("webhooks max"), gettext_noop("why")),
    *(gettext_noop("workspace id"), gettext_noop("workspace rate limit per minute")),
)
HINTS = (
    gettext_noop("Attempts after the first; empty: the whole schedule."),
    gettext_noop("Caps each key, and is the day quota of the whole workspace."),
    gettext_noop("E-mail, key prefix, or the command."),
    gettext_noop("Empty: everybody."),
    gettext_noop("How far back members and keys can read who did what."),
    gettext_noop("How far back the request log can be read."),
    gettext_noop("How often it was run again, in vain."),
    gettext_noop("Instead of the plan's; empty: the plan's."),
    gettext_noop("Its webhooks may hear of Robin's mail queue."),
    gettext_noop("Keys that a workspace may have in use."),
    gettext_noop("Networks the key may be used from; empty: any."),
    gettext_noop("Of all its keys together, instead of the plan's; empty: the plan's."),
    gettext_noop("Of all keys of a workspace together; empty: 5 keys' minutes."),
    gettext_noop("Of a workspace's jobs that are not finished."),
    gettext_noop("The same, as they are stored."),
    gettext_noop("Until an owner's e-mail is confirmed, keys work at the limits of a trial."),
    gettext_noop("Webhooks that a workspace may have."),
    gettext_noop("As the start page says it, such as “€49 a month”; empty: nothing is said."),
    gettext_noop("A rotated key works until then."),
    gettext_noop("Results can be read until then."),
    gettext_noop("Of the last word."),
)
OURS = frozenset({"accounts", "detection", "portal", "robin", "webhooks"})


def translate(model: Any) -> None:
    """Have its names and hints looked up when they are said. Of a model that is ours."""
    meta = model._meta
    if meta.app_label not in OURS:
        return
    meta.verbose_name = gettext_lazy(str(meta.verbose_name))
    meta.verbose_name_plural = gettext_lazy(str(meta.verbose_name_plural))
    for column in meta.local_fields:
        column.verbose_name = gettext_lazy(str(column.verbose_name))
        if column.help_text:
            column.help_text = gettext_lazy(str(column.help_text))
