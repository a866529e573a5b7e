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
      seen.push({ at: Date.now(), headers: request.headers });
      const reply = replies[Math.min(seen.length, replies.length) - 1];
      if (reply.silent) return;
      if (reply.drop) return void response.socket.destroy();
      const content = Buffer.from(reply.text ?? JSON.stringify(reply.body));
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

test("an address that is none, and no key, are refused at once", () => {
  assert.throws(() => new sdk.Client({ apiKey: "k", baseUrl: "gateway" }), /https:\/\/gateway/);
  assert.throws(() => new sdk.Client({ apiKey: "" }), /No API key/);
});

for (const one of read("chats.json")) {
  test(`a chat: ${one.what}`, () => {
    const texts = { request: sdk.textsOfRequest, answer: sdk.textsOfAnswer }[one.side](one.body);
    const found = texts.map(({ contentType, text }) => [contentType, text]);
    assert.deepEqual(found.sort(), one.texts.sort());
  });
}
