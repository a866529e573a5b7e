import type { Found, Guard } from "./guard.js";
import { FAILED_OPEN, HEADER, PROBLEM, Unreadable, asBody, bodyOf, isMeant, problemOf, usualFields } from "./web.js";
import type { WebOptions } from "./web.js";

interface Request {
  method: string;
  path: string;
  baseUrl?: string;
  headers: Record<string, string | string[] | undefined>;
  body?: unknown;
  readableEnded?: boolean;
  gatewayGuard?: Found[];
}
interface Response {
  status(code: number): Response;
  type(name: string): Response;
  set(name: string, value: string): unknown;
  send(body: string): unknown;
}

/**
 * Middleware for Express, behind what parses bodies: `app.use(express.json(), guardExpress(guard))`.
 *
 * What is flagged is answered 403, and without a verdict 503, as problem+json; unless the guard fails
 * open: then the answer says `gateway-guard: failed-open`. Verdicts are in `request.gatewayGuard`. A
 * body that no parser before it took is 415: let each that a route has stand before the guard,
 * `app.post("/note", multer().none(), guardExpress(guard), …)`.
 */
export function guardExpress(guard: Guard, options: WebOptions = {}) {
  return (request: Request, response: Response, next: (error?: unknown) => void): void => {
    const extract = options.extract ?? usualFields;
    const isAsked = isMeant(options.paths, request.path, `${request.baseUrl ?? ""}${request.path}`);
    if (!isAsked || (isEmpty(request.body) && !hasBody(request))) {
      next();
      return;
    }
    if (!("body" in request)) {
      next(new TypeError("guardExpress stands behind what parses bodies: app.use(express.json(), …)."));
      return;
    }
    bodyBefore(request)
      .then((body) => guard.checkAll(extract(body)))
      .then((found) => {
        request.gatewayGuard = found;
        if (found.some((one) => one.failed_open)) response.set(HEADER, FAILED_OPEN);
        next();
      })
      .catch((error: unknown) => {
        const problem = problemOf(error);
        if (problem) response.status(problem.status).type(PROBLEM).send(JSON.stringify(problem.body));
        else next(error);
      });
  };
}

function hasBody({ headers }: Request): boolean {
  return headers["transfer-encoding"] !== undefined || Number(headers["content-length"] ?? 0) > 0;
}

/** Express 4 says `{}` where nobody read anything. */
function isEmpty(body: unknown): boolean {
  return Object.keys(body ?? {}).length === 0;
}

async function bodyBefore({ body, headers, readableEnded }: Request): Promise<Record<string, unknown>> {
  if (readableEnded === false && isEmpty(body)) {
    throw new Unreadable(415, "A body of this type is not read here.");
  }
  // What `express.raw()` took; it was decompressed.
  return body instanceof Uint8Array ? bodyOf(body, String(headers["content-type"] ?? ""), "") : asBody(body);
}
export { fields } from "./web.js";
export type { WebOptions };
