/** What can go wrong. Decide by the class, or by `code`. */

export interface FieldError {
  /** A dotted path into the body; empty when all of it is meant. */
  field: string;
  message: string;
}

export class GatewayError extends Error {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, options as ErrorOptions);
    this.name = new.target.name;
  }
}

/** The gateway could not be reached, or went away. */
export class APIConnectionError extends GatewayError {}
/** No answer within the call's deadline. */
export class APITimeoutError extends APIConnectionError {}
/** Do not trust this event: signed with another secret, changed, or sent long ago. */
export class WebhookVerificationError extends GatewayError {}

/** What answered is not this API: a proxy's page, half an answer, or other JSON. */
export class InvalidResponseError extends GatewayError {
  constructor(message: string, readonly status: number, readonly body: string) {
    super(message);
  }
}

/** The job ended without the results that were waited for. */
export class BatchFailed extends GatewayError {
  constructor(message: string, readonly job: unknown) {
    super(message);
  }
}

/**
 * A guard's text is an attack: leave it out, and go on without it or not at all. `detection` is the
 * verdict. Was it none? `client.feedback(error.requestId, "false_positive")`.
 */
export class Blocked extends GatewayError {
  readonly requestId: string;

  constructor(
    readonly detection: { request_id: string; threat_types?: string[] },
    /** As what the text was checked. */
    readonly contentType: string,
    /** Which text it was, for people; the text itself is in no message. */
    readonly where: string,
  ) {
    const kinds = detection.threat_types?.join(", ") || "a text on this key's deny list";
    super(
      `Prompt injection in ${where}: ${kinds} (request ${detection.request_id}). Do not hand it to the ` +
        "model. If it is harmless, send feedback 'false_positive' on that request.",
    );
    this.requestId = detection.request_id;
  }
}

export interface Problem {
  status: number;
  code: string;
  title: string;
  detail: string;
  request_id: string;
  errors: FieldError[];
}

/** A problem (RFC 9457) as the gateway told it. */
export class APIError extends GatewayError {
  readonly status: number;
  /** Stable; the README's table says what to do about each. */
  readonly code: string;
  readonly detail: string;
  readonly requestId: string;
  readonly errors: FieldError[];
  /** Seconds, where the gateway says when to come again. */
  readonly retryAfter: number | undefined;

  constructor(problem: Problem, retryAfter: number | undefined) {
    const lines = [`${problem.status} ${problem.code}: ${problem.detail}`];
    for (const { field, message } of problem.errors) lines.push(`  ${field || "body"}: ${message}`);
    if (problem.request_id) lines.push(`  request_id: ${problem.request_id}`);
    super(lines.join("\n"));
    this.status = problem.status;
    this.code = problem.code;
    this.detail = problem.detail;
    this.requestId = problem.request_id;
    this.errors = problem.errors;
    this.retryAfter = retryAfter;
  }
}

export class BadRequestError extends APIError {}
export class AuthenticationError extends APIError {}
export class PermissionDeniedError extends APIError {}
export class NotFoundError extends APIError {}
export class ConflictError extends APIError {}
export class ValidationError extends APIError {}
export class RateLimitError extends APIError {}
export class ServerError extends APIError {}

const BY_STATUS: Record<number, typeof APIError> = {
  401: AuthenticationError,
  403: PermissionDeniedError,
  404: NotFoundError,
  409: ConflictError,
  412: ConflictError,
  422: ValidationError,
  429: RateLimitError,
};

export function apiError(problem: Problem, retryAfter: number | undefined): APIError {
  const kind = BY_STATUS[problem.status] ?? (problem.status >= 500 ? ServerError : BadRequestError);
  return new kind(problem, retryAfter);
}
