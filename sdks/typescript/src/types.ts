/** What the gateway answers. Words such as `decision` are strings: a newer gateway may know more. */

export interface RateLimit {
  name: string;
  limit: number | undefined;
  remaining: number;
  resetSeconds: number | undefined;
}

/** About the answer that an object came with. */
export interface Meta {
  status: number;
  requestId: string;
  attempts: number;
  replayed: boolean;
  fromCache: boolean;
  rateLimits: RateLimit[];
}

export interface WithMeta {
  /** Not enumerable: it is not in `JSON.stringify`. */
  readonly meta: Meta;
}

export type ContentType =
  | "user_input"
  | "document"
  | "tool_output"
  | "model_output"
  | "tool_definition"
  | "tool_call"
  | "memory_write"
  | "system"
  | (string & {});

export interface DetectConfig {
  confidence_threshold?: number;
  content_type?: ContentType;
  mode?: "enforce" | "monitor";
  /** What the gateway does without its engine. */
  on_unavailable?: "fallback" | "fail_closed" | "fail_open";
  include_reasoning?: boolean;
  detailed_response?: boolean;
  timeout_seconds?: number;
  use_cache?: boolean;
}

export interface Detection {
  request_id: string;
  is_malicious: boolean;
  confidence: number;
  threat_types: string[];
  processing_time_ms: number;
  reason?: string | null;
  endpoint?: string | null;
  engine?: string | null;
  /** Where the highest score stood: in which of `messages`, or at which path of a JSON text. */
  location?: { message?: number; path?: string };
  /** How much of the text was looked at. */
  coverage?: { scanned_chars: number; total_chars: number; unseen: Record<string, unknown>[] };
  threshold: number;
  threshold_source: string;
  /** `allow`, `flag` or `review`. */
  decision: string;
  would_flag: boolean | null;
  status: string;
  source: string;
  degraded_reason: string | null;
  cached: boolean;
  cache_age_seconds: number;
  policy: { id: string; version: number; matched?: string | null };
  metadata: Record<string, unknown> | null;
  details: Record<string, unknown> | null;
  /** There is no verdict, and the caller chose to go on without. */
  failed_open?: boolean;
}

export interface Score {
  confidence: number;
  categories: { type: string; score: number }[];
  threat_types: string[];
  source: string;
  detector: Record<string, unknown>;
}

/** A verdict, or why there is none. */
export type ItemResult = { id: string; status: string } & (
  | { result: Detection; error: null }
  | { result: null; error: { code: string; message: string } }
);

export interface Job {
  batch_id: string;
  /** `queued`, `processing`, `complete`, `partial`, `failed` or `cancelled`. */
  status: string;
  total: number;
  status_url: string;
  successful_count?: number;
  failed_count?: number;
  flagged_count?: number;
  created_at?: string;
  started_at?: string | null;
  finished_at?: string | null;
  expires_at?: string;
  webhook_url?: string | null;
  metadata?: Record<string, unknown> | null;
}

export interface BatchItem {
  id?: string;
  text: string;
  config?: DetectConfig;
  metadata?: Record<string, unknown>;
}

export interface Limits {
  policies: {
    name: string;
    limit: number;
    remaining: number;
    reset_seconds: number;
    window_seconds: number;
  }[];
}

export interface Policy {
  id: string;
  version: number;
  mode: string;
  on_unavailable: string;
  updated_at?: string | null;
  threshold: Record<string, unknown>;
  engines?: Record<string, unknown>;
  locked: string[];
  categories: Record<string, boolean>;
  allow: { digest: string; note: string }[];
  deny: { digest: string; note: string }[];
  store_text: boolean;
}

export interface Feedback {
  id: string;
  request_id: string;
  verdict: string;
  note: string | null;
  confidence: number;
  created_at: string;
}

export interface Key {
  id: string;
  prefix: string;
  last4: string;
  name: string;
  status: string;
  scopes: string[];
  allowed_cidrs: string[];
  rate_limit_per_minute: number;
  rate_limit_per_day: number;
  created_at: string;
  expires_at: string | null;
  grace_until?: string | null;
  revoked_at?: string | null;
  replaced_by?: string | null;
  last_used_at?: string | null;
  last_used_ip?: string | null;
  tags?: string[];
  owner?: string;
  is_test?: boolean;
  /** Only in the answer that made it. */
  key?: string;
}

export interface Rotation {
  api_key: Key;
  previous: { id: string; grace_until: string };
}

export interface LoggedRequest {
  request_id: string;
  created_at: string;
  api_key_id: string;
  endpoint: string;
  http_status: number;
  error_code: string | null;
  decision: string | null;
  confidence: number | null;
  request_bytes?: number;
  timing?: Record<string, unknown>;
  status?: string | null;
  source?: string | null;
  is_malicious?: boolean | null;
  cached?: boolean;
  why?: Record<string, unknown>;
  [name: string]: unknown;
}

export interface Webhook {
  id: string;
  url: string;
  events: string[];
  description: string;
  retry_count: number | null;
  is_active: boolean;
  created_at: string;
  health: Record<string, unknown>;
  /** Only in the answer that made it. */
  secret?: string;
}

export interface Delivery {
  id: string;
  webhook_id: string;
  event_id: string;
  event: string;
  url: string;
  status: string;
  http_status: number | null;
  error: string | null;
  attempts: Record<string, unknown>[];
  created_at?: string;
  finished_at?: string | null;
  next_attempt_at?: string | null;
  body?: Record<string, unknown>;
}

export interface AsyncDetection {
  request_id: string;
  status: string;
  result?: Detection | null;
  error?: { code: string; message: string } | null;
  status_url?: string;
  created_at?: string;
  started_at?: string | null;
  finished_at?: string | null;
  expires_at?: string;
  webhook_url?: string | null;
  metadata?: Record<string, unknown> | null;
}

export interface AuditRecord {
  id: string;
  number: number | null;
  at: string;
  action: string;
  actor: string;
  target: string;
  client_ip: string | null;
  request_id: string | null;
  /** [before, after] of each field. */
  changes: Record<string, unknown[]>;
  details: Record<string, unknown>;
  digest: string;
}
