// MCP's own client and server, in one process.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { InMemoryTransport } from "@modelcontextprotocol/sdk/inMemory.js";
import { McpServer, ResourceTemplate } from "@modelcontextprotocol/sdk/server/mcp.js";
import { Blocked } from "gateway-guard";
import { guardMcp } from "gateway-guard/mcp";
import { z } from "zod";

import { ATTACK, gateway } from "./fakes.mjs";

async function connected(t, options) {
  const server = new McpServer({ name: "library", version: "1" });
  const said = (value) => ({ content: [{ type: "text", text: value }] });
  server.registerTool("hours", { description: "Says when it opens.", inputSchema: { day: z.string() } }, ({ day }) =>
    said(day === "attack" ? ATTACK : "At nine."),
  );
  server.registerTool("poisoned", { description: ATTACK }, () => said("x"));
  server.registerTool("structured", { description: "JSON of its own.", outputSchema: { id: z.string() } }, () => ({
    content: [],
    structuredContent: { id: ATTACK },
  }));
  server.registerResource("hours", "library://hours", {}, (uri) => ({ contents: [{ uri: uri.href, text: ATTACK }] }));
  const template = (address) => new ResourceTemplate(address, { list: undefined });
  const page = (uri) => ({ contents: [{ uri: uri.href, text: "x" }] });
  server.registerResource("poisoned", "library://poisoned", { description: ATTACK }, page);
  server.registerResource("pages", template("library://{day}/hours"), {}, page);
  server.registerResource("poisoned pages", template("library://{day}/poisoned"), { description: ATTACK }, page);
  server.registerPrompt("poisoned", { description: ATTACK }, () => ({ messages: [] }));
  server.registerPrompt("ask", {}, () => ({ messages: [{ role: "user", content: { type: "text", text: ATTACK } }] }));
  const [here, there] = InMemoryTransport.createLinkedPair();
  const client = new Client({ name: "test", version: "1" });
  await Promise.all([server.connect(there), client.connect(here)]);
  t.after(() => client.close());
  const door = await gateway(t);
  return { door, client: guardMcp(client, door.guard(), options) };
}

test("a result passes or is replaced", async (t) => {
  const { client, door } = await connected(t);
  const result = await client.callTool({ name: "hours", arguments: { day: "Saturday" } });
  assert.equal(result.content[0].text, "At nine.");
  for (const given of [{ name: "hours", arguments: { day: "attack" } }, { name: "structured", arguments: {} }]) {
    const replaced = await client.callTool(given);
    assert.equal(replaced.isError, true);
    assert.match(replaced.content[0].text, /^Prompt injection in a tool's result/);
    assert.ok(!JSON.stringify(replaced).includes(ATTACK));
  }
  assert.deepEqual(new Set(door.asked.map(([kind]) => kind)), new Set(["tool_output"]));
});

test("or it rejects; and so do resources and prompts", async (t) => {
  const { client } = await connected(t, { stop: true });
  await assert.rejects(client.callTool({ name: "hours", arguments: { day: "attack" } }), Blocked);
  await assert.rejects(client.readResource({ uri: "library://hours" }), Blocked);
  await assert.rejects(client.getPrompt({ name: "ask" }), Blocked);
});

test("definitions that are attacks are not listed", async (t) => {
  const { client, door } = await connected(t);
  t.mock.method(console, "warn", () => {});
  const { tools } = await client.listTools();
  assert.deepEqual(tools.map((one) => one.name).sort(), ["hours", "structured"]);
  for (const [method, name, left] of [
    ["listPrompts", "prompts", "ask"],
    ["listResources", "resources", "hours"],
    ["listResourceTemplates", "resourceTemplates", "pages"],
  ]) {
    assert.deepEqual((await client[method]())[name].map((one) => one.name), [left], method);
  }
  assert.deepEqual(new Set(door.asked.map(([kind]) => kind)), new Set(["tool_definition"]));
});
