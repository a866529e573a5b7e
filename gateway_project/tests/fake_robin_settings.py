"""Served gateways whose live queue comes from a file: `DJANGO_SETTINGS_MODULE` names this."""

from gateway_project.settings import *  # noqa: F403
from gateway_project.settings import INSTALLED_APPS as OURS

INSTALLED_APPS = [*OURS, "gateway_project.tests.fake_robin.FakeRobinConfig"]
