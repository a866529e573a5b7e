/** What middleware of web frameworks shares: which texts of a body, and how it is refused. */

import { textsOfRequest } from "./chats.js";
import type { Text } from "./chats.js";
import { Blocked } from "./errors.js";

export type Extract = (body: Record<string, unknown>) => Iterable<Text>;

export interface WebOptions {
  /** Where it looks, with all below them. Default: everywhere. */
  paths?: readonly string[];
  /** Takes the texts of a body. Default: the usual fields, chats included. */
  extract?: Extract;
}

const FIELDS = ["message", "messages", "text", "prompt", "query", "question", "input", "content"];
export const HEADER = "gateway-guard";
export const FAILED_OPEN = "failed-open";
export const PROBLEM = "application/problem+json";

/** These fields of a JSON object or a form: texts, or chats as model APIs take them. */
export function fields(...names: string[]): Extract {
  return (body) => textsOfRequest({ input: names.filter((name) => name in body).map((name) => body[name]) });
}
export const usualFields: Extract = fields(...FIELDS);

export function isMeant(path: string, paths: readonly string[] | undefined): boolean {
  if (!paths || paths.length === 0) return true;
  return paths.map((one) => one.replace(/\/+$/, "")).some((one) => path === one || path.startsWith(`${one}/`));
}

export function asBody(value: unknown): Record<string, unknown> {
  if (typeof value !== "object" || value === null) return {};
  return Array.isArray(value) ? { input: value } : (value as Record<string, unknown>);
}

/** A problem (RFC 9457). */
export function problemOf(error: unknown): { status: number; body: Record<string, unknown> } {
  if (error instanceof Blocked) {
    const detail = { detail: error.message, request_id: error.requestId };
    return { status: 403, body: { title: "Forbidden", status: 403, code: "prompt_injection", ...detail } };
  }
  const detail = "This cannot be checked right now. Try again.";
  return { status: 503, body: { title: "Service Unavailable", status: 503, code: "no_verdict", detail } };
}
