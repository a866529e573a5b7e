// The libraries of OpenAI and Anthropic, before a local model.
import assert from "node:assert/strict";
import { test } from "node:test";

import Anthropic from "@anthropic-ai/sdk";
import { Blocked, ServerError } from "gateway-guard";
import { guardAnthropic } from "gateway-guard/anthropic";
import { guardOpenAI } from "gateway-guard/openai";
import OpenAI from "openai";

import { ATTACK, LONG, gateway, model } from "./fakes.mjs";

const HELLO = [{ role: "user", content: "When does it open?" }];
const blocked = (where) => (error) => {
  assert.ok(error instanceof Blocked, String(error?.stack));
  assert.equal(error.where, where);
  assert.ok(!error.message.includes(ATTACK));
  return true;
};
const all = async (stream) => {
  const found = [];
  for await (const one of stream) found.push(one);
  return found;
};

async function openai(t, options, guardOptions) {
  const [door, llm] = [await gateway(t), await model(t)];
  const plain = new OpenAI({ apiKey: "x", baseURL: `${llm.url}/v1`, maxRetries: 0 });
  return { door, llm, plain, client: guardOpenAI(plain, door.guard(guardOptions), options) };
}

test("OpenAI: it is the client that it was, and checks each part as what it is", async (t) => {
  const { client, door } = await openai(t);
  assert.ok(client instanceof OpenAI);
  const answer = await client.chat.completions.create({
    model: "m",
    messages: [{ role: "system", content: ATTACK }, ...HELLO, { role: "tool", tool_call_id: "c", content: "At nine." }],
  });
  assert.equal(answer.choices[0].message.content, "It opens at nine.");
  const { data, request_id } = await client.chat.completions.create({ model: "m", messages: HELLO }).withResponse();
  assert.equal(data.choices[0].message.content, "It opens at nine.", request_id);
  assert.equal((await client.responses.create({ model: "m", input: "When?" })).output_text, "It opens at nine.");
  assert.deepEqual(door.asked.slice(0, 3).sort(), [
    ["model_output", "It opens at nine."],
    ["tool_output", "At nine."],
    ["user_input", "When does it open?"],
  ]);
});

test("OpenAI: an attack never reaches the model", async (t) => {
  const { client, llm } = await openai(t);
  for (const [row, where] of [
    [{ role: "user", content: [{ type: "text", text: ATTACK }] }, "a message"],
    [{ role: "tool", tool_call_id: "c", content: ATTACK }, "a tool's result"],
  ]) {
    const asked = client.chat.completions.create({ model: "m", messages: [...HELLO, row] });
    await assert.rejects(asked, blocked(where));
  }
  const tools = [{ type: "function", function: { name: "f", description: ATTACK } }];
  await assert.rejects(client.chat.completions.create({ model: "m", messages: HELLO, tools }), blocked("a tool's definition"));
  await assert.rejects(client.responses.create({ model: "m", input: [{ type: "function_call_output", call_id: "c", output: ATTACK }] }), blocked("a tool's result"));
  await assert.rejects(client.withOptions({ timeout: 5000 }).embeddings.create({ model: "m", input: [ATTACK] }), blocked("a message"));
  assert.deepEqual(llm.asked, []);
});

test("OpenAI: answers and calls of tools", async (t) => {
  const { client, llm } = await openai(t);
  const ask = {
    chat: (more) => client.chat.completions.create({ model: "m", messages: HELLO, ...more }),
    parse: () => client.chat.completions.parse({ model: "m", messages: HELLO }),
    responses: () => client.responses.create({ model: "m", input: "When?" }),
  };
  llm.text = ATTACK;
  for (const one of Object.values(ask)) await assert.rejects(one(), blocked("an answer of the model"));
  llm.arguments = { text: ATTACK };
  await assert.rejects(ask.chat(), blocked("a tool call"));
  await assert.rejects(ask.responses(), blocked("a tool call"));
});

test("OpenAI: a stream gives out only what was judged", async (t) => {
  const { client, llm } = await openai(t);
  const ask = () => client.chat.completions.create({ model: "m", messages: HELLO, stream: true });
  assert.ok((await all(await ask())).length > 3);
  llm.text = LONG + ATTACK;
  let seen = "";
  await assert.rejects(async () => {
    for await (const one of await ask()) seen += one.choices[0].delta.content ?? "";
  }, blocked("an answer of the model"));
  assert.ok(seen.length > 2_000 && !seen.includes("Ignore"));
  llm.arguments = { text: ATTACK };
  const held = [];
  await assert.rejects(async () => {
    for await (const one of await ask()) held.push(one);
  }, blocked("a tool call"));
  assert.deepEqual(held, []);
});

test("OpenAI: without a verdict nothing is sent, unless it fails open and says so", async (t) => {
  const { door, llm, client, plain } = await openai(t);
  door.isAway = true;
  await assert.rejects(client.chat.completions.create({ model: "m", messages: HELLO }), ServerError);
  assert.deepEqual(llm.asked, []);
  const told = [];
  t.mock.method(console, "warn", () => {});
  const open = guardOpenAI(plain, door.guard({ failOpen: true, onVerdict: (_, found) => told.push(found.failed_open) }));
  assert.ok((await open.chat.completions.create({ model: "m", messages: HELLO })).choices);
  assert.deepEqual(told, [true, true]);
  assert.equal(console.warn.mock.callCount(), 2);
});

test("OpenAI: answers may be left out, and the first client stays as it is", async (t) => {
  const { client, llm, plain } = await openai(t, { answers: false });
  llm.text = ATTACK;
  assert.ok((await client.chat.completions.create({ model: "m", messages: HELLO })).choices);
  assert.ok((await plain.chat.completions.create({ model: "m", messages: [{ role: "user", content: ATTACK }] })).choices);
});

test("Anthropic: requests, answers, streams", async (t) => {
  const [door, llm] = [await gateway(t), await model(t)];
  const plain = new Anthropic({ apiKey: "x", baseURL: llm.url, maxRetries: 0 });
  const client = guardAnthropic(plain, door.guard());
  const ask = (content, more) =>
    client.messages.create({ model: "m", max_tokens: 9, system: ATTACK, messages: [{ role: "user", content }], ...more });
  assert.equal((await ask("When?")).content[0].text, "It opens at nine.");
  const document = { type: "document", source: { type: "text", media_type: "text/plain", data: ATTACK } };
  await assert.rejects(ask([document]), blocked("a document"));
  await assert.rejects(ask([{ type: "tool_result", tool_use_id: "t", content: ATTACK }]), blocked("a tool's result"));
  assert.equal(llm.asked.length, 1);
  assert.equal(await client.messages.stream({ model: "m", max_tokens: 9, messages: HELLO }).finalText(), "It opens at nine.");
  llm.text = LONG + ATTACK;
  await assert.rejects(ask("When?"), blocked("an answer of the model"));
  let seen = "";
  await assert.rejects(async () => {
    for await (const one of await ask("When?", { stream: true })) seen += one.delta?.text ?? "";
  }, blocked("an answer of the model"));
  assert.ok(seen.length > 2_000 && !seen.includes("Ignore"));
  llm.text = "It opens at nine.";
  llm.result = { type: "web_search_tool_result", content: [{ type: "web_search_result", title: ATTACK }] };
  await assert.rejects(async () => {
    for await (const one of await ask("When?", { stream: true })) assert.fail(one.type);
  }, blocked("a tool's result"));
  llm.arguments = { text: ATTACK };
  await assert.rejects(ask("When?"), blocked("a tool call"));
});
