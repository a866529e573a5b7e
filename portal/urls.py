"""Addresses of the pages. allauth's own stand under `/accounts/`, with a limit on each form."""

from typing import Any

from allauth.account import views as account
from django.urls import include, path
from django.views.generic import RedirectView

from portal import (
    audit,
    calibrate,
    engines,
    feedback,
    guides,
    inbox,
    jobs,
    keys,
    landing,
    language,
    overview,
    palette,
    papers,
    people,
    playground,
    policy,
    quality,
    request_log,
    sign_on,
    sign_up,
    status,
    usage,
    views,
    webhooks,
)
from portal.account_forms import make_whole
from portal.limits import limited
from portal.mail import actions as mail_actions
from portal.mail import alerts as mail_alerts
from portal.mail import charts as mail_charts
from portal.mail import logs as mail_logs
from portal.mail import queue as mail_queue
from portal.mail import store as mail_store

READ: Any = {"http_method_names": ["get", "head"]}
ALLAUTH: Any = include("allauth.urls")
make_whole(ALLAUTH[0].urlpatterns)

urlpatterns = [
    path("", limited("try", per_minute=10)(landing.landing), name="portal-landing"),
    path("status", status.status, name="portal-status"),
    path("status.atom", status.feed, name="portal-status-feed"),
    path("changelog", papers.changelog, name="portal-changelog"),
    path("terms", papers.terms, name="portal-terms"),
    path("privacy", papers.privacy, name="portal-privacy"),
    path("accounts/signup/", limited("register")(sign_up.signup), name="account_signup"),
    path(
        "accounts/password/reset/",
        limited("reset")(account.password_reset),
        name="account_reset_password",
    ),
    path("accounts/oidc/<str:provider_id>/login/", sign_on.login, name="openid_connect_login"),
    path(
        "accounts/oidc/<str:provider_id>/login/callback/",
        sign_on.callback,
        name="openid_connect_callback",
    ),
    path(
        "accounts/mails/<str:token>",
        limited("mails", by="ip", per_minute=30)(views.mails_off),
        name="portal-mails-off",
    ),
    path(
        "language",
        limited("language", by="user_or_ip", per_minute=30)(language.switch),
        name="portal-language",
    ),
    path("accounts/", ALLAUTH),
    path("app/", overview.overview, name="portal-overview"),
    path("app/unsent/<str:token>", views.unsent, name="portal-unsent"),
    path("app/keys", keys.keys, name="portal-keys"),
    path("app/keys/export", keys.export, name="portal-keys-export"),
    path("app/keys/<uuid:key_id>", keys.key, name="portal-key"),
    path("app/keys/<uuid:key_id>/rotate", keys.rotate, name="portal-key-rotate"),
    path("app/keys/<uuid:key_id>/revoke", keys.revoke, name="portal-key-revoke"),
    path("app/keys/<uuid:key_id>/edit", keys.edit, name="portal-key-edit"),
    path("app/keys/<uuid:key_id>/extend", keys.extend, name="portal-key-extend"),
    path("app/keys/<uuid:key_id>/end", keys.end, name="portal-key-end"),
    path("app/keys/<uuid:key_id>/policy", policy.policy, name="portal-key-policy"),
    path("app/keys/<uuid:key_id>/policy/restore", policy.restore, name="portal-key-policy-restore"),
    path("app/keys/<uuid:key_id>/policy/follow", policy.follow, name="portal-key-policy-follow"),
    path("app/policy", policy.of_workspace, name="portal-policy"),
    path("app/policy/restore", policy.restore_default, name="portal-policy-restore"),
    path("app/quality", quality.quality, name="portal-quality"),
    path("app/keys/<uuid:key_id>/engines", engines.engines, name="portal-key-engines"),
    path(
        "app/keys/<uuid:key_id>/calibrate",
        limited("calibrate", by="user_or_ip", per_minute=6)(calibrate.calibrate),
        name="portal-key-calibrate",
    ),
    path(
        "app/keys/<uuid:key_id>/threshold",
        calibrate.use_threshold,
        name="portal-key-use-threshold",
    ),
    path("app/keys/<uuid:key_id>/budget", calibrate.use_budget, name="portal-key-use-budget"),
    path("app/first-steps", overview.first_steps, name="portal-first-steps"),
    path("app/playground", playground.playground, name="portal-playground"),
    path(
        "app/playground/key",
        limited("playground", by="user_or_ip", per_minute=20)(playground.session_key),
        name="portal-playground-key",
    ),
    path("app/requests", request_log.requests, name="portal-requests"),
    path("app/requests/export", request_log.export, name="portal-requests-export"),
    path(
        "app/requests/files",
        limited("export", by="user_or_ip", per_minute=10)(request_log.files),
        name="portal-requests-files",
    ),
    path("app/requests/files/<uuid:export_id>", request_log.file, name="portal-requests-file"),
    path("app/requests/find", request_log.find, name="portal-request-find"),
    path("app/requests/<uuid:request_id>", request_log.one, name="portal-request"),
    path("app/requests/<uuid:request_id>/feedback", feedback.give, name="portal-request-feedback"),
    path("app/mail-queue", mail_queue.queue, name="portal-mail-queue"),
    path(
        "app/requests/<uuid:request_id>/allow",
        limited("allow", by="user_or_ip", per_minute=30)(quality.allow),
        name="portal-request-allow",
    ),
    path(
        "app/mail-queue/ticket",
        limited("mail-queue", by="user_or_ip", per_minute=30)(mail_queue.ticket),
        name="portal-mail-queue-ticket",
    ),
    path("app/mail/failures", mail_queue.failures, name="portal-mail-failures"),
    path("app/mail/items", mail_queue.items, name="portal-mail-items"),
    path("app/mail/items/<str:uid>", mail_queue.item, name="portal-mail-item"),
    path("app/mail/act", mail_actions.act, name="portal-mail-act"),
    path(
        "app/mail/act/do",
        limited("mail-act", by="user_or_ip", per_minute=60)(mail_actions.do),
        name="portal-mail-do",
    ),
    path("app/mail/actions", mail_actions.actions, name="portal-mail-actions"),
    path("app/mail/actions/<uuid:job_id>", mail_actions.action, name="portal-mail-action"),
    path(
        "app/mail/actions/<uuid:job_id>/cancel",
        limited("mail-act", by="user_or_ip", per_minute=60)(mail_actions.cancel),
        name="portal-mail-action-cancel",
    ),
    path("app/mail/storage", mail_store.storage, name="portal-mail-storage"),
    path("app/mail/message", mail_store.mail, name="portal-mail-message"),
    path("app/mail/message/html", mail_store.html, name="portal-mail-html"),
    path("app/mail/message/raw", mail_store.raw, name="portal-mail-raw"),
    path("app/mail/logs", mail_logs.log, name="portal-mail-logs"),
    path("app/mail/logs/export", mail_logs.export, name="portal-mail-logs-export"),
    path("app/mail/charts", mail_charts.charts, name="portal-mail-charts"),
    path(
        "app/mail/alerts",
        limited("mail-alerts", by="user_or_ip", per_minute=30)(mail_alerts.alerts),
        name="portal-mail-alerts",
    ),
    path("app/jobs", jobs.job_list, name="portal-jobs"),
    path("app/jobs/<uuid:job_id>", jobs.job, name="portal-job"),
    path("app/jobs/<uuid:job_id>/download", jobs.download, name="portal-job-download"),
    path("app/jobs/<uuid:job_id>/cancel", jobs.cancel, name="portal-job-cancel"),
    path(
        "app/webhooks",
        limited("webhook", by="user_or_ip", per_minute=30)(webhooks.webhooks),
        name="portal-webhooks",
    ),
    path("app/webhooks/per-request", webhooks.per_request, name="portal-webhook-per-request"),
    path("app/webhooks/<uuid:webhook_id>", webhooks.webhook, name="portal-webhook"),
    path(
        "app/webhooks/<uuid:webhook_id>/edit",
        limited("webhook", by="user_or_ip", per_minute=30)(webhooks.edit),
        name="portal-webhook-edit",
    ),
    path(
        "app/webhooks/<uuid:webhook_id>/switch",
        limited("probe", by="user_or_ip", per_minute=20)(webhooks.switch),
        name="portal-webhook-switch",
    ),
    path(
        "app/webhooks/<uuid:webhook_id>/rotate-secret",
        webhooks.rotate_secret,
        name="portal-webhook-rotate",
    ),
    path(
        "app/webhooks/<uuid:webhook_id>/test",
        limited("webhook-test", by="user_or_ip", per_minute=60)(webhooks.test),
        name="portal-webhook-test",
    ),
    path("app/webhooks/<uuid:webhook_id>/recover", webhooks.recover, name="portal-webhook-recover"),
    path("app/webhooks/<uuid:webhook_id>/delete", webhooks.delete, name="portal-webhook-delete"),
    path(
        "app/webhooks/<uuid:webhook_id>/debugger",
        limited("debugger", by="user_or_ip", per_minute=60)(webhooks.debug),
        name="portal-webhook-debugger",
    ),
    path("app/deliveries/<uuid:delivery_id>", webhooks.delivery, name="portal-delivery"),
    path(
        "app/deliveries/<uuid:delivery_id>/resend", webhooks.resend, name="portal-delivery-resend"
    ),
    path("app/inbox", inbox.inbox_page, name="portal-inbox"),
    path("app/inbox/webhook", inbox.make_webhook, name="portal-inbox-webhook"),
    path("app/inbox/clear", inbox.clear, name="portal-inbox-clear"),
    path(
        "app/people",
        limited("invite", by="user_or_ip", per_minute=30)(people.people_page),
        name="portal-people",
    ),
    path(
        "app/people/invitations/<uuid:invitation_id>/resend",
        limited("invite", by="user_or_ip", per_minute=30)(people.resend),
        name="portal-invitation-resend",
    ),
    path(
        "app/people/invitations/<uuid:invitation_id>/withdraw",
        people.withdraw,
        name="portal-invitation-withdraw",
    ),
    path("app/people/<int:membership_id>/role", people.change_role, name="portal-member-role"),
    path("app/people/<int:membership_id>/remove", people.remove, name="portal-member-remove"),
    path(
        "app/people/<int:membership_id>/hand-over",
        people.hand_over,
        name="portal-member-hand-over",
    ),
    path("app/people/domains", people.add_domain, name="portal-domain-add"),
    path(
        "app/people/domains/<uuid:domain_id>/verify",
        limited("domain", by="user_or_ip", per_minute=20)(people.verify_domain),
        name="portal-domain-verify",
    ),
    path(
        "app/people/domains/<uuid:domain_id>/remove",
        people.remove_domain,
        name="portal-domain-remove",
    ),
    path("app/usage", usage.usage, name="portal-usage"),
    path("app/usage/export", usage.export, name="portal-usage-export"),
    path("app/search", palette.search, name="portal-search"),
    path("app/audit", audit.trail, name="portal-audit"),
    path("app/audit/export", audit.export, name="portal-audit-export"),
    path("app/workspace", people.workspace_settings, name="portal-workspace"),
    path(
        "app/workspaces/new",
        limited("workspace", by="user_or_ip", per_minute=10)(people.new_workspace),
        name="portal-workspace-new",
    ),
    path("app/workspaces/<uuid:workspace_id>", people.switch, name="portal-workspace-switch"),
    path("app/invitations/<uuid:invitation_id>", people.accept, name="portal-invitation-accept"),
    path("app/domains/<uuid:domain_id>/join", people.join_by_domain, name="portal-domain-join"),
    path("app/welcome", people.welcome, name="portal-welcome"),
    path(
        "app/join/<str:token>",
        limited("join", by="ip", per_minute=30)(people.join),
        name="portal-join",
    ),
    path("guides/", guides.guides, name="portal-guides"),
    path("guides", RedirectView.as_view(url="/guides/", **READ), name="portal-guides-bare"),
    path("guides/<slug:slug>", guides.guide, name="portal-guide"),
    path("guides/<slug:slug>.md", guides.guide_source, name="portal-guide-source"),
    path("llms.txt", guides.llms, name="portal-llms"),
    path("app/settings", views.settings_page, name="portal-settings"),
    path("app/settings/mails", views.mails, name="portal-preferences"),
    path(
        "app/settings/archive",
        limited("archive", by="user_or_ip", per_minute=3)(views.download_archive),
        name="portal-archive",
    ),
    path("app/settings/delete/undo", views.undo_deletion, name="portal-delete-undo"),
    path("app/settings/delete", views.delete_account, name="portal-delete-account"),
    path("app/settings/sessions/<int:session_id>", views.end_session, name="portal-end-session"),
]
