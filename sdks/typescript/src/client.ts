/** The client: `fetch`, deadlines, repetitions. */

import {
  APIConnectionError,
  APITimeoutError,
  BatchFailed,
  GatewayError,
  InvalidResponseError,
  RateLimitError,
  ServerError,
  apiError,
} from "./errors.js";
import type {
  AsyncDetection,
  AuditRecord,
  BatchItem,
  Delivery,
  DetectConfig,
  Detection,
  Feedback,
  ItemResult,
  Job,
  Key,
  Limits,
  LoggedRequest,
  Meta,
  Policy,
  RateLimit,
  Rotation,
  Score,
  Webhook,
  WithMeta,
} from "./types.js";

export const VERSION = "0.1.0";

export interface ClientOptions {
  /** `process.env.GATEWAY_API_KEY` as it stands: undefined is refused when the client is made. */
  apiKey: string | undefined;
  /** Default, also for undefined: `http://127.0.0.1:8000`. */
  baseUrl?: string | undefined;
  /** Seconds for each call with all its repetitions. Default: 30. */
  timeout?: number;
  /** Default: 3. */
  maxRetries?: number;
  /** Without a verdict to be had, `detect` allows the text and says `failed_open`. */
  failOpen?: boolean;
  headers?: Record<string, string>;
  fetch?: typeof globalThis.fetch;
  /** Seconds before the first repetition that no server asked for. */
  firstWait?: number;
}

export interface CallOptions {
  timeout?: number;
  idempotencyKey?: string;
  signal?: AbortSignal;
}

export interface DetectOptions extends CallOptions {
  config?: DetectConfig;
  metadata?: Record<string, unknown>;
  webhookUrl?: string;
  failOpen?: boolean;
}

type Filters = Record<string, string | number | undefined>;

interface Request extends CallOptions {
  params?: Filters;
  body?: unknown;
  headers?: Record<string, string>;
}

interface Answer {
  status: number;
  headers: Headers;
  text: string;
  /** Of the JSON in it; undefined: there is none. */
  value?: unknown;
  attempts: number;
}

/** Whether an answer below 300 is the gateway's. */
type Fits = (value: unknown, status: number) => boolean;
type Shape = (value: unknown) => boolean;

const LONGEST_WAIT = 8;
/** Three weeks. */
const TIMEOUT_MAX = 2_000_000;
const ITEMS_MAX = 1000;
const POLL_SECONDS = 0.5;
const POLL_SECONDS_MAX = 5;
const RETRIED = new Set([408, 429, 500, 502, 503, 504]);

export class Client {
  readonly batches: Batches;
  readonly keys: Keys;
  readonly policy: Policies;
  readonly requests: Requests;
  readonly webhooks: Webhooks;
  readonly #options: { [name in keyof ClientOptions]-?: NonNullable<ClientOptions[name]> };

  constructor(options: ClientOptions) {
    if (!options.apiKey) throw new TypeError("No API key: new Client({ apiKey: … }).");
    const baseUrl = options.baseUrl ?? "http://127.0.0.1:8000";
    if (!isAddress(baseUrl)) {
      throw new TypeError(`baseUrl must be like https://gateway.example.com, not ${baseUrl}`);
    }
    if (!/^[!-~]+$/.test(options.apiKey)) {
      throw new TypeError("The API key has a blank, a line break or a letter that none has.");
    }
    this.#options = {
      apiKey: options.apiKey,
      baseUrl: baseUrl.replace(/\/+$/, ""),
      timeout: checkedTimeout(options.timeout ?? 30),
      maxRetries: options.maxRetries ?? 3,
      failOpen: options.failOpen ?? false,
      headers: options.headers ?? {},
      // Called as a plain function: workers refuse a `fetch` that is called as a method.
      fetch: options.fetch ?? ((...given) => globalThis.fetch(...given)),
      firstWait: options.firstWait ?? 0.5,
    };
    this.batches = new Batches(this);
    this.keys = new Keys(this);
    this.policy = new Policies(this);
    this.requests = new Requests(this);
    this.webhooks = new Webhooks(this);
  }

  /** The verdict on one text of 1 to 10,000 characters. */
  async detect(text: string, options: DetectOptions = {}): Promise<Detection & WithMeta> {
    const { config, metadata, webhookUrl, failOpen, ...rest } = options;
    const body = { text, config, metadata, webhook_url: webhookUrl };
    try {
      return await this.ask<Detection>("POST", "/v1/detect", { ...rest, body }, DETECTION);
    } catch (error) {
      if (!(failOpen ?? this.#options.failOpen) || !isOutage(error)) throw error;
      return failedOpen(error as GatewayError);
    }
  }

  /** The bare score of a text, without policy, log row or charge to the day. */
  async score(text: string, options: CallOptions & { contentType?: string } = {}): Promise<Score & WithMeta> {
    const { contentType, ...rest } = options;
    const body = { text, content_type: contentType };
    return this.ask<Score>("POST", "/v1/detect/score", { ...rest, body }, SCORE);
  }

  /** The verdicts on any number of texts, in their order, sent a thousand at a time. */
  async *detectMany(
    texts: Iterable<string | BatchItem>,
    options: {
      config?: DetectConfig;
      onProgress?: (job: Job) => void;
      waitSeconds?: number;
      signal?: AbortSignal;
    } = {},
  ): AsyncGenerator<ItemResult> {
    const { waitSeconds: timeout = 3600, config, onProgress } = options;
    const stop = options.signal ? { signal: options.signal } : {};
    const items = itemsOf(texts);
    for (let first = 0; first < items.length; first += ITEMS_MAX) {
      const some = items.slice(first, first + ITEMS_MAX);
      const patience = this.patience(first > 0 ? timeout : 0, options.signal);
      const idempotencyKey = crypto.randomUUID();
      const made = await patience.with(() =>
        this.batches.create(some, { idempotencyKey, ...stop, ...(config ? { config } : {}) }),
      );
      if (Array.isArray(made)) {
        yield* made;
        continue;
      }
      await this.batches.wait(made.batch_id, { timeout, ...stop, ...(onProgress ? { onProgress } : {}) });
      yield* inOrder(some, this.batches.results(made.batch_id, { timeout, ...stop }));
    }
  }

  /** Have one text judged behind the answer; the verdict goes to `webhookUrl` or a webhook. */
  async submit(text: string, options: DetectOptions = {}): Promise<AsyncDetection & WithMeta> {
    const { config, metadata, webhookUrl, failOpen: _, ...rest } = options;
    const body = { text, config, metadata, webhook_url: webhookUrl };
    return this.ask<AsyncDetection>("POST", "/v1/detect/async", { ...rest, body }, SUBMITTED);
  }

  /** What became of a text that was submitted. */
  async submitted(requestId: string, options: CallOptions = {}): Promise<AsyncDetection & WithMeta> {
    return this.ask<AsyncDetection>("GET", `/v1/detect/async/${encodeURIComponent(requestId)}`, options, SUBMITTED);
  }

  /** `false_positive`, `false_negative` or `correct`. The last word counts. */
  async feedback(
    requestId: string,
    verdict: string,
    note?: string,
    options: CallOptions = {},
  ): Promise<Feedback & WithMeta> {
    const body = { request_id: requestId, verdict, note };
    return this.ask<Feedback>("POST", "/v1/feedback", { ...options, body }, FEEDBACK);
  }

  /** What is left of each limit. Costs nothing. */
  async limits(options: CallOptions = {}): Promise<Limits & WithMeta> {
    return this.ask<Limits>("GET", "/v1/limits", options, LIMITS);
  }

  /** The calling key, its workspace, plan and usage. */
  async profile(options: CallOptions = {}): Promise<Record<string, unknown> & WithMeta> {
    return this.ask<Record<string, unknown>>("GET", "/auth/profile", options, PROFILE);
  }

  /** Who did what, newest first. `filters`: action, actor, target, since, until, limit. */
  audit(filters: Filters = {}, options: CallOptions = {}): AsyncGenerator<AuditRecord> {
    return this.pages("/v1/audit", RECORD, { ...options, params: filters });
  }

  /** Any call, with key, deadline and repetitions; undefined for an answer without a body. */
  async raw(method: string, path: string, request: Request = {}): Promise<unknown> {
    return (await this.#send(method.toUpperCase(), path, request, () => true)).value;
  }

  /** @internal */
  async ask<T extends object>(method: string, path: string, request: Request, fits: Fits): Promise<T & WithMeta> {
    const answer = await this.#send(method, path, request, fits);
    return Object.defineProperty(answer.value as T & WithMeta, "meta", { value: metaOf(answer), enumerable: false });
  }

  /** @internal Whoever says no more than `fine` to that may be a proxy. */
  async end(path: string, options: CallOptions): Promise<void> {
    await this.#send("DELETE", path, options, (_, status) => status === 204);
  }

  /** @internal */
  patience(seconds: number, signal?: AbortSignal): Patience {
    return new Patience(seconds, this.#options.firstWait, signal);
  }

  /** @internal Everything of a list, page by page, as it is taken. */
  async *pages<T>(path: string, shape: Shape, request: Request, patienceSeconds = 0): AsyncGenerator<T> {
    const { params = {}, ...options } = request;
    for (let following: string | null = path, first: Request["params"] = params; following !== null; first = {}) {
      const at: string = following;
      const asked = localPart(at, first);
      const isPage: Shape = (value) => hasResults(value, shape) && isNext((value as { next?: unknown }).next, asked);
      const page: { results: T[]; next?: string | null } = await this.patience(patienceSeconds, options.signal).with(
        () => this.ask("GET", at, { ...options, params: first }, isPage),
      );
      yield* page.results;
      following = page.next ?? null;
    }
  }

  async #send(
    method: string,
    path: string,
    request: Request,
    fits: Fits,
  ): Promise<Answer> {
    const { baseUrl, maxRetries, firstWait } = this.#options;
    const until = Date.now() + checkedTimeout(request.timeout ?? this.#options.timeout) * 1000;
    const headers: Record<string, string> = {
      Authorization: `Bearer ${this.#options.apiKey}`,
      Accept: "application/json",
      "X-Client": `gateway-guard-typescript/${VERSION}`,
      ...this.#options.headers,
      ...request.headers,
    };
    // The same with each repetition, so that whatever the first one did is done once.
    if (method !== "GET") headers["Idempotency-Key"] = request.idempotencyKey ?? crypto.randomUUID();
    if (request.body !== undefined) headers["Content-Type"] = "application/json";
    // What cannot be sent is the caller's mistake, and told at once: it is no absence of the gateway.
    const init: RequestInit = { method, headers: new Headers(headers), redirect: "manual" };
    if (request.body !== undefined) init.body = JSON.stringify(request.body);
    const url = baseUrl + localPart(path, request.params);
    for (let attempts = 1; ; attempts++) {
      let failure: GatewayError;
      let mayHelp = true;
      let asked: number | undefined;
      request.signal?.throwIfAborted();
      try {
        const answer = await this.#attempt(url, init, until, attempts, request.signal);
        if (answer.status >= 200 && answer.status < 300) {
          if (isRead(answer) && fits(answer.value, answer.status)) return answer;
          failure = notOurs(answer, "with a body that this API does not send: is there a proxy in between?");
        } else {
          asked = retryAfterOf(answer.headers);
          failure = failureOf(answer, asked);
          const code = "code" in failure ? failure.code : "";
          mayHelp = RETRIED.has(answer.status) || code === "idempotency_in_progress";
        }
      } catch (error) {
        if (request.signal?.aborted) throw error;
        if (error instanceof APITimeoutError) throw error;
        failure = new APIConnectionError(`${baseUrl} cannot be reached: ${String(error)}`, { cause: error });
      }
      (failure as { attempts?: number }).attempts = attempts;
      if (!mayHelp || attempts > maxRetries) throw failure;
      let wait = Math.min(LONGEST_WAIT, firstWait * 2 ** (attempts - 1)) * (0.5 + Math.random() / 2);
      if (asked !== undefined) wait = Math.max(wait, asked + Math.random() / 4);
      // A wait that would outlast the deadline is not begun.
      if (Date.now() + wait * 1000 >= until) throw failure;
      await sleep(wait, request.signal);
    }
  }

  async #attempt(
    url: string,
    init: RequestInit,
    until: number,
    attempts: number,
    signal: AbortSignal | undefined,
  ): Promise<Answer> {
    const controller = new AbortController();
    let isLate = false;
    const stop = () => controller.abort(signal?.reason);
    const timer = setTimeout(() => {
      isLate = true;
      controller.abort();
    }, Math.max(1, until - Date.now()));
    signal?.addEventListener("abort", stop);
    try {
      const response = await this.#options.fetch(url, { ...init, signal: controller.signal });
      const text = await response.text();
      return { status: response.status, headers: response.headers, text, attempts };
    } catch (error) {
      if (!isLate) throw error;
      const late = new APITimeoutError(`No answer of ${this.#options.baseUrl} within the deadline.`, {
        cause: error,
      });
      (late as { attempts?: number }).attempts = attempts;
      throw late;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
    }
  }
}

/** Up to 1,000 texts in one call. */
export class Batches {
  constructor(private readonly client: Client) {}

  /** The results of up to 100 texts; a `Job` for more, or with `webhookUrl` or `inBackground`. */
  create(
    texts: Iterable<string | BatchItem>,
    options: DetectOptions & ({ inBackground: true } | { webhookUrl: string }),
  ): Promise<Job & WithMeta>;
  create(
    texts: Iterable<string | BatchItem>,
    options?: DetectOptions & { inBackground?: boolean },
  ): Promise<ItemResult[] | (Job & WithMeta)>;
  async create(
    texts: Iterable<string | BatchItem>,
    options: DetectOptions & { inBackground?: boolean } = {},
  ): Promise<ItemResult[] | (Job & WithMeta)> {
    const { config, metadata, webhookUrl, inBackground, failOpen: _, ...rest } = options;
    const items = itemsOf(texts);
    const body = { requests: items, config, metadata, webhook_url: webhookUrl };
    const headers = inBackground ? { headers: { Prefer: "respond-async" } } : {};
    const request = { ...rest, ...headers, body };
    const fits: Fits = (value, status) => (status === 202 ? JOB(value) : hasResults(value, ITEM, items));
    const made = await this.client.ask<Job & { results?: ItemResult[] }>("POST", "/v1/detect/batch", request, fits);
    return made.results ?? made;
  }

  /** How far it is. */
  async get(batchId: string, options: CallOptions = {}): Promise<Job & WithMeta> {
    const request = { ...options, params: { limit: 1 } };
    return this.client.ask<Job>("GET", `/v1/detect/batch/${encodeURIComponent(batchId)}`, request, JOB);
  }

  /** Judge nothing more of it. What is judged stays. */
  async cancel(batchId: string, options: CallOptions = {}): Promise<Job & WithMeta> {
    return this.client.ask<Job>("DELETE", `/v1/detect/batch/${encodeURIComponent(batchId)}`, options, JOB);
  }

  /** Until it is over. Each look costs one of the minute, so they grow apart. The gateway may be
   * away meanwhile. */
  async wait(
    batchId: string,
    options: { timeout?: number; onProgress?: (job: Job) => void; signal?: AbortSignal } = {},
  ): Promise<Job & WithMeta> {
    const timeout = options.timeout ?? 3600;
    const until = Date.now() + timeout * 1000;
    const patience = this.client.patience(timeout, options.signal);
    const stop = options.signal ? { signal: options.signal } : {};
    for (let wait = POLL_SECONDS; ; wait = Math.min(POLL_SECONDS_MAX, wait * 1.5)) {
      const job = await patience.with(() => this.get(batchId, stop));
      options.onProgress?.(job);
      if (job.status === "cancelled") throw new BatchFailed("The batch was cancelled.", job);
      if (job.status !== "queued" && job.status !== "processing") return job;
      if (Date.now() + wait * 1000 > until) {
        throw new APITimeoutError(
          `Batch ${batchId} is not over after ${timeout} s. It goes on; ask again by its id.`,
        );
      }
      await sleep(wait, options.signal);
    }
  }

  /** Its finished results in their order, a page at a time: a lost one is asked for again, for as
   * long as `timeout` seconds (300). */
  results(
    batchId: string,
    options: { timeout?: number; signal?: AbortSignal } = {},
  ): AsyncGenerator<ItemResult> {
    const { timeout = 300, ...stop } = options;
    const path = `/v1/detect/batch/${encodeURIComponent(batchId)}`;
    return this.client.pages(path, ITEM, { ...stop, params: { limit: 200 } }, timeout);
  }
}

/** The workspace's keys; all but `rotate` needs the scope `keys:write`. */
export class Keys {
  constructor(private readonly client: Client) {}

  list(options: CallOptions = {}): AsyncGenerator<Key> {
    return this.client.pages("/v1/keys", KEY, options);
  }
  async create(fields: Partial<Key> = {}, options: CallOptions = {}): Promise<Key & WithMeta> {
    return this.client.ask<Key>("POST", "/v1/keys", { ...options, body: fields }, KEY);
  }
  async get(id: string, options: CallOptions = {}): Promise<Key & WithMeta> {
    return this.client.ask<Key>("GET", `/v1/keys/${encodeURIComponent(id)}`, options, KEY);
  }
  async update(id: string, fields: Partial<Key>, options: CallOptions = {}): Promise<Key & WithMeta> {
    return this.client.ask<Key>("PATCH", `/v1/keys/${encodeURIComponent(id)}`, { ...options, body: fields }, KEY);
  }
  async revoke(id: string, options: CallOptions = {}): Promise<void> {
    await this.client.end(`/v1/keys/${encodeURIComponent(id)}`, options);
  }
  /** A successor of the calling key, which works for `graceSeconds` more (a day). */
  async rotate(graceSeconds?: number, options: CallOptions = {}): Promise<Rotation & WithMeta> {
    const body = { grace_seconds: graceSeconds };
    return this.client.ask<Rotation>("POST", "/auth/rotate-key", { ...options, body }, ROTATION);
  }
}

/** What counts as an attack for the calling key. */
export class Policies {
  constructor(private readonly client: Client) {}

  async get(options: CallOptions = {}): Promise<Policy & WithMeta> {
    return this.client.ask<Policy>("GET", "/v1/policy", options, POLICY);
  }
  /** Replace it; with `ifVersion`, only if that one is still in force. */
  async set(policy: object, ifVersion?: number, options: CallOptions = {}): Promise<Policy & WithMeta> {
    const headers = ifVersion === undefined ? {} : { headers: { "If-Match": `"${ifVersion}"` } };
    return this.client.ask<Policy>("PUT", "/v1/policy", { ...options, body: policy, ...headers }, POLICY);
  }
}

/** The log of calls. */
export class Requests {
  constructor(private readonly client: Client) {}

  list(filters: Filters = {}, options: CallOptions = {}): AsyncGenerator<LoggedRequest> {
    return this.client.pages("/v1/requests", LOGGED, { ...options, params: filters });
  }
  async get(requestId: string, options: CallOptions = {}): Promise<LoggedRequest & WithMeta> {
    return this.client.ask<LoggedRequest>("GET", `/v1/requests/${encodeURIComponent(requestId)}`, options, LOGGED);
  }
}

/** Where events are sent. To check what arrives: `verifyWebhook`. */
export class Webhooks {
  constructor(private readonly client: Client) {}

  list(options: CallOptions = {}): AsyncGenerator<Webhook> {
    return this.client.pages("/webhooks/list", WEBHOOK, options);
  }
  /** The answer holds the `secret`, this once. */
  async create(
    url: string,
    fields: { events?: string[]; description?: string; retry_count?: number } = {},
    options: CallOptions = {},
  ): Promise<Webhook & WithMeta> {
    return this.client.ask<Webhook>("POST", "/webhooks/register", { ...options, body: { url, ...fields } }, WEBHOOK);
  }
  async get(id: string, options: CallOptions = {}): Promise<Webhook & WithMeta> {
    return this.client.ask<Webhook>("GET", `/webhooks/${encodeURIComponent(id)}`, options, WEBHOOK);
  }
  async update(id: string, fields: Partial<Webhook>, options: CallOptions = {}): Promise<Webhook & WithMeta> {
    const request = { ...options, body: fields };
    return this.client.ask<Webhook>("PATCH", `/webhooks/${encodeURIComponent(id)}`, request, WEBHOOK);
  }
  async delete(id: string, options: CallOptions = {}): Promise<void> {
    await this.client.end(`/webhooks/${encodeURIComponent(id)}`, options);
  }
  async test(id: string, event?: string, options: CallOptions = {}): Promise<{ delivery_id: string } & WithMeta> {
    return this.client.ask("POST", "/webhooks/test", { ...options, body: { webhook_id: id, event } }, QUEUED);
  }
  /** A new secret; the old one signs as well for `overlapSeconds` (a day). */
  async rotateSecret(
    id: string,
    overlapSeconds?: number,
    options: CallOptions = {},
  ): Promise<{ secret: string; previous_valid_until: string } & WithMeta> {
    const request = { ...options, body: { overlap_seconds: overlapSeconds } };
    return this.client.ask("POST", `/webhooks/${encodeURIComponent(id)}/rotate-secret`, request, NEW_SECRET);
  }
  async events(options: CallOptions = {}): Promise<unknown> {
    return this.client.ask("GET", "/webhooks/events", options, isList);
  }
  async perRequest(options: CallOptions = {}): Promise<unknown> {
    return this.client.ask("GET", "/webhooks/per-request", options, isObject);
  }
  deliveries(
    id: string,
    filters: Filters = {},
    options: CallOptions = {},
  ): AsyncGenerator<Delivery> {
    const request = { ...options, params: filters };
    return this.client.pages(`/webhooks/${encodeURIComponent(id)}/deliveries`, DELIVERY, request);
  }
  async delivery(id: string, options: CallOptions = {}): Promise<Delivery & WithMeta> {
    return this.client.ask<Delivery>("GET", `/webhooks/deliveries/${encodeURIComponent(id)}`, options, DELIVERY);
  }
  async resend(id: string, options: CallOptions = {}): Promise<{ delivery_id: string } & WithMeta> {
    return this.client.ask("POST", `/webhooks/deliveries/${encodeURIComponent(id)}/resend`, options, QUEUED);
  }
  /** Send again what failed or was never tried since then (RFC 3339). */
  async recover(
    id: string,
    since: string,
    until?: string,
    options: CallOptions = {},
  ): Promise<{ deliveries: number; is_complete: boolean } & WithMeta> {
    const request = { ...options, body: { since, until } };
    return this.client.ask("POST", `/webhooks/${encodeURIComponent(id)}/recover`, request, RECOVERY);
  }
}

function itemsOf(texts: Iterable<string | BatchItem>): BatchItem[] {
  const items = Array.from(texts, (one, number) =>
    typeof one === "string" ? { id: String(number), text: one } : { id: String(number), ...one },
  );
  if (new Set(items.map((item) => item.id)).size !== items.length) {
    throw new TypeError("Two items have the same id.");
  }
  return items;
}

/** Of each item its result: who reads them beside their texts would take one text's verdict for another's. */
async function* inOrder(items: BatchItem[], results: AsyncIterable<ItemResult>): AsyncGenerator<ItemResult> {
  let taken = 0;
  const instead = (what: string) =>
    new InvalidResponseError(`Instead of result ${taken + 1} of ${items.length} there is ${what}.`, 200, "");
  for await (const result of results) {
    if (result.id !== items[taken]?.id) throw instead(`a result of ${result.id}`);
    taken++;
    yield result;
  }
  if (taken < items.length) throw instead("an end");
}

/** `path` may be a whole address that the gateway gave (`next`): its host is not believed. Throws a
 * TypeError where it would lead elsewhere than it says: `..` is folded on the way, and an empty id
 * asks for the list that the object is in. */
function localPart(path: string, params: Request["params"] = {}): string {
  const [, named = "", query = ""] = /^(?:https?:\/\/[^/?#]*)?([^?#]*)(\?[^#]*)?/i.exec(path) ?? [];
  const url = new URL(named + query, "http://gateway.invalid");
  const names = url.pathname.split("/");
  if (!named.startsWith("/") || names.length !== named.split("/").length || names.lastIndexOf("") > 0) {
    throw new TypeError(`${path} is no path of this API: is an id in it empty, or dots?`);
  }
  for (const [name, value] of Object.entries(params)) {
    if (value !== undefined) url.searchParams.set(name, String(value));
  }
  return url.pathname + url.search;
}

/** A timer of NaN, or of more than it can count, is over before it began, as one of 0 is. */
function checkedTimeout(seconds: number): number {
  if (seconds > 0 && seconds <= TIMEOUT_MAX) return seconds;
  throw new TypeError(`timeout is in seconds, above 0 and up to ${TIMEOUT_MAX}.`);
}

/** Of a gateway, perhaps below a path. */
function isAddress(text: string): boolean {
  try {
    return /^https?:\/\/[^\s/\\?#@][^\s\\?#@]*$/i.test(text) && new URL(text).port !== "0";
  } catch {
    return false;
  }
}

/** What answers cannot do without: what their readers decide by, in types that `typeof` names. */
const has =
  (fields: Record<string, string | Shape>): Shape =>
  (value) =>
    isObject(value) &&
    Object.entries(fields).every(([name, wanted]) => {
      const found = (value as Record<string, unknown>)[name];
      return typeof wanted === "string" ? typeof found === wanted && found !== null : wanted(found);
    });
const isObject: Shape = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isList: Shape = (value) => Array.isArray(value) && value.every(isObject);
const DETECTION = has({ request_id: "string", is_malicious: "boolean", decision: "string", confidence: "number" });
const SCORE = has({ confidence: "number", source: "string" });
const JOB = has({ batch_id: "string", status: "string", total: "number" });
const SUBMITTED = has({ request_id: "string", result: (value) => value == null || DETECTION(value) });
const FEEDBACK = has({ request_id: "string", verdict: "string" });
const LIMITS = has({ policies: isList });
const KEY = has({ id: "string", prefix: "string", status: "string" });
const PROFILE = has({ api_key: KEY, workspace: "object" });
const ROTATION = has({ api_key: KEY, previous: isObject });
const POLICY = has({ id: "string", version: "number", mode: "string" });
const LOGGED = has({ request_id: "string", endpoint: "string", http_status: "number" });
const RECORD = has({ id: "string", action: "string" });
const WEBHOOK = has({ id: "string", url: "string", is_active: "boolean" });
const NEW_SECRET = has({ secret: "string" });
const DELIVERY = has({ id: "string", event_id: "string", event: "string", status: "string" });
const QUEUED = has({ delivery_id: "string" });
const RECOVERY = has({ deliveries: "number", is_complete: "boolean" });
/** A verdict, or why there is none. */
const ITEM: Shape = (value) =>
  has({ id: "string", status: "string" })(value) &&
  (has({ result: DETECTION })(value) || has({ result: (one) => one == null, error: isObject })(value));

function hasResults(value: unknown, shape: Shape, items?: BatchItem[]): boolean {
  const isOf = (all: ItemResult[]) =>
    !items || (all.length === items.length && all.every((one, n) => one.id === items[n]?.id));
  return has({ results: (all) => Array.isArray(all) && all.every(shape) && isOf(all) })(value);
}

/** A next page that is this one is of a cache that does not look at the query. */
function isNext(value: unknown, asked: string): boolean {
  try {
    return value == null || (typeof value === "string" && localPart(value) !== asked);
  } catch {
    return false;
  }
}

function isRead(answer: Answer): boolean {
  try {
    if (answer.text !== "") answer.value = JSON.parse(answer.text);
    return true;
  } catch {
    return false;
  }
}

function notOurs(answer: Answer, why: string): InvalidResponseError {
  return new InvalidResponseError(`${answer.status} ${why}`, answer.status, answer.text);
}

function failureOf(answer: Answer, retryAfter: number | undefined): GatewayError {
  if (answer.status < 400) {
    // 0: a browser does not tell of a redirect.
    const where = answer.headers.get("location") ?? "elsewhere";
    return notOurs(answer, `to ${where}, which is not followed: is baseUrl right?`);
  }
  if (!isRead(answer) || !has({ code: "string" })(answer.value)) {
    return notOurs(answer, "without a problem of this API: is there a proxy in between?");
  }
  const body = answer.value as Record<string, unknown> & { code: string };
  const fields = Array.isArray(body.errors) ? body.errors : [];
  return apiError(
    {
      status: answer.status,
      code: body.code,
      title: String(body.title ?? ""),
      detail: String(body.detail ?? ""),
      request_id: String(body.request_id ?? answer.headers.get("x-request-id") ?? ""),
      errors: fields.map((one) => ({ field: String(one?.field ?? ""), message: String(one?.message ?? "") })),
    },
    retryAfter,
  );
}

/** For what is under way already: it outlives an absence longer than the deadline of a call. */
class Patience {
  readonly #until: number;

  constructor(
    seconds: number,
    private readonly firstWait: number,
    private readonly signal: AbortSignal | undefined,
  ) {
    this.#until = Date.now() + seconds * 1000;
  }

  /** What `ask` gives, sooner or later; its error where time does not help, or none is left. */
  async with<T>(ask: () => Promise<T>): Promise<T> {
    for (let next = this.firstWait; ; next = Math.min(LONGEST_WAIT, next * 2)) {
      try {
        return await ask();
      } catch (error) {
        let wait = next;
        if (error instanceof RateLimitError) wait = Math.max(wait, error.retryAfter ?? 0);
        else if (!isOutage(error)) throw error;
        if (Date.now() + wait * 1000 > this.#until) throw error;
        await sleep(wait, this.signal);
      }
    }
  }
}

function isOutage(error: unknown): boolean {
  return (
    error instanceof APIConnectionError ||
    error instanceof InvalidResponseError ||
    error instanceof ServerError
  );
}

function failedOpen(error: GatewayError): Detection & WithMeta {
  const found: Detection = {
    request_id: "requestId" in error ? String(error.requestId) : "",
    is_malicious: false,
    confidence: 0,
    threat_types: [],
    processing_time_ms: 0,
    reason: null,
    threshold: 0,
    threshold_source: "",
    decision: "allow",
    would_flag: null,
    status: "unavailable",
    source: "none",
    degraded_reason: `the gateway gave no verdict: ${error.name}`,
    cached: false,
    cache_age_seconds: 0,
    policy: { id: "", version: 0 },
    metadata: null,
    details: null,
    failed_open: true,
  };
  const meta: Meta = {
    status: 0,
    requestId: "",
    attempts: (error as { attempts?: number }).attempts ?? 0,
    replayed: false,
    fromCache: false,
    rateLimits: [],
  };
  Object.defineProperty(found, "meta", { value: meta, enumerable: false });
  return found as Detection & WithMeta;
}

function retryAfterOf(headers: Headers): number | undefined {
  const text = headers.get("retry-after")?.trim();
  if (!text) return undefined;
  if (/^[0-9]+$/.test(text)) return Number(text);
  const at = Date.parse(text);
  return Number.isNaN(at) ? undefined : Math.max(0, (at - Date.now()) / 1000);
}

function metaOf(answer: Answer): Meta {
  return {
    status: answer.status,
    requestId: answer.headers.get("x-request-id") ?? "",
    attempts: answer.attempts,
    replayed: answer.headers.get("idempotency-replayed")?.toLowerCase() === "true",
    fromCache: false,
    rateLimits: rateLimitsOf(answer.headers),
  };
}

/** Of `RateLimit` and `RateLimit-Policy`: `"minute";r=59;t=60, "day";r=9999;t=40000`. */
function rateLimitsOf(headers: Headers): RateLimit[] {
  const quotas = new Map(itemsIn(headers.get("ratelimit-policy")).map(([name, f]) => [name, f.q]));
  return itemsIn(headers.get("ratelimit")).map(([name, fields]) => ({
    name,
    limit: quotas.get(name),
    remaining: fields.r ?? 0,
    resetSeconds: fields.t,
  }));
}

function itemsIn(text: string | null): [string, Record<string, number>][] {
  const found: [string, Record<string, number>][] = [];
  for (const item of (text ?? "").split(",")) {
    const [name, ...fields] = item.trim().split(";");
    if (!name) continue;
    const numbers: Record<string, number> = {};
    for (const one of fields) {
      const [key, value] = one.trim().split("=");
      if (key && value && /^[0-9]{1,15}$/.test(value)) numbers[key] = Number(value);
    }
    found.push([name.replace(/"/g, ""), numbers]);
  }
  return found;
}

function sleep(seconds: number, signal?: AbortSignal): Promise<void> {
  if (signal?.aborted) return Promise.reject(signal.reason);
  return new Promise((done, fail) => {
    const stop = () => {
      clearTimeout(timer);
      fail(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      done();
    }, seconds * 1000);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
