/**
 * From bodies of model APIs to the texts in them, each with what it is.
 *
 * Read are requests and answers of OpenAI (chat, completions, responses, embeddings), Anthropic and
 * Gemini. What a `system` or `developer` says is the application's own and left out, as are pictures:
 * where the application wrote the body. Of a body that came from outside nothing is its own.
 */

import type { ContentType } from "./types.js";

/** One text and what it is. `where` is what people call it. */
export interface Text {
  text: string;
  contentType: ContentType;
  where?: string;
}

type Kind = ContentType;
type Json = Record<string, unknown>;

/** What the gateway takes at a time, in code points. */
const TEXT_CHARS_MAX = 10_000;
export const OVERLAP_CHARS = 1_000;
const OF_ROLE = new Map<string, Kind>([
  ["system", "system"],
  ["developer", "system"],
  ["assistant", "model_output"],
  ["model", "model_output"],
  ["tool", "tool_output"],
  ["function", "tool_output"],
]);
const OF_BLOCK = new Map<string, Kind>([
  ...["output_text", "reasoning", "thinking", "refusal"].map((name) => [name, "model_output"] as const),
  ...["document", "search_result", "input_file", "file"].map((name) => [name, "document"] as const),
]);
const RESULT = /(?:_result|_output)$/;
const CALL = /(?:tool_use|_call)$/;
const CALLS = new Set(["tool_calls", "function_call", "functionCall"]);
const RETURNED = new Set(["output", "outputs", "results"]);
const FREE = new Set(["functionResponse", "structuredContent"]);
const PICTURES = new Set([
  "image_url", "input_audio", "file_data", "fileData", "inlineData", "inline_data", "blob",
]);
const BESIDE_DATA = ["transcript", "format", "media_type", "mimeType", "mime_type"];
const DATA_URI = /^data:(?:image|audio|video)\/[\w.+-]+;base64,[A-Za-z0-9+/]*={0,2}$/;
const NO_TEXT = new Set([
  "type", "id", "role", "model", "object", "status", "format", "detail", "index", "created", "usage",
  "logprobs", "finish_reason", "stop_reason", "finishReason", "cache_control", "media_type", "mimeType",
  "mime_type", "annotations", "citations", "signature", "encrypted_content", "thoughtSignature",
  "parsed", "parsed_arguments",
]);
const OPAQUE = /^[!-~]*$/;
const NAME = /^[\w.$-]{1,64}$/;
const SEALED = new Set([...PICTURES, "data", "url", "signature", "encrypted_content", "thoughtSignature"]);
const LABEL_CHARS_MAX = 64;
const REQUEST = new Map<string, Kind>([
  ...["messages", "input", "prompt", "suffix", "contents", "query"].map((n) => [n, "user_input"] as const),
  // Of conversations, threads and sessions that a provider keeps.
  ...["items", "additional_messages", "events", "initial_events"].map((n) => [n, "user_input"] as const),
  ["tool_outputs", "tool_output"],
  ["documents", "document"],
]);
const ANSWER = new Set(["choices", "output", "content", "candidates", "text", "completion", "message"]);
const WHERE: Record<string, string> = {
  user_input: "a message",
  document: "a document",
  tool_output: "a tool's result",
  model_output: "an answer of the model",
  tool_definition: "a tool's definition",
  tool_call: "a tool call",
  memory_write: "a memory",
};

export function placeOf(text: Text): string {
  return text.where ?? WHERE[text.contentType] ?? text.contentType;
}

/** What goes to a model, each text once. Definitions of tools are one text. */
export function textsOfRequest(body: object): Text[] {
  const found: Text[] = [];
  for (const one of bodies(body as Json)) {
    for (const [name, value] of Object.entries(one)) {
      const kind = REQUEST.get(name);
      if (name === "tools" || name === "functions") {
        if (value !== undefined && value !== null) push(found, "tool_definition", asJson(value));
      } else if (kind) read(found, value, kind);
      else if (name === "content") read(found, { role: one.role ?? "user", content: value }, "user_input");
    }
  }
  return once(found);
}

/** With those in it: of a thread that is made and run at once, of a batch. */
function bodies(body: Json): Json[] {
  const requests = Array.isArray(body.requests) ? body.requests.filter(isObject) : [];
  return [body, body.thread, ...requests.map(({ params }) => params)].filter(isObject);
}

/** What a model says, and the calls that it asks for. */
export function textsOfAnswer(body: object): Text[] {
  const found: Text[] = [];
  for (const [name, value] of Object.entries(body)) {
    if (CALLS.has(name)) calls(found, value);
    else if (ANSWER.has(name) && (name !== "text" || typeof value === "string")) {
      read(found, value, "model_output");
    }
  }
  return once(found);
}

/** What a tool returned: a text, blocks of content, or JSON of its own. */
export function textsOfResult(value: unknown): Text[] {
  const found: Text[] = [];
  if (Array.isArray(value) && value.length > 0 && value.every(isBlock)) read(found, value, "tool_output");
  else push(found, "tool_output", asJson(value));
  return once(found);
}

/** Of a result as it is on MCP's wire: contents of a tool, a resource or a prompt. */
export function textsOfMcp(result: object): Text[] {
  const found: Text[] = [];
  read(found, result, "tool_output");
  return once(found);
}

/**
 * All in what somebody sent to an application, as the user's: whatever role, or type of a block, he
 * gives it. Left out are pictures and ids, as long as they can be no sentence.
 */
export function textsOfStranger(value: unknown): Text[] {
  const found: Text[] = [];
  const pending: [string, unknown][] = [["", value]];
  for (let next = pending.pop(); next; next = pending.pop()) {
    const [name, one] = next;
    if (typeof one === "string") {
      if (!isLabel(name, one)) push(found, "user_input", one);
    } else if (Array.isArray(one)) {
      for (const each of [...one].reverse()) pending.push([name, each]);
    } else if (isObject(one)) {
      for (const key of Object.keys(one)) if (!NAME.test(key)) push(found, "user_input", key);
      pending.push(...Object.entries(one).reverse());
    }
  }
  return once(found);
}

/** Parts that the gateway takes, which overlap, so that no attack hides on the edge. */
export function portions(text: string): string[] {
  // Code points are counted as the gateway counts them, and none is cut in two.
  const letters = text.length <= TEXT_CHARS_MAX ? [] : Array.from(text);
  if (letters.length <= TEXT_CHARS_MAX) return [text];
  const found: string[] = [];
  for (let at = 0; at < letters.length - OVERLAP_CHARS; at += TEXT_CHARS_MAX - OVERLAP_CHARS) {
    found.push(letters.slice(at, at + TEXT_CHARS_MAX).join(""));
  }
  return found;
}

function once(texts: Text[]): Text[] {
  const known = new Map(texts.map((one) => [`${one.contentType} ${one.text}`, one]));
  return [...known.values()];
}

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isBlock(value: unknown): boolean {
  return isObject(value) && typeof value.type === "string";
}

function push(found: Text[], kind: Kind, text: string): void {
  if (kind !== "system" && text.trim() !== "") found.push({ text, contentType: kind });
}

function read(found: Text[], value: unknown, kind: Kind): void {
  // A row's role is the application's word. In it, and in blocks, others' content begins.
  const pending: [unknown, Kind, boolean][] = [[value, kind, kind === "user_input"]];
  for (let next = pending.pop(); next; next = pending.pop()) {
    const [one, whose, isRow] = next;
    if (typeof one === "string") push(found, whose, one);
    else if (Array.isArray(one)) {
      for (const each of [...one].reverse()) pending.push([each, whose, isRow]);
    } else if (isObject(one)) {
      const isAbove = isRow && !("role" in one) && !("type" in one);
      for (const [under, its] of inside(found, one, whose, isRow).reverse()) pending.push([under, its, isAbove]);
    }
  }
}

function inside(found: Text[], block: Json, kind: Kind, isRow: boolean): [unknown, Kind][] {
  if (isRow && "role" in block) {
    kind = (typeof block.role === "string" && OF_ROLE.get(block.role.toLowerCase())) || "user_input";
  }
  const name = typeof block.type === "string" ? block.type : "";
  let entries = Object.entries(block);
  if (CALL.test(name)) {
    calls(found, [block]);
    entries = entries.filter(([key]) => RETURNED.has(key));
    kind = "tool_output";
  } else if (kind !== "system") {
    kind = OF_BLOCK.get(name) ?? (RESULT.test(name) ? "tool_output" : kind);
  }
  const pending: [unknown, Kind][] = [];
  for (const [key, value] of entries) {
    if (CALLS.has(key)) calls(found, value);
    else if (isFree(key, value, name)) {
      const [own, parts] = withoutParts(value);
      push(found, "tool_output", asJson(own));
      pending.push([parts, "tool_output"]);
    } else if (!isPicture(key, value, block) && !isLeftOut(key, value, kind)) pending.push([value, kind]);
  }
  return pending;
}

/** Each as one JSON of name and arguments. */
function calls(found: Text[], value: unknown): void {
  for (let call of Array.isArray(value) ? (value as unknown[]) : [value]) {
    if (isObject(call)) {
      const inner = isObject(call.function) ? call.function : call;
      const kept = Object.entries(inner).filter(
        ([key, one]) => !RETURNED.has(key) && !isDrawing(key, one, inner) && !isNoText(key, one, "tool_call"),
      );
      if (kept.length === 0) continue;
      call = Object.fromEntries(kept);
    }
    if (call !== undefined && call !== null) push(found, "tool_call", asJson(call));
  }
}

/** JSON of a tool's own, in which no name means anything; what a screen shows is none. */
function isFree(key: string, value: unknown, block: string): boolean {
  const isOwn = isObject(value) && block !== "computer_call_output";
  return FREE.has(key) || (RETURNED.has(key) && isOwn);
}

/** What a function of Gemini's returns beside its JSON are blocks. */
function withoutParts(value: unknown): [unknown, unknown] {
  if (!isObject(value) || !("response" in value)) return [value, undefined];
  const { parts, ...own } = value;
  return [own, parts];
}

/** And sound, and files in base64. Who writes sentences there is read all the same. */
function isPicture(key: string, value: unknown, block: Json): boolean {
  const isData = block.type ? block.type !== "text" : BESIDE_DATA.some((name) => name in block);
  if (PICTURES.has(key) || (key === "data" && isData)) return isOpaque(value);
  // Not of any place: in a text, a model reads the words of a data URI as words.
  return key === "url" && typeof value === "string" && DATA_URI.test(value);
}

function isOpaque(value: unknown): boolean {
  const pending = [value];
  while (pending.length > 0) {
    const one = pending.pop();
    if (typeof one === "string") {
      if (!OPAQUE.test(one)) return false;
    } else if (typeof one === "object" && one !== null) {
      for (const under of Object.values(one)) pending.push(under);
    }
  }
  return true;
}

/** In a call of a tool that draws, what it drew. */
function isDrawing(key: string, value: unknown, call: Json): boolean {
  const isPlace = key === "result" && call.type === "image_generation_call";
  return isPlace && typeof value === "string" && OPAQUE.test(value);
}

function isLeftOut(key: string, value: unknown, kind: Kind): boolean {
  if (key === "name" && typeof value === "string" && NAME.test(value)) return true;
  return isNoText(key, value, kind);
}

/** Who writes sentences into an id is read all the same. */
function isNoText(name: string, value: unknown, kind: Kind): boolean {
  if (!NO_TEXT.has(name) && !name.endsWith("_id")) return false;
  if (typeof value === "string") return OPAQUE.test(value);
  return kind === "model_output" || kind === "system";
}

/** In what a stranger sent. */
function isLabel(name: string, text: string): boolean {
  if (!OPAQUE.test(text)) return false;
  const isShort = text.length <= LABEL_CHARS_MAX;
  return SEALED.has(name) || (isShort && (name === "name" || NO_TEXT.has(name) || name.endsWith("_id")));
}

function asJson(value: unknown): string {
  return typeof value === "string" ? value : (JSON.stringify(value) ?? "");
}
