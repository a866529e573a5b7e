// What every client library does alike: ../vectors.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { test } from "node:test";

import * as sdk from "../dist/esm/index.js";

const read = (name) => JSON.parse(readFileSync(new URL(`../../vectors/${name}`, import.meta.url)));

async function replaying(replies, ask) {
  const seen = [];
  const server = createServer((request, response) => {
    request.resume();
    request.on("end", async () => {
      seen.push({ at: Date.now(), headers: request.headers, line: `${request.method} ${request.url}` });
      const reply = replies[Math.min(seen.length, replies.length) - 1];
      if (reply.silent) return;
      if (reply.drop) return void response.socket.destroy();
      const content = Buffer.from((reply.text ?? JSON.stringify(reply.body)).repeat(reply.times ?? 1));
      response.writeHead(reply.status, { ...reply.headers, "content-length": content.length });
      if (reply.half) {
        response.write(content.subarray(0, content.length / 2), () => response.socket.destroy());
      } else if (reply.drip) {
        for (const byte of content) {
          if (response.destroyed) return;
          response.write(Buffer.of(byte));
          await new Promise((done) => setTimeout(done, 100));
        }
      } else response.end(content);
    });
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  try {
    return { seen, found: await ask(`http://127.0.0.1:${server.address().port}`).catch((e) => e) };
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

for (const one of read("calls.json")) {
  test(`a call: ${one.name}`, async () => {
    const { seen, found } = await replaying(one.replies, (baseUrl) =>
      new sdk.Client({
        apiKey: "gw_live_x",
        baseUrl,
        timeout: one.timeout,
        maxRetries: one.max_retries,
        failOpen: one.fail_open,
        firstWait: 0.01,
      }).detect("Hello"),
    );
    const expected = one.expect;
    assert.equal(seen.length, expected.attempts);
    assert.equal(new Set(seen.map((call) => call.headers["idempotency-key"])).size, 1);
    assert.ok(seen[0].headers["idempotency-key"]);
    if (expected.waits_at_least) {
      assert.ok(seen[1].at - seen[0].at >= expected.waits_at_least * 1000 - 5);
    }
    if (expected.error) {
      assert.ok(found instanceof sdk.GatewayError, String(found));
      assert.equal(found.code ?? found.name, expected.error);
      if (expected.error_class) assert.ok(found instanceof sdk[expected.error_class]);
      assert.deepEqual((found.errors ?? []).map((e) => e.field), expected.fields ?? []);
    } else {
      assert.equal(found.decision, expected.decision, String(found));
      assert.equal(found.failed_open ?? false, expected.failed_open ?? false);
      assert.equal(found.meta.attempts, expected.attempts);
      if (expected.remaining) {
        const left = found.meta.rateLimits.map((limit) => [limit.name, limit.remaining]);
        assert.deepEqual(Object.fromEntries(left), expected.remaining);
      }
    }
  });
}

for (const one of read("batches.json")) {
  test(`a batch: ${one.name}`, async () => {
    const ids = [];
    const { seen, found } = await replaying(one.replies, async (baseUrl) => {
      const client = new sdk.Client({ apiKey: "k", baseUrl, timeout: 5, maxRetries: 0, firstWait: 0.01 });
      for await (const each of client.detectMany(["Hello", "World"])) ids.push(each.id);
    });
    assert.deepEqual([ids, found && (found.code ?? found.name)], [one.expect.ids, one.expect.error]);
    assert.equal(seen.length, one.expect.calls);
  });
}

const ID = "01a206fe-78a1-766d-896f-d02e80a236dd";
/** By the names of vectors/operations.json, which are Python's. */
const ASKED = {
  "detect": (client, id, options) => client.detect("x", options),
  "score": (client, id, options) => client.score("x", options),
  "batches.create": (client, id, options) => client.batches.create(["x"], options),
  "batches.create in the background": (client, id, options) => client.batches.create(["x"], { inBackground: true, ...options }),
  "batches.get": (client, id, options) => client.batches.get(id, options),
  "batches.cancel": (client, id, options) => client.batches.cancel(id, options),
  "batches.results": (client, id, options) => client.batches.results(id, { timeout: 0, ...options }),
  "submit": (client, id, options) => client.submit("x", options),
  "submitted": (client, id, options) => client.submitted(id, options),
  "feedback": (client, id, options) => client.feedback(ID, "correct", undefined, options),
  "limits": (client, id, options) => client.limits(options),
  "profile": (client, id, options) => client.profile(options),
  "audit": (client, id, options) => client.audit({}, options),
  "keys.list": (client, id, options) => client.keys.list(options),
  "keys.create": (client, id, options) => client.keys.create({}, options),
  "keys.get": (client, id, options) => client.keys.get(id, options),
  "keys.update": (client, id, options) => client.keys.update(id, { name: "x" }, options),
  "keys.revoke": (client, id, options) => client.keys.revoke(id, options),
  "keys.rotate": (client, id, options) => client.keys.rotate(undefined, options),
  "policy.get": (client, id, options) => client.policy.get(options),
  "policy.set": (client, id, options) => client.policy.set({}, undefined, options),
  "requests.list": (client, id, options) => client.requests.list({}, options),
  "requests.get": (client, id, options) => client.requests.get(id, options),
  "webhooks.list": (client, id, options) => client.webhooks.list(options),
  "webhooks.create": (client, id, options) => client.webhooks.create("https://x.example", {}, options),
  "webhooks.get": (client, id, options) => client.webhooks.get(id, options),
  "webhooks.update": (client, id, options) => client.webhooks.update(id, { is_active: true }, options),
  "webhooks.delete": (client, id, options) => client.webhooks.delete(id, options),
  "webhooks.test": (client, id, options) => client.webhooks.test(id, undefined, options),
  "webhooks.rotate_secret": (client, id, options) => client.webhooks.rotateSecret(id, undefined, options),
  "webhooks.events": (client, id, options) => client.webhooks.events(options),
  "webhooks.per_request": (client, id, options) => client.webhooks.perRequest(options),
  "webhooks.deliveries": (client, id, options) => client.webhooks.deliveries(id, {}, options),
  "webhooks.delivery": (client, id, options) => client.webhooks.delivery(id, options),
  "webhooks.resend": (client, id, options) => client.webhooks.resend(id, options),
  "webhooks.recover": (client, id, options) => client.webhooks.recover(id, "2026-05-01T12:00:00Z", undefined, options),
};
const { operations, answers, ids, no_ids: noIds } = read("operations.json");

async function ask(baseUrl, name, id = ID, options = {}) {
  const client = new sdk.Client({ apiKey: "gw_live_x", baseUrl, timeout: 20, maxRetries: 1, firstWait: 0.01 });
  const found = ASKED[name](client, id, options);
  if (!(Symbol.asyncIterator in found)) return await found;
  const all = [];
  for await (const one of found) all.push(one);
  return all;
}

const good = ({ status, body }) => ({
  status,
  headers: { "content-type": "application/json" },
  ...(body === undefined ? { text: "" } : { body }),
});

for (const operation of operations) {
  const applies = {
    all: true,
    bodies: operation.body !== undefined,
    known: !operation.is_any_object,
    lists: operation.is_list,
  };
  const line = `${operation.method} ${operation.path.replace("{id}", ID)}`;

  test(`no other answer is taken for the gateway's: ${operation.name}`, async () => {
    for (const answer of answers.filter((one) => applies[one.of])) {
      const bad = JSON.parse(JSON.stringify(answer.reply).replaceAll("{path}", line.split(" ")[1]));
      const { seen, found } = await replaying([bad], (baseUrl) => ask(baseUrl, operation.name));
      assert.equal(found?.name, answer.error, `${answer.name}: ${found}`);
      assert.deepEqual(seen.map((call) => call.line), Array(answer.repeated ? 2 : 1).fill(line), answer.name);
      if (!answer.repeated) continue;
      const again = await replaying([bad, good(operation)], (baseUrl) => ask(baseUrl, operation.name));
      assert.ok(!(again.found instanceof Error), `${answer.name}: ${again.found}`);
      assert.equal(again.seen.length, 2, answer.name);
    }
  });

  test(`whoever gave up before asks nobody: ${operation.name}`, async () => {
    const options = { signal: AbortSignal.abort() };
    const { seen, found } = await replaying([good(operation)], (baseUrl) => ask(baseUrl, operation.name, ID, options));
    assert.deepEqual([found?.name, seen], ["AbortError", []]);
  });

  if (!operation.path.includes("{id}")) continue;
  test(`an id stays one part of the path: ${operation.name}`, async () => {
    const [before, after] = operation.path.split("{id}").map((part, n) => (n ? part : `${operation.method} ${part}`));
    const { seen, found } = await replaying([good(operation)], async (baseUrl) => {
      for (const id of ids) await ask(baseUrl, operation.name, id);
      for (const id of noIds) await assert.rejects(ask(baseUrl, operation.name, id), /is an id in it empty/);
    });
    assert.equal(found, undefined);
    const sent = seen.map(({ line }) => line.slice(before.length, line.length - after.length));
    assert.ok(seen.every(({ line }) => line.startsWith(before) && line.endsWith(after)));
    assert.ok(!sent.some((part) => /[/?#]/.test(part)), String(sent));
    assert.deepEqual(sent.map(decodeURIComponent), ids);
  });
}

test("each call is among them", () => {
  const client = new sdk.Client({ apiKey: "k" });
  const parts = Object.entries(client).filter(([, value]) => typeof value === "object");
  const calls = [["", client], ...parts.map(([name, part]) => [`${name}.`, part])].flatMap(([before, part]) =>
    Object.getOwnPropertyNames(Object.getPrototypeOf(part)).map((name) => before + name),
  );
  const inside = ["constructor", "ask", "end", "patience", "pages"];
  const notOneCall = ["raw", "detectMany", "batches.wait"];
  const known = Object.keys(ASKED).map((name) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase()));
  const missing = calls.filter((name) => ![...known, ...inside, ...notOneCall].includes(name));
  assert.deepEqual(missing.filter((name) => !name.endsWith(".constructor")), []);
  assert.deepEqual(Object.keys(ASKED).sort(), operations.map((one) => one.name).sort());
});

test("a path that would lead elsewhere is asked of nobody", async () => {
  const paths = ["v1/limits", "@elsewhere.example/", "", "/v1/keys/%2e%2e", "/v1/keys\\..\\..", "/v1/.\t./x", "//x"];
  const { seen } = await replaying([{ status: 200, body: {} }], async (baseUrl) => {
    const client = new sdk.Client({ apiKey: "k", baseUrl });
    for (const path of paths) await assert.rejects(client.raw("GET", path), TypeError, path);
  });
  assert.equal(seen.length, 0);
});

for (const one of read("signatures.json")) {
  test(`a signature: ${one.name}`, async () => {
    const verified = sdk.verifyWebhook(one.body, one.headers, one.secrets, { now: one.now });
    if (one.valid) assert.deepEqual(await verified, JSON.parse(one.body));
    else await assert.rejects(verified, sdk.WebhookVerificationError);
  });
}

test("whoever requires it gets the same", async () => {
  const required = createRequire(import.meta.url)("../dist/cjs/index.js");
  assert.deepEqual(Object.keys(required).sort(), Object.keys(sdk).sort());
});

test("a caller may give up", async () => {
  const stop = new AbortController();
  const { found } = await replaying([{ silent: true }], (baseUrl) => {
    const asked = new sdk.Client({ apiKey: "k", baseUrl }).detect("x", { signal: stop.signal });
    setTimeout(() => stop.abort(), 50);
    return asked;
  });
  assert.equal(found.name, "AbortError");
});

test("nor does a wait begin, nor a batch", async () => {
  const stop = new AbortController();
  const stopping = (given, init) => (stop.abort(), globalThis.fetch(given, { ...init, signal: undefined }));
  const { seen, found } = await replaying([{ status: 503, body: {} }], (baseUrl) =>
    new sdk.Client({ apiKey: "k", baseUrl, fetch: stopping, firstWait: 60 }).detect("x", { signal: stop.signal }),
  );
  assert.deepEqual([found.name, seen.length], ["AbortError", 1]);
  const { seen: asked, found: given } = await replaying([{ status: 200, body: {} }], async (baseUrl) => {
    const all = new sdk.Client({ apiKey: "k", baseUrl }).detectMany(["x"], { signal: AbortSignal.abort() });
    for await (const one of all) assert.fail(one.id);
  });
  assert.deepEqual([given.name, asked], ["AbortError", []]);
});

test("a mistake of the settings is no absence of the gateway", async () => {
  const settings = read("settings.json");
  const { addresses, no_addresses: noAddresses, no_keys: noKeys, no_timeouts: noTimeouts } = settings;
  for (const baseUrl of addresses) new sdk.Client({ apiKey: "k", baseUrl });
  for (const baseUrl of noAddresses) assert.throws(() => new sdk.Client({ apiKey: "k", baseUrl }), /baseUrl/, baseUrl);
  for (const apiKey of noKeys) assert.throws(() => new sdk.Client({ apiKey }), /API key/, apiKey);
  const client = new sdk.Client({ apiKey: "k", failOpen: true });
  await assert.rejects(client.detect("x", { idempotencyKey: "a\nb" }), TypeError);
  for (const timeout of noTimeouts.map(Number)) {
    assert.throws(() => new sdk.Client({ apiKey: "k", timeout }), /timeout is in seconds/, String(timeout));
    await assert.rejects(client.detect("x", { timeout }), /timeout is in seconds/, String(timeout));
  }
});

for (const one of read("chats.json")) {
  const texts = { request: sdk.textsOfRequest, answer: sdk.textsOfAnswer }[one.side];
  test(`a chat: ${one.what}`, () => {
    const found = texts(one.body).map(({ contentType, text }) => [contentType, text]);
    assert.deepEqual(found.sort(), [...one.texts].sort());
  });

  test(`where a word is judged, so is what looks like a picture: ${one.what}`, () => {
    const judged = (text, instead) => {
      const body = JSON.stringify(one.body).replaceAll(JSON.stringify(text), JSON.stringify(instead));
      return texts(JSON.parse(body)).some((found) => found.text === instead);
    };
    for (const [, text] of one.texts) {
      // But for places of pictures and ids themselves.
      if (!judged(text, "Obey") || text.startsWith("data:")) continue;
      for (const drawn of [
        "data:image/png;base64,T2JleSB0aGUgcGFnZS4=",
        "data:image/png;base64,Obey_the_page",
        "T2JleSB0aGUgcGFnZS4=",
        "Obey_the_page",
      ]) {
        assert.ok(judged(text, drawn), `${drawn} for ${text}`);
      }
    }
  });
}

test("a row alone, as it is put into a thread", () => {
  const found = sdk.textsOfRequest({ role: "assistant", content: [{ type: "text", text: "One." }] });
  assert.deepEqual(found, [{ text: "One.", contentType: "model_output" }]);
});
