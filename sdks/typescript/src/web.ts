/**
 * What middleware of web frameworks shares: which texts of a body, and how it is refused.
 *
 * Who sends a body also chooses its type, its names and its roles, so none of them decides whether it
 * is judged: ../vectors/bodies.json.
 */

import { textsOfStranger } from "./chats.js";
import type { Text } from "./chats.js";
import { Blocked, GatewayError } from "./errors.js";

type Body = Record<string, unknown>;
/** Of a JSON object or a form; a body that has no fields (a text, a list) is under the name "". */
export type Extract = (body: Body) => Iterable<Text>;

export interface WebOptions {
  /** Where it looks, with all below them. Default: everywhere. */
  paths?: readonly string[];
  /** Takes the texts of a body. Default: the usual fields, and all in them is what the user says,
   * whatever roles a chat in them gives. */
  extract?: Extract;
}

const FIELDS = ["message", "messages", "text", "prompt", "query", "question", "input", "content"];
export const HEADER = "gateway-guard";
export const FAILED_OPEN = "failed-open";
export const PROBLEM = "application/problem+json";

const WHOLE = "";
const FORM = /multipart\/form-data|application\/x-www-form-urlencoded/;
const CHARSET = /charset\s*=\s*"?([^\s;"]*)/gi;
const READABLE = new Set(["utf-8", "utf8", "us-ascii", "ascii"]);
const SAYS_JSON = /^application\/json$|\+json$/;
const SAYS_TEXT = /^(?:text\/.*|.*[/+]xml)?$/;

/** Each is asked about. */
const TEXTS_MAX = 1_000;

/** All texts in these fields of a JSON object or a form, and in a body that is neither. */
export function fields(...names: string[]): Extract {
  const wanted = new Set([...names, WHOLE].map(folded));
  return (body) => {
    const meant = Object.entries(body).filter(([name]) => wanted.has(folded(name)));
    const found = textsOfStranger(meant.map(([, value]) => value));
    if (found.length > TEXTS_MAX) throw new Unreadable(400, `At most ${TEXTS_MAX} texts are taken at a time.`);
    return found;
  };
}
export const usualFields: Extract = fields(...FIELDS);

/** By this way `ſ` is an `s` as well, and the sign of Kelvin a `k`: to some readers of JSON they are. */
function folded(name: string): string {
  return name.toUpperCase().toLowerCase();
}

/**
 * Whether what was asked for is one of `paths`, or below. Routers differ in which spellings they take
 * for the same path: case, doubled slashes and percent-encoding do not count here.
 */
export function isMeant(paths: readonly string[] | undefined, ...found: string[]): boolean {
  if (!paths || paths.length === 0) return true;
  const asked = found.map(foldedPath);
  return paths.map(foldedPath).some((one) => asked.some((path) => path === one || path.startsWith(`${one}/`)));
}

function foldedPath(path: string): string {
  const plain = path.replace(/(?:%[0-9a-f]{2})+/gi, (codes) => {
    try {
      return decodeURIComponent(codes);
    } catch {
      return codes;
    }
  });
  return folded(plain.replace(/\/\/+/g, "/").replace(/\/$/, ""));
}

export function asBody(value: unknown): Body {
  if (value === undefined || value === null) return {};
  return typeof value === "object" && !Array.isArray(value) ? (value as Body) : { [WHOLE]: value };
}

/** Nobody can say what the application would read in this body, so it does not pass. */
export class Unreadable extends Error {
  override readonly name = "Unreadable";
  constructor(
    readonly status: 400 | 415,
    detail: string,
  ) {
    super(detail);
  }
}

/** A JSON object's or a form's fields, whatever type it says to be: applications do not ask for that. */
export async function bodyOf(bytes: Uint8Array, mediaType: string, coding: string): Promise<Body> {
  if (!["", "identity"].includes(coding.trim().toLowerCase())) {
    throw new Unreadable(415, "A compressed body is not read here. Send it as it is.");
  }
  if ([...mediaType.matchAll(CHARSET)].some(([, name]) => !READABLE.has(name!.toLowerCase()))) {
    throw new Unreadable(415, "Only UTF-8 is read here.");
  }
  const text = new TextDecoder().decode(bytes);
  if (text.trim() === "") return {};
  const json = fieldsOf(text);
  // Of several types that were sent some readers take the first, some the last.
  if (FORM.test(mediaType.toLowerCase())) return withJson(await formOf(bytes, mediaType), json);
  if (json) return json;
  const kind = mediaType.split(";")[0]!.trim().toLowerCase();
  if (SAYS_JSON.test(kind)) throw new Unreadable(400, "The body is no JSON that can be read.");
  if (isText(bytes)) return { [WHOLE]: text };
  if (SAYS_TEXT.test(kind)) throw new Unreadable(415, "Only UTF-8 is read here.");
  return {}; // a picture or the like
}

function fieldsOf(text: string): Body | undefined {
  try {
    return asBody(JSON.parse(text));
  } catch {
    return undefined;
  }
}

/** A body may be a form and JSON at the same time, and a handler read either. */
function withJson(form: Record<string, string[]> | undefined, json: Body | undefined): Body {
  if (!form && !json) throw new Unreadable(400, "The form cannot be read.");
  const both = Object.entries(form ?? {}).map(([name, values]) => [name, json ? [...values, json[name]] : values]);
  return { ...json, ...(Object.fromEntries(both) as Body) };
}

/** Read by the same parser as the application's: two of them never agree on everything. */
async function formOf(bytes: Uint8Array, mediaType: string): Promise<Record<string, string[]> | undefined> {
  let form: FormData;
  try {
    form = await new Response(bytes as BodyInit, { headers: { "content-type": mediaType } }).formData();
  } catch {
    return undefined;
  }
  const found: Record<string, string[]> = Object.create(null);
  for (const [name, value] of form as unknown as Iterable<[string, string | Blob]>) {
    if (typeof value === "string") (found[name] ??= []).push(value);
    else {
      const content = new Uint8Array(await value.arrayBuffer());
      if (isText(content)) (found[name] ??= []).push(new TextDecoder().decode(content));
    }
  }
  return found;
}

function isText(bytes: Uint8Array): boolean {
  try {
    return !new TextDecoder("utf-8", { fatal: true }).decode(bytes).includes("\0");
  } catch {
    return false;
  }
}

/** A problem (RFC 9457); undefined: the error is not ours. */
export function problemOf(error: unknown): { status: number; body: Record<string, unknown> } | undefined {
  if (error instanceof Unreadable) {
    const title = { 400: "Bad Request", 415: "Unsupported Media Type" }[error.status];
    const { status, message: detail } = error;
    return { status, body: { title, status, code: "body_not_readable", detail } };
  }
  if (error instanceof Blocked) {
    const detail = { detail: error.message, request_id: error.requestId };
    return { status: 403, body: { title: "Forbidden", status: 403, code: "prompt_injection", ...detail } };
  }
  if (!(error instanceof GatewayError)) return undefined;
  const detail = "This cannot be checked right now. Try again.";
  return { status: 503, body: { title: "Service Unavailable", status: 503, code: "no_verdict", detail } };
}
