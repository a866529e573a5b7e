import { GatewayError } from "./errors.js";
import type { Found, Guard } from "./guard.js";
import { FAILED_OPEN, HEADER, PROBLEM, asBody, isMeant, problemOf, usualFields } from "./web.js";
import type { WebOptions } from "./web.js";

interface Request {
  method: string;
  path: string;
  body?: unknown;
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
 * open: then the answer says `gateway-guard: failed-open`. Verdicts are in `request.gatewayGuard`.
 */
export function guardExpress(guard: Guard, options: WebOptions = {}) {
  return (request: Request, response: Response, next: (error?: unknown) => void): void => {
    const extract = options.extract ?? usualFields;
    if (!["POST", "PUT", "PATCH"].includes(request.method) || !isMeant(request.path, options.paths)) {
      next();
      return;
    }
    if (request.body === undefined) {
      next(new TypeError("guardExpress stands behind what parses bodies: app.use(express.json(), …)."));
      return;
    }
    Promise.resolve()
      .then(() => guard.checkAll(extract(asBody(request.body))))
      .then((found) => {
        request.gatewayGuard = found;
        if (found.some((one) => one.failed_open)) response.set(HEADER, FAILED_OPEN);
        next();
      })
      .catch((error: unknown) => {
        if (!(error instanceof GatewayError)) {
          next(error);
          return;
        }
        const { status, body } = problemOf(error);
        response.status(status).type(PROBLEM).send(JSON.stringify(body));
      });
  };
}
export { fields } from "./web.js";
export type { WebOptions };
