import { textsOfMcp } from "./chats.js";
import { Blocked } from "./errors.js";
import type { Guard } from "./guard.js";

/* eslint-disable @typescript-eslint/no-explicit-any -- of several versions of the protocol's types */
type Any = any;

const LISTS = {
  listTools: "tools",
  listPrompts: "prompts",
  listResources: "resources",
  listResourceTemplates: "resourceTemplates",
};

export interface McpOptions {
  /** An attack in a tool's result rejects with `Blocked`, instead of being replaced. */
  stop?: boolean;
}

/**
 * The same client of MCP (`@modelcontextprotocol/sdk`), which from now on checks
 *
 * - what tools return, as `tool_output`: an attack is replaced by an error result that says so;
 * - resources and prompts: an attack rejects with `Blocked`;
 * - definitions of tools, prompts, resources and their templates: those that are attacks are not listed,
 *   and a warning is written.
 *
 * A server's instructions, which came when the client connected, are not checked.
 */
export function guardMcp<C extends object>(client: C, guard: Guard, options: McpOptions = {}): C {
  const own: Any = client;
  const ask = (name: string) => own[name].bind(own);
  const callTool = ask("callTool");
  own.callTool = async (...given: Any[]) => {
    const result = await callTool(...given);
    try {
      await guard.checkAll(textsOfMcp(result));
    } catch (error) {
      if (options.stop || !(error instanceof Blocked)) throw error;
      return { content: [{ type: "text", text: error.message }], isError: true };
    }
    return result;
  };
  for (const [method, name] of Object.entries(LISTS)) {
    const list = ask(method);
    own[method] = async (...given: Any[]) => {
      const result = await list(...given);
      const kept = [];
      for (const one of result[name]) {
        try {
          await guard.check(JSON.stringify(one), "tool_definition");
          kept.push(one);
        } catch (error) {
          if (!(error instanceof Blocked)) throw error;
          console.warn(`gateway-guard: ${one.name} of the MCP server was left out: ${error.message}`);
        }
      }
      return { ...result, [name]: kept };
    };
  }
  for (const name of ["readResource", "getPrompt"]) {
    const asked = ask(name);
    own[name] = async (...given: Any[]) => {
      const result = await asked(...given);
      await guard.checkAll(textsOfMcp(result));
      return result;
    };
  }
  return client;
}
