"""Addresses of the pages. allauth's own stand under `/accounts/`, with a limit on each form."""

from allauth.account import views as account
from django.urls import include, path

from portal import views
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
    path("app/settings", views.settings_page, name="portal-settings"),
    path("app/settings/delete", views.delete_account, name="portal-delete-account"),
]
