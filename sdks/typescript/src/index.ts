export { Client, VERSION } from "./client.js";
export type { CallOptions, ClientOptions, DetectOptions } from "./client.js";
export * from "./errors.js";
export type * from "./types.js";
export { verifyWebhook } from "./webhooks.js";
export type { HeadersLike, WebhookEvent } from "./webhooks.js";
