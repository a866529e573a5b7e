/** Clients of OpenAI's and Anthropic's libraries: both send everything by their own `post`. */

import { OVERLAP_CHARS, textsOfAnswer, textsOfRequest } from "./chats.js";
import type { Text } from "./chats.js";
import type { Guard } from "./guard.js";

export interface ModelOptions {
  /** Whether what the model says is checked too. Default: true. */
  answers?: boolean;
  /** A stream is held back until what is in it was judged, so many characters at a time, and, from
   * the first call of a tool on, until its end. Default: 2,000. */
  streamChars?: number;
}

/* eslint-disable @typescript-eslint/no-explicit-any -- other people's classes, of many versions */
type Any = any;
const ASKS_NO_MODEL = /\/(?:count_tokens|input_tokens|moderations)(?:\?|$)/;

export function guarded<C extends object>(client: C, guard: Guard, options: ModelOptions = {}): C {
  const { answers = true, streamChars = 2_000 } = options;
  // Its resources hold the client that made them, so a copy makes its own.
  const made: Any = (client as Any).withOptions({});
  const post = made.post.bind(made);
  const withOptions = made.withOptions.bind(made);
  made.withOptions = (changed: object) => guarded(withOptions(changed), guard, options);
  const prepare = made.prepareOptions?.bind(made);
  made.prepareOptions = async (sent: Any) => {
    await prepare?.(sent);
    const { body, path, method } = sent;
    const asked = method === "post" ? bodyOf(path, body) : undefined;
    if (asked) await guard.checkAll(textsOfRequest(asked));
  };
  if (!answers) return made;
  made.post = (path: string, given: Any) => {
    const asked = post(path, given);
    if (ASKS_NO_MODEL.test(path) || typeof asked._thenUnwrap !== "function") return asked;
    return asked._thenUnwrap((said: Any) => checked(said, guard, streamChars));
  };
  return made;
}

/** Undefined: no model is asked. */
function bodyOf(path: string, body: unknown): object | undefined {
  if (typeof body !== "object" || body === null || ASKS_NO_MODEL.test(path)) return undefined;
  return body instanceof FormData ? Object.fromEntries(body as unknown as Iterable<[string, unknown]>) : body;
}

function checked(said: Any, guard: Guard, every: number): Any {
  if (typeof said?.[Symbol.asyncIterator] === "function" && said.controller !== undefined) {
    return new said.constructor(() => streamed(said, guard, every), said.controller);
  }
  const texts = textsOf(said);
  if (texts.length === 0) return said;
  return guard.checkAll(texts).then(() => said);
}

function textsOf(said: unknown): Text[] {
  // Such as what was heard in a recording.
  if (typeof said === "string" && said !== "") return [{ text: said, contentType: "model_output" }];
  return typeof said === "object" && said !== null ? textsOfAnswer(said) : [];
}

/** Pieces are held back until all that was said in them is judged. */
async function* streamed(pieces: AsyncIterable<Any>, guard: Guard, every: number): AsyncGenerator<Any> {
  let text = "";
  let judged = 0;
  const calls = new Map<string, string>();
  let whole: Text[] = [];
  let held: Any[] = [];
  const fresh = (): Text[] => {
    const found = whole;
    whole = [];
    if (text.length > judged) {
      found.push({ text: text.slice(Math.max(0, judged - OVERLAP_CHARS)), contentType: "model_output" });
    }
    judged = text.length;
    return found;
  };
  for await (const piece of pieces) {
    held.push(piece);
    for (const [place, added] of deltas(piece)) {
      if (place === undefined) text += added;
      else calls.set(place, (calls.get(place) ?? "") + added);
    }
    whole.push(...results(piece));
    // With a call of a tool it is at the end, when it is whole.
    if (calls.size === 0 && text.length - judged >= every) {
      await guard.checkAll(fresh());
      yield* held;
      held = [];
    }
  }
  const last = [...calls.values()].filter((call) => call.trim() !== "");
  await guard.checkAll([...fresh(), ...last.map((call) => ({ text: call, contentType: "tool_call" as const }))]);
  yield* held;
}

/** What a piece adds: to the text (undefined), or to the call of a tool at a place. */
function* deltas(piece: Any): Generator<[string | undefined, string]> {
  for (const choice of piece?.choices ?? []) {
    if (typeof choice.text === "string") yield [undefined, choice.text];
    for (const name of ["content", "refusal", "reasoning_content"]) {
      if (typeof choice.delta?.[name] === "string") yield [undefined, choice.delta[name]];
    }
    const older = choice.delta?.function_call;
    if (older) yield [`${choice.index}`, `${older.name ?? ""}${older.arguments ?? ""}`];
    for (const call of choice.delta?.tool_calls ?? []) {
      yield [`${choice.index} ${call.index}`, `${call.function?.name ?? ""}${call.function?.arguments ?? ""}`];
    }
  }
  const { type, delta, content_block: block } = piece ?? {};
  if (type === "content_block_start") {
    for (const name of ["text", "thinking"]) if (typeof block?.[name] === "string") yield [undefined, block[name]];
  } else if (type === "content_block_delta") {
    for (const name of ["text", "thinking"]) {
      if (typeof delta?.[name] === "string") yield [undefined, delta[name]];
    }
    if (typeof delta?.partial_json === "string") yield [String(piece.index), delta.partial_json];
  } else if (typeof delta === "string" && typeof type === "string" && type.endsWith(".delta")) {
    yield [/arguments|input/.test(type) ? String(piece.item_id) : undefined, delta];
  }
}

/** What a tool of the provider's own returned, which a piece brings at once. */
function results(piece: Any): Text[] {
  if (piece?.type !== "content_block_start") return [];
  const found = textsOfAnswer({ content: [piece.content_block] });
  return found.filter(({ contentType }) => contentType !== "model_output" && contentType !== "tool_call");
}
