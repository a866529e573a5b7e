import { textsOfMcp } from "./chats.js";
import { Blocked } from "./errors.js";
import type { Guard } from "./guard.js";

/* eslint-disable @typescript-eslint/no-explicit-any -- of several versions of the protocol's types */
type Any = any;

export interface McpOptions {
  /** An attack in a tool's result rejects with `Blocked`, instead of being replaced. */
  stop?: boolean;
}

/**
 * The same client of MCP (`@modelcontextprotocol/sdk`), which from now on checks
 *
 * - what tools return, as `tool_output`: an attack is replaced by an error result that says so;
 * - resources and prompts: an attack rejects with `Blocked`;
 * - definitions of tools: those that are attacks are not listed, and a warning is written.
 */
export function guardMcp<C extends object>(client: C, guard: Guard, options: McpOptions = {}): C {
  const own: Any = client;
  const ask = (name: string) => own[name].bind(own);
  const callTool = ask("callTool");
  const listTools = ask("listTools");
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
  own.listTools = async (...given: Any[]) => {
    const result = await listTools(...given);
    const tools = [];
    for (const tool of result.tools) {
      try {
        await guard.check(JSON.stringify(tool), "tool_definition");
        tools.push(tool);
      } catch (error) {
        if (!(error instanceof Blocked)) throw error;
        console.warn(`gateway-guard: the tool ${tool.name} was left out: ${error.message}`);
      }
    }
    return { ...result, tools };
  };
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
