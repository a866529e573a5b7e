"""Addresses of the pages. allauth's own stand under `/accounts/`, with a limit on each form."""

from allauth.account import views as account
from django.urls import include, path

from portal import (
    feedback,
    inbox,
    jobs,
    keys,
    mail_queue,
    overview,
    playground,
    policy,
    request_log,
    views,
    webhooks,
)
from portal.limits import limited

urlpatterns = [
    path("", views.landing, name="portal-landing"),
    path("accounts/signup/", limited("register")(account.signup), name="account_signup"),
    path(
        "accounts/password/reset/",
        limited("reset")(account.password_reset),
        name="account_reset_password",
    ),
    path("accounts/", include("allauth.urls")),
    path("app/", overview.overview, name="portal-overview"),
    path("app/keys", keys.keys, name="portal-keys"),
    path("app/keys/<uuid:key_id>", keys.key, name="portal-key"),
    path("app/keys/<uuid:key_id>/rotate", keys.rotate, name="portal-key-rotate"),
    path("app/keys/<uuid:key_id>/revoke", keys.revoke, name="portal-key-revoke"),
    path("app/keys/<uuid:key_id>/policy", policy.policy, name="portal-key-policy"),
    path(
        "app/keys/<uuid:key_id>/calibrate",
        limited("calibrate", by="user_or_ip", per_minute=6)(policy.calibrate),
        name="portal-key-calibrate",
    ),
    path("app/keys/<uuid:key_id>/threshold", policy.use_threshold, name="portal-key-use-threshold"),
    path("app/first-steps", overview.first_steps, name="portal-first-steps"),
    path("app/playground", playground.playground, name="portal-playground"),
    path(
        "app/playground/key",
        limited("playground", by="user_or_ip", per_minute=20)(playground.session_key),
        name="portal-playground-key",
    ),
    path("app/requests", request_log.requests, name="portal-requests"),
    path("app/requests/<uuid:request_id>", request_log.one, name="portal-request"),
    path("app/requests/<uuid:request_id>/feedback", feedback.give, name="portal-request-feedback"),
    path("app/mail-queue", mail_queue.mail_queue, name="portal-mail-queue"),
    path(
        "app/mail-queue/ticket",
        limited("mail-queue", by="user_or_ip", per_minute=30)(mail_queue.ticket),
        name="portal-mail-queue-ticket",
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
    path("app/inbox", inbox.inbox_room, name="portal-inbox"),
    path("app/inbox/webhook", inbox.make_webhook, name="portal-inbox-webhook"),
    path("app/inbox/clear", inbox.clear, name="portal-inbox-clear"),
    path("guides/quickstart", views.quickstart, name="portal-quickstart"),
    path("app/settings", views.settings_page, name="portal-settings"),
    path("app/settings/delete", views.delete_account, name="portal-delete-account"),
    path("app/settings/sessions/<int:session_id>", views.end_session, name="portal-end-session"),
]
