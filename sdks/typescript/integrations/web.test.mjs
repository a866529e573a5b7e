// Express and Next.js, as applications.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer, request as requested } from "node:http";
import { test } from "node:test";

import express from "express";
import { guardExpress, fields } from "gateway-guard/express";
import { guardRequest, guardRoute } from "gateway-guard/next";
import { NextRequest, NextResponse } from "next/server.js";

import { ATTACK, gateway } from "./fakes.mjs";

const BODIES = JSON.parse(readFileSync(new URL("../../vectors/bodies.json", import.meta.url)));
const PARSERS = [express.json({ limit: "1mb" }), express.urlencoded({ extended: false })];
const POST = { method: "POST", headers: { "content-type": "application/json" } };

async function served(t, app) {
  const server = createServer(app);
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  t.after(() => (server.closeAllConnections(), server.close()));
  return `http://127.0.0.1:${server.address().port}`;
}

async function expressed(t, guard, options, parsers = PARSERS) {
  const app = express();
  app.use(...parsers, guardExpress(guard, options));
  app.post(/.*/, (request, response) => {
    response.json({ got: request.body, verdicts: request.gatewayGuard?.map((one) => one.decision) });
  });
  app.use((error, _request, response, _next) => response.sendStatus(error.status ?? 500));
  const address = await served(t, app);
  return (body, path = "/chat", more = {}) =>
    fetch(`${address}${path}`, {
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
      [{ messages: [{ role: "system", content: ATTACK }] }, "a message"],
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
  app.post("/chat", (_, response) => response.send("no body, no fault"));
  const told = [];
  app.use((error, _request, response, _next) => (told.push(error.message), response.sendStatus(500)));
  const address = await served(t, app);
  assert.equal((await fetch(`${address}/chat`, { method: "POST" })).status, 200);
  await fetch(`${address}/chat`, { ...POST, body: "{}" });
  assert.match(told[0], /express\.json/);
});

test("Express: no body is no fault, and what no parser took is 415", async (t) => {
  const door = await gateway(t);
  const call = await expressed(t, door.guard());
  assert.equal((await call("", "/logout", { body: undefined, headers: {} })).status, 200);
  const form = new FormData();
  form.set("message", ATTACK);
  for (const more of [
    { body: form, headers: {} },
    { body: ATTACK, headers: { "content-type": "text/plain" } },
    { body: JSON.stringify({ message: ATTACK }), headers: { "content-type": "application/octet-stream" } },
  ]) {
    const answer = await call("", "/chat", more);
    assert.deepEqual([answer.status, (await answer.json()).code], [415, "body_not_readable"]);
  }
  assert.deepEqual(door.asked, []);
});

test("Express: what other parsers took is read", async (t) => {
  const door = await gateway(t);
  const given = JSON.stringify({ message: ATTACK }).replace("I", "\\u0049");
  for (const [parser, body] of [
    [express.text({ type: "*/*" }), ATTACK],
    [express.raw({ type: "*/*" }), given],
    [express.json({ type: "*/*", strict: false }), JSON.stringify(ATTACK)],
    [express.urlencoded({ type: "*/*", extended: true }), "message[a][]=" + encodeURIComponent(ATTACK)],
  ]) {
    const call = await expressed(t, door.guard(), {}, [parser]);
    assert.equal((await call(body, "/chat", { headers: { "content-type": "text/plain" } })).status, 403);
  }
});

test("Express: whatever a router takes for the path is guarded, by whatever method", async (t) => {
  const door = await gateway(t);
  const reached = [];
  const chat = (request, response) => (reached.push([request.method, request.url]), response.send("read"));
  const app = express();
  app.use(...PARSERS, guardExpress(door.guard(), { paths: ["/chat", "/api/chat", "/straße"] }));
  app.all(["/chat", "/api/chat", "/straße", "/chat/:id"], chat);
  const mounted = express.Router();
  mounted.use(guardExpress(door.guard(), { paths: ["/ask"] }));
  mounted.all("/ask", chat);
  app.use("/mounted", mounted);
  const address = new URL(await served(t, app));
  const body = JSON.stringify({ message: ATTACK });
  const ask = (method, path) =>
    new Promise((done) => {
      const headers = { ...POST.headers, "content-length": Buffer.byteLength(body) };
      const sent = requested({ host: address.hostname, port: address.port, method, path, headers }, (answer) => {
        answer.resume();
        done(answer.statusCode);
      });
      sent.end(body);
    });
  for (const method of ["POST", "PUT", "PATCH", "DELETE", "GET", "OPTIONS"]) {
    for (const path of ["/chat", "/CHAT", "/chat/", "/Chat/7", "/API/chat", "/mounted/ASK", "/MOUNTED/ask/"]) {
      assert.equal(await ask(method, path), 403, `${method} ${path}`);
    }
    for (const path of ["//chat", "/%63hat", "/stra%C3%9Fe", "/STRA%C3%9FE", "/./chat", "/x/../chat"]) {
      await ask(method, path); // whether it is one is for the router to say
    }
  }
  assert.deepEqual(reached, []);
});

for (const one of BODIES) {
  test(`Express, with parsers of all kinds: ${one.what}`, async (t) => {
    const found = [];
    const extract = (body) => (found.push(...fields("message")(body)), []);
    const json = express.json({ type: ["json", "+json"], strict: false, limit: "1mb" });
    const parsers = [json, PARSERS[1], express.text(), express.raw({ type: () => true })];
    const call = await expressed(t, (await gateway(t)).guard(), { extract }, parsers);
    const body = Buffer.from(one.body ?? one.base64, one.body === undefined ? "base64" : "utf8");
    const { status } = await call("", "/chat", { body, headers: one.type ? { "content-type": one.type } : {} });
    const texts = found.map(({ text }) => text).sort();
    // A parser that takes all as texts and another that refuses more are for the application to choose.
    if (status === 200 && !one.refused && !/text\/plain|form/.test(one.type)) assert.deepEqual(texts, one.texts.sort());
    if (status === 200 && one.texts?.length && !/JSON .* form/.test(one.what)) assert.notDeepEqual(texts, []);
    assert.ok(status === 200 || (status >= 400 && status < 500), String(status));
  });
}

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
