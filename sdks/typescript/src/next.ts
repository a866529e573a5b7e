import type { Found, Guard } from "./guard.js";
import { FAILED_OPEN, HEADER, PROBLEM, bodyOf, isMeant, problemOf, usualFields } from "./web.js";
import type { WebOptions } from "./web.js";

export interface NextOptions extends WebOptions {
  /** Bodies above are 413. Default: 1 MiB. */
  bytesMax?: number;
}

type Handler<R extends Request, C> = (request: R, context: C) => Response | Promise<Response>;

/**
 * Checks a request of Next.js, or of anything that speaks `Request` (Hono, Deno, Bun, workers), before
 * it is worked on. An answer: refuse with it; undefined: go on. In `middleware.ts` (`proxy.ts`):
 *
 *     export const middleware = (request: NextRequest) => guardRequest(guard, request);
 *
 * The request can be read afterwards. Flagged: 403, no verdict: 503, as problem+json. A body that the
 * handler may read otherwise than the guard is 400 or 415.
 */
export async function guardRequest(
  guard: Guard,
  request: Request,
  options: NextOptions = {},
): Promise<Response | undefined> {
  const outcome = await look(guard, request, options);
  return outcome instanceof Response ? outcome : undefined;
}

/**
 * A route handler behind a guard: `export const POST = guardRoute(guard, async (request) => …)`. When the
 * guard fails open, the answer says `gateway-guard: failed-open`.
 */
export function guardRoute<R extends Request, C>(
  guard: Guard,
  handler: Handler<R, C>,
  options: NextOptions = {},
): Handler<R, C> {
  return async (request, context) => {
    const outcome = await look(guard, request, options);
    if (outcome instanceof Response) return outcome;
    const answer = await handler(request, context);
    if (!outcome.some((one) => one.failed_open)) return answer;
    const marked = new Response(answer.body, answer);
    marked.headers.set(HEADER, FAILED_OPEN);
    return marked;
  };
}

async function look(guard: Guard, request: Request, options: NextOptions): Promise<Response | Found[]> {
  if (request.body === null || !isMeant(options.paths, new URL(request.url).pathname)) return [];
  const most = options.bytesMax ?? 1 << 20;
  const bytes = await bytesOf(request.clone(), most);
  if (bytes === undefined) {
    const detail = `At most ${most} bytes are taken here.`;
    return refused(413, { title: "Content Too Large", status: 413, code: "body_too_large", detail });
  }
  try {
    const extract = options.extract ?? usualFields;
    const said = (name: string) => request.headers.get(name) ?? "";
    return await guard.checkAll(extract(await bodyOf(bytes, said("content-type"), said("content-encoding"))));
  } catch (error) {
    const problem = problemOf(error);
    if (!problem) throw error;
    return refused(problem.status, problem.body);
  }
}

function refused(status: number, body: object): Response {
  return new Response(JSON.stringify(body), { status, headers: { "content-type": PROBLEM } });
}

async function bytesOf(request: Request, most: number): Promise<Uint8Array | undefined> {
  const reader = request.body?.getReader();
  const pieces: Uint8Array[] = [];
  let size = 0;
  while (reader) {
    const { done, value } = await reader.read();
    if (done) break;
    size += value.length;
    if (size > most) {
      void reader.cancel();
      return undefined;
    }
    pieces.push(value);
  }
  const whole = new Uint8Array(size);
  pieces.reduce((at, piece) => (whole.set(piece, at), at + piece.length), 0);
  return whole;
}
export { fields } from "./web.js";
