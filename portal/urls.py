"""Addresses of the pages. allauth's own stand under `/accounts/`, with a limit on each form."""

from allauth.account import views as account
from django.urls import include, path

from portal import mail_queue, playground, request_log, rooms, views
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
    path("app/", rooms.overview, name="portal-overview"),
    path("app/keys", rooms.keys, name="portal-keys"),
    path("app/keys/<uuid:key_id>", rooms.key, name="portal-key"),
    path("app/keys/<uuid:key_id>/rotate", rooms.rotate, name="portal-key-rotate"),
    path("app/keys/<uuid:key_id>/revoke", rooms.revoke, name="portal-key-revoke"),
    path("app/first-steps", rooms.first_steps, name="portal-first-steps"),
    path("app/playground", playground.playground, name="portal-playground"),
    path(
        "app/playground/key",
        limited("playground", by="user_or_ip", per_minute=20)(playground.session_key),
        name="portal-playground-key",
    ),
    path("app/requests", request_log.requests, name="portal-requests"),
    path("app/requests/<uuid:request_id>", request_log.one, name="portal-request"),
    path("app/mail-queue", mail_queue.mail_queue, name="portal-mail-queue"),
    path("app/mail-queue/ticket", mail_queue.ticket, name="portal-mail-queue-ticket"),
    path("guides/quickstart", views.quickstart, name="portal-quickstart"),
    path("app/settings", views.settings_page, name="portal-settings"),
    path("app/settings/delete", views.delete_account, name="portal-delete-account"),
    path("app/settings/sessions/<int:session_id>", views.end_session, name="portal-end-session"),
]
