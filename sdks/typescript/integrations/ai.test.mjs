// The Vercel AI SDK's own functions, with its mock of a model.
import assert from "node:assert/strict";
import { test } from "node:test";

import * as ai from "ai";
import * as mocks from "ai/test";
import { Blocked } from "gateway-guard";
import { guardMiddleware } from "gateway-guard/ai";

import { ATTACK, LONG, gateway } from "./fakes.mjs";

const { generateText, jsonSchema, streamText, tool, wrapLanguageModel } = ai;
// Names that differ between versions.
const stepCountIs = ai.isStepCount ?? ai.stepCountIs;
const simulateReadableStream = ai.simulateReadableStream ?? mocks.simulateReadableStream;
const Mock = Object.entries(mocks).filter(([name]) => /^MockLanguageModelV\d+$/.test(name)).sort().at(-1)[1];
const usage = {
  inputTokens: { total: 1, noCache: 1, cacheRead: 0, cacheWrite: 0 },
  outputTokens: { total: 1, text: 1, reasoning: 0 },
};
const finish = (reason) => ({ unified: reason, raw: reason });

function world(door, contents, options) {
  const asked = [];
  const next = () => (contents.length > 1 ? contents.shift() : contents[0]);
  const model = new Mock({
    doGenerate: async (params) => {
      asked.push(params);
      const content = next();
      const reason = content.some((one) => one.type === "tool-call") ? "tool-calls" : "stop";
      return { content, finishReason: finish(reason), usage, warnings: [] };
    },
    doStream: async (params) => {
      asked.push(params);
      const parts = next().flatMap((part) =>
        part.type === "text"
          ? [
              { type: "text-start", id: "1" },
              ...part.text.match(/[^]{1,12}/g).map((delta) => ({ type: "text-delta", id: "1", delta })),
              { type: "text-end", id: "1" },
            ]
          : [
              { type: "tool-input-start", id: part.toolCallId, toolName: part.toolName },
              { type: "tool-input-delta", id: part.toolCallId, delta: part.input },
              { type: "tool-input-end", id: part.toolCallId },
              part,
            ],
      );
      const chunks = [{ type: "stream-start", warnings: [] }, ...parts, { type: "finish", finishReason: finish("stop"), usage }];
      return { stream: simulateReadableStream({ chunks, initialDelayInMs: null, chunkDelayInMs: null }) };
    },
  });
  return { asked, model: wrapLanguageModel({ model, middleware: guardMiddleware(door.guard(options)) }) };
}

const text = (value) => [{ type: "text", text: value }];
const call = (value) => [{ type: "tool-call", toolCallId: "c1", toolName: "mail", input: JSON.stringify({ text: value }) }];
const tools = (returns) => ({
  mail: tool({
    description: "Sends a mail.",
    inputSchema: jsonSchema({ type: "object", properties: { text: { type: "string" } } }),
    execute: async () => returns,
  }),
});
const blocked = (where) => (error) => {
  const found = error instanceof Blocked ? error : error.cause;
  assert.ok(found instanceof Blocked, String(error?.stack));
  return found.where === where;
};

test("a prompt passes and each part is checked as what it is", async (t) => {
  const door = await gateway(t);
  const { model } = world(door, [call("hello"), text("Sent.")]);
  const result = await generateText({
    model, system: ATTACK, prompt: "Write to him.", tools: tools("It was sent."), stopWhen: stepCountIs(3), maxRetries: 0,
  });
  assert.equal(result.text, "Sent.");
  const kinds = new Set(door.asked.map(([kind]) => kind));
  assert.deepEqual([...kinds].sort(), ["model_output", "tool_call", "tool_definition", "tool_output", "user_input"]);
  assert.ok(door.asked.some(([kind, value]) => kind === "tool_output" && value === "It was sent."));
});

test("an attack never reaches the model", async (t) => {
  const door = await gateway(t);
  const { model, asked } = world(door, [text("Fine.")]);
  await assert.rejects(generateText({ model, prompt: ATTACK, maxRetries: 0 }), blocked("a message"));
  assert.deepEqual(asked, []);
});

test("neither does what a tool returned", async (t) => {
  const door = await gateway(t);
  for (const returns of [ATTACK, { page: ATTACK }]) {
    const { model, asked } = world(door, [call("hello"), text("Sent.")]);
    await assert.rejects(
      generateText({ model, prompt: "Write.", tools: tools(returns), stopWhen: stepCountIs(3), maxRetries: 0 }),
      blocked("a tool's result"),
    );
    assert.equal(asked.length, 1);
  }
});

test("answers and calls of tools are checked", async (t) => {
  const door = await gateway(t);
  const ask = (content) => generateText({ ...world(door, [content]), prompt: "Write.", tools: tools("x"), maxRetries: 0 });
  await assert.rejects(ask(text(ATTACK)), blocked("an answer of the model"));
  await assert.rejects(ask(call(ATTACK)), blocked("a tool call"));
});

test("a stream gives out only what was judged", async (t) => {
  const door = await gateway(t);
  for (const [content, where, most] of [[text(LONG + ATTACK), "an answer of the model", 2_000], [call(ATTACK), "a tool call", 0]]) {
    const { model } = world(door, [content]);
    const failures = [];
    let seen = "";
    const result = streamText({
      model, prompt: "When?", tools: tools("x"), maxRetries: 0, onError: ({ error }) => failures.push(error),
    });
    for await (const part of result.fullStream) {
      if (part.type === "text-delta") seen += part.text ?? part.delta ?? "";
      assert.notEqual(part.type, "tool-call");
    }
    assert.ok(blocked(where)(failures[0]));
    assert.ok(seen.length >= most && !seen.includes("Ignore"));
  }
});

test("a harmless stream arrives whole", async (t) => {
  const { model } = world(await gateway(t), [text(LONG)]);
  assert.equal(await streamText({ model, prompt: "When?", maxRetries: 0 }).text, LONG);
});
