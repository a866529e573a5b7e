from webhooks.tests.conftest import make_webhook, receiver, webhook  # noqa: F401 - who is told
