// Express and Next.js, as applications.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";

import express from "express";
import { guardExpress, fields } from "gateway-guard/express";
import { guardRequest, guardRoute } from "gateway-guard/next";
import { NextRequest, NextResponse } from "next/server.js";

import { ATTACK, gateway } from "./world.mjs";

const POST = { method: "POST", headers: { "content-type": "application/json" } };

async function expressed(t, guard, options) {
  const app = express();
  app.use(express.json({ limit: "1mb" }), express.urlencoded({ extended: false }), guardExpress(guard, options));
  app.post(/.*/, (request, response) => {
    response.json({ got: request.body, verdicts: request.gatewayGuard?.map((one) => one.decision) });
  });
  const server = createServer(app);
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  t.after(() => (server.closeAllConnections(), server.close()));
  return (body, path = "/chat", more = {}) =>
    fetch(`http://127.0.0.1:${server.address().port}${path}`, {
      ...POST,
      body: typeof body === "string" ? body : JSON.stringify(body),
      ...more,
    });
}

/** Next's own request and answer, by way of a handler of a route. */
async function nexted(_, guard, options) {
  const handler = guardRoute(
    guard,
    async (request) => NextResponse.json({ got: await request.json().catch(() => undefined) }),
    options,
  );
  return (body, path = "/chat", more = {}) =>
    handler(
      new NextRequest(`http://localhost${path}`, {
        ...POST,
        body: typeof body === "string" ? body : JSON.stringify(body),
        ...more,
      }),
      { params: {} },
    );
}

for (const [name, make] of [["Express", expressed], ["Next.js", nexted]]) {
  test(`${name}: a body passes as it came`, async (t) => {
    const door = await gateway(t);
    const call = await make(t, door.guard());
    const body = { message: "When does it open?", password: "is not looked at" };
    const answer = await call(body);
    assert.equal(answer.status, 200);
    assert.deepEqual((await answer.json()).got, body);
    assert.deepEqual(door.asked, [["user_input", "When does it open?"]]);
  });

  test(`${name}: an attack is a problem`, async (t) => {
    const door = await gateway(t);
    const call = await make(t, door.guard());
    for (const [body, where] of [
      [{ message: ATTACK }, "a message"],
      [{ messages: [{ role: "tool", content: ATTACK }] }, "a tool's result"],
      [[{ role: "user", content: ATTACK }], "a message"],
    ]) {
      const answer = await call(body);
      assert.equal(answer.status, 403);
      assert.match(answer.headers.get("content-type"), /^application\/problem\+json/);
      const problem = await answer.json();
      assert.equal(problem.code, "prompt_injection");
      assert.ok(problem.detail.startsWith(`Prompt injection in ${where}: `));
      assert.ok(!problem.detail.includes(ATTACK));
    }
    const form = { headers: { "content-type": "application/x-www-form-urlencoded" } };
    assert.equal((await call(String(new URLSearchParams({ message: ATTACK })), "/chat", form)).status, 403);
  });

  test(`${name}: elsewhere nothing is asked`, async (t) => {
    const door = await gateway(t);
    const call = await make(t, door.guard(), { paths: ["/chat/"] });
    assert.equal((await call({ message: ATTACK }, "/other")).status, 200);
    assert.equal((await call({ message: ATTACK }, "/chatter")).status, 200);
    assert.deepEqual(door.asked, []);
    assert.equal((await call({ message: ATTACK }, "/chat/7")).status, 403);
  });

  test(`${name}: without a verdict it is 503, or passes and says so`, async (t) => {
    const door = await gateway(t);
    door.isAway = true;
    const answer = await (await make(t, door.guard()))({ message: ATTACK });
    assert.deepEqual([answer.status, (await answer.json()).code], [503, "no_verdict"]);
    t.mock.method(console, "warn", () => {});
    const open = await (await make(t, door.guard({ failOpen: true })))({ message: ATTACK });
    assert.deepEqual([open.status, open.headers.get("gateway-guard")], [200, "failed-open"]);
  });

  test(`${name}: what is extracted is for the caller to say`, async (t) => {
    const door = await gateway(t);
    const extract = (body) => [{ text: body.page, contentType: "document" }];
    await (await make(t, door.guard(), { extract }))({ page: "a page", message: "x" });
    await (await make(t, door.guard(), { extract: fields("note") }))({ note: "a note", message: "x" });
    assert.deepEqual(door.asked, [["document", "a page"], ["user_input", "a note"]]);
  });
}

test("Express: without a parser before it it says so", async (t) => {
  const door = await gateway(t);
  const app = express();
  app.use(guardExpress(door.guard()));
  const told = [];
  app.use((error, _request, response, _next) => (told.push(error.message), response.sendStatus(500)));
  const server = createServer(app);
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  t.after(() => (server.closeAllConnections(), server.close()));
  await fetch(`http://127.0.0.1:${server.address().port}/chat`, { ...POST, body: "{}" });
  assert.match(told[0], /express\.json/);
});

test("Next.js: middleware refuses or goes on, and the request can be read afterwards", async (t) => {
  const guard = (await gateway(t)).guard();
  const request = new NextRequest("http://localhost/chat", { ...POST, body: '{"message": "hello"}' });
  assert.equal(await guardRequest(guard, request), undefined);
  assert.deepEqual(await request.json(), { message: "hello" });
  const attack = new NextRequest("http://localhost/chat", { ...POST, body: JSON.stringify({ message: ATTACK }) });
  assert.equal((await guardRequest(guard, attack)).status, 403);
  assert.equal(await guardRequest(guard, new NextRequest("http://localhost/chat")), undefined);
  const large = new NextRequest("http://localhost/chat", { ...POST, body: JSON.stringify({ message: "x".repeat(99) }) });
  assert.equal((await guardRequest(guard, large, { bytesMax: 50 })).status, 413);
});
