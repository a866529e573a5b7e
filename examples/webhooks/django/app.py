import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from gateway_guard import errors, webhooks

SECRETS = os.environ["WEBHOOK_SECRET"].split()  # two while the secret is rotated
seen: set[str] = set()  # in production: a column that is unique
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"], SECRET_KEY="not used")


@csrf_exempt  # the signature says who sent it
@require_POST
def hook(request: HttpRequest) -> HttpResponse:
    try:
        event = webhooks.verify(request.body, request.headers, SECRETS)
    except errors.WebhookVerificationError as error:
        print("refused:", error, flush=True)
        return HttpResponse(status=401)
    if event["id"] not in seen:  # an event may come twice
        seen.add(event["id"])
        print(event["type"], event["data"]["result"], flush=True)  # yours: put it into a queue
    return HttpResponse(status=204)


urlpatterns = [path("hook", hook)]

if __name__ == "__main__":
    address = f"127.0.0.1:{os.environ.get('PORT', '8500')}"
    execute_from_command_line([sys.argv[0], "runserver", "--noreload", address])
