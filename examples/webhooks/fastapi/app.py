import os

from fastapi import FastAPI, Request, Response
from gateway_guard import errors, webhooks

SECRETS = os.environ["WEBHOOK_SECRET"].split()  # two while the secret is rotated
seen: set[str] = set()  # in production: a column that is unique
app = FastAPI()


@app.post("/hook")
async def hook(request: Request) -> Response:
    body = await request.body()  # exactly what came: verify first, parse afterwards
    try:
        event = webhooks.verify(body, request.headers, SECRETS)
    except errors.WebhookVerificationError as error:
        print("refused:", error, flush=True)
        return Response(status_code=401)
    if event["id"] not in seen:  # an event may come twice
        seen.add(event["id"])
        print(event["type"], event["data"]["result"], flush=True)  # yours: put it into a queue
    return Response(status_code=204)
