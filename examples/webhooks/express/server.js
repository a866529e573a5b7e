import express from "express";
import { verifyWebhook, WebhookVerificationError } from "gateway-guard";

const secrets = process.env.WEBHOOK_SECRET.split(" "); // two while the secret is rotated
const seen = new Set(); // in production: a column that is unique
const app = express();

// express.raw, not express.json: what is verified is exactly what came.
app.post("/hook", express.raw({ type: "*/*" }), async (request, response) => {
  try {
    const event = await verifyWebhook(request.body, request.headers, secrets);
    if (!seen.has(event.id)) { // an event may come twice
      seen.add(event.id);
      console.log(event.type, JSON.stringify(event.data.result)); // yours: put it into a queue
    }
    response.sendStatus(204);
  } catch (error) {
    if (!(error instanceof WebhookVerificationError)) throw error;
    console.log("refused:", error.message);
    response.sendStatus(401);
  }
});

app.listen(Number(process.env.PORT ?? 8500), "127.0.0.1");
