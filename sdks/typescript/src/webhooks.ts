/** Verifying what the gateway sends (Standard Webhooks), with WebCrypto. */

import { WebhookVerificationError } from "./errors.js";

const TOLERANCE_SECONDS = 300;
const PREFIX = "whsec_";

export type HeadersLike = Headers | Record<string, string | string[] | undefined>;

export interface WebhookEvent {
  id: string;
  type: string;
  timestamp: string;
  request_id?: string;
  api_key_id?: string;
  data: { result: Record<string, unknown>; metadata: Record<string, unknown> };
  [name: string]: unknown;
}

/**
 * The event, if it is from the gateway, unchanged and recent.
 *
 * `body`: exactly what came, before anything parsed it. `secrets`: one, or during a rotation all
 * that are valid. `now`: Unix seconds. Rejects with `WebhookVerificationError`.
 */
export async function verifyWebhook(
  body: string | Uint8Array,
  headers: HeadersLike,
  secrets: string | readonly string[],
  options: { toleranceSeconds?: number; now?: number } = {},
): Promise<WebhookEvent> {
  const id = headerOf(headers, "webhook-id");
  const timestamp = headerOf(headers, "webhook-timestamp");
  const signatures = headerOf(headers, "webhook-signature");
  if (!/^[0-9]+$/.test(timestamp)) {
    throw new WebhookVerificationError("webhook-timestamp is not a number of seconds.");
  }
  const age = (options.now ?? Date.now() / 1000) - Number(timestamp);
  if (Math.abs(age) > (options.toleranceSeconds ?? TOLERANCE_SECONDS)) {
    throw new WebhookVerificationError(
      `Signed ${Math.abs(Math.round(age))} s ${age > 0 ? "ago" : "ahead"}: a replay, or the clock of this machine is wrong.`,
    );
  }
  const raw = typeof body === "string" ? new TextEncoder().encode(body) : body;
  const head = new TextEncoder().encode(`${id}.${timestamp}.`);
  const signed = new Uint8Array(head.length + raw.length);
  signed.set(head);
  signed.set(raw, head.length);
  const given = signatures.split(" ").filter((one) => one.startsWith("v1,"));
  let fits = false;
  for (const secret of typeof secrets === "string" ? [secrets] : secrets) {
    const key = await crypto.subtle.importKey(
      "raw",
      keyOf(secret),
      { name: "HMAC", hash: "SHA-256" },
      false,
      ["verify"],
    );
    for (const one of given) {
      const bytes = decoded(one.slice(3));
      // `verify` compares in constant time.
      if (bytes && (await crypto.subtle.verify("HMAC", key, bytes, signed))) fits = true;
    }
  }
  if (!fits) {
    throw new WebhookVerificationError(
      "No signature fits: another secret, or the body was changed on its way. Verify the bytes as they came, before anything parses them.",
    );
  }
  let event: unknown;
  try {
    event = JSON.parse(new TextDecoder().decode(raw));
  } catch (cause) {
    throw new WebhookVerificationError("Signed, but the body is not JSON.", { cause });
  }
  if (typeof event !== "object" || event === null || Array.isArray(event)) {
    throw new WebhookVerificationError("Signed, but the body is not an event.");
  }
  return event as WebhookEvent;
}

function headerOf(headers: HeadersLike, name: string): string {
  let value: string | string[] | null | undefined;
  if (typeof (headers as Headers).get === "function") {
    value = (headers as Headers).get(name);
  } else {
    for (const [key, one] of Object.entries(headers as Record<string, string | string[] | undefined>)) {
      if (key.toLowerCase() === name) value = one;
    }
  }
  if (Array.isArray(value)) value = value[0];
  if (!value) throw new WebhookVerificationError(`The header ${name} is missing.`);
  return value;
}

function keyOf(secret: string): Uint8Array<ArrayBuffer> {
  const text = secret.startsWith(PREFIX) ? secret.slice(PREFIX.length) : secret;
  const key = decoded(text);
  if (!key || key.length === 0) {
    throw new WebhookVerificationError("A secret begins with whsec_ and is base64.");
  }
  return key;
}

function decoded(text: string): Uint8Array<ArrayBuffer> | undefined {
  try {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  } catch {
    return undefined;
  }
}
