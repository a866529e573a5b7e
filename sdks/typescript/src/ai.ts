import { OVERLAP_CHARS, textsOfRequest, textsOfResult } from "./chats.js";
import type { Text } from "./chats.js";
import type { Guard } from "./guard.js";
import type { ModelOptions } from "./models.js";

/* eslint-disable @typescript-eslint/no-explicit-any -- of several versions of the provider's types */
type Any = any;

export interface AIOptions extends ModelOptions {
  /** What the AI SDK's version calls its middleware: `v4` of 7, `v3` of 6. Default: `v4`. */
  specificationVersion?: string;
}

/**
 * Middleware of the Vercel AI SDK: `wrapLanguageModel({ model, middleware: guardMiddleware(guard) })`.
 *
 * Checks the prompt, each part as what it is, and, with `answers`, what the model says and the calls it
 * asks for. Rejects with `Blocked`; a stream ends with it as a part of the type `error`, and nothing that
 * was not judged has been given out. Instructions (`system`) and files are not judged.
 */
export function guardMiddleware(guard: Guard, options: AIOptions = {}): Any {
  const { answers = true, streamChars = 2_000, specificationVersion = "v4" } = options;
  return {
    specificationVersion,
    transformParams: async ({ params }: Any) => {
      await guard.checkAll(textsOfPrompt(params));
      return params;
    },
    wrapGenerate: async ({ doGenerate }: Any) => {
      const result = await doGenerate();
      if (answers) await guard.checkAll(textsOfContent(result.content));
      return result;
    },
    wrapStream: async ({ doStream }: Any) => {
      const result = await doStream();
      if (!answers) return result;
      return { ...result, stream: result.stream.pipeThrough(holding(guard, streamChars)) };
    },
  };
}

function textsOfPrompt(params: Any): Text[] {
  const found: Text[] = [];
  for (const message of params.prompt ?? []) {
    if (message.role === "system") continue;
    const { role, content } = message;
    const said = role === "assistant" ? "model_output" : role === "tool" ? "tool_output" : "user_input";
    for (const part of typeof content === "string" ? [{ type: "text", text: content }] : content) {
      if (part.type === "tool-result") found.push(...textsOfResult(outputOf(part.output ?? part.result)));
      else if (part.type === "tool-call") found.push(callOf(part.toolName, part.input ?? part.args));
      else if (part.type === "text" || part.type === "reasoning") {
        found.push({ text: part.text, contentType: said });
      } else if (part.type === "file") {
        const text = part.data?.type === "text" ? part.data.text : part.data;
        if (typeof text === "string" && part.mediaType?.startsWith("text/")) {
          found.push({ text, contentType: "document" });
        }
      }
    }
  }
  const tools = params.tools?.map(({ name, description, inputSchema }: Any) => ({ name, description, inputSchema }));
  return [...found, ...textsOfRequest({ tools: tools?.length ? tools : undefined })].filter((one) => one.text?.trim());
}

/** What a tool returned, of its wrapper `{ type, value }`. */
function outputOf(output: Any): unknown {
  const value = output !== null && typeof output === "object" && "value" in output ? output.value : output;
  if (!Array.isArray(value)) return value;
  return value.map((part: Any) => (part?.type === "media" || part?.type === "file-data" ? { type: part.type } : part));
}

function callOf(name: unknown, input: unknown): Text {
  return { text: JSON.stringify({ name, input }), contentType: "tool_call" };
}

function textsOfContent(content: Any): Text[] {
  const found: Text[] = [];
  for (const part of content ?? []) {
    if (part.type === "text" || part.type === "reasoning") found.push({ text: part.text, contentType: "model_output" });
    else if (part.type === "tool-call") found.push(callOf(part.toolName, part.input));
    else if (part.type === "tool-result") found.push(...textsOfResult(part.result ?? part.output));
  }
  return found.filter((one) => one.text?.trim());
}

/** Parts are held back until all that was said in them is judged. */
function holding(guard: Guard, every: number): TransformStream<Any, Any> {
  let text = "";
  let judged = 0;
  let held: Any[] = [];
  const whole: Any[] = [];
  let hasCalls = false;
  const check = async (controller: TransformStreamDefaultController<Any>) => {
    const fresh: Text[] = textsOfContent(whole.splice(0));
    if (text.length > judged) {
      fresh.push({ text: text.slice(Math.max(0, judged - OVERLAP_CHARS)), contentType: "model_output" });
    }
    judged = text.length;
    try {
      await guard.checkAll(fresh);
    } catch (error) {
      held = [];
      controller.enqueue({ type: "error", error });
      controller.terminate();
      return;
    }
    for (const part of held) controller.enqueue(part);
    held = [];
  };
  return new TransformStream({
    async transform(part: Any, controller) {
      held.push(part);
      if (part.type === "text-delta" || part.type === "reasoning-delta") text += part.delta ?? part.textDelta ?? "";
      else if (part.type === "tool-call" || part.type === "tool-result") whole.push(part);
      // Begun calls are held until they are whole, which is at the latest at the end.
      hasCalls ||= part.type.startsWith("tool-input");
      if (!hasCalls && text.length - judged >= every) await check(controller);
    },
    flush: check,
  });
}
