/** Texts are checked, and whatever is flagged throws: what all integrations stand on. */

import type { Client } from "./client.js";
import { placeOf, portions } from "./chats.js";
import type { Text } from "./chats.js";
import { Blocked } from "./errors.js";
import type { DetectConfig, Detection, WithMeta } from "./types.js";

const AT_ONCE = 8;
const REMEMBERED_MAX = 10_000;

export interface GuardOptions {
  /** Without a verdict to be had, texts pass, and the verdict says `failed_open`. */
  failOpen?: boolean;
  /** For every request, such as `{ confidence_threshold: 0.7 }`. */
  config?: DetectConfig;
  /** Told of each verdict, those that `failed_open` included. */
  onVerdict?: (text: Text, found: Detection) => void;
  /** How long a verdict holds for an equal text: a chat sends its whole history with each turn.
   * Default: 300; 0: every text is asked anew. */
  rememberSeconds?: number;
}

export type Found = Detection & Partial<WithMeta>;

/**
 * Throws `Blocked` for what is flagged, and other `GatewayError`s where there is no verdict: unless
 * `failOpen`, then the text passes, a warning is written, and the verdict says `failed_open`.
 */
export class Guard {
  readonly #known = new Map<string, { until: number; found: Found }>();

  constructor(
    readonly client: Client,
    readonly options: GuardOptions = {},
  ) {}

  /** The verdicts on a text of any length, one for each 10,000 characters. */
  check(text: string, contentType: Text["contentType"] = "user_input", where?: string): Promise<Found[]> {
    return this.checkAll([{ text, contentType, ...(where === undefined ? {} : { where }) }]);
  }

  /** Up to eight are asked at the same time; the first that is flagged ends it. */
  async checkAll(texts: Iterable<Text>): Promise<Found[]> {
    const asked: { text: Text; portion: string }[] = [];
    for (const text of texts) {
      for (const portion of portions(text.text)) if (portion !== "") asked.push({ text, portion });
    }
    const found: Found[] = new Array(asked.length);
    const stop = new AbortController();
    let next = 0;
    const work = async () => {
      for (let n = next++; n < asked.length; n = next++) {
        const { text, portion } = asked[n]!;
        found[n] = await this.#one(text, portion, stop.signal);
      }
    };
    try {
      await Promise.all(Array.from({ length: Math.min(AT_ONCE, asked.length) }, work));
    } catch (error) {
      stop.abort();
      next = asked.length;
      throw error;
    }
    return found;
  }

  async #one(text: Text, portion: string, signal: AbortSignal): Promise<Found> {
    const { failOpen, config, onVerdict, rememberSeconds = 300 } = this.options;
    const key = rememberSeconds > 0 ? await keyOf(`${text.contentType} ${portion}`) : "";
    const known = this.#known.get(key);
    const isKnown = known !== undefined && known.until > Date.now();
    const found: Found = isKnown
      ? known.found
      : await this.client.detect(portion, {
          config: { ...config, content_type: text.contentType },
          ...(failOpen ? { failOpen } : {}),
          signal,
        });
    onVerdict?.(text, found);
    if (found.failed_open) {
      console.warn(`gateway-guard: ${placeOf(text)} passed without a verdict: ${found.degraded_reason}`);
    } else if (!isKnown && rememberSeconds > 0 && found.status === "complete") {
      this.#remember(key, found, rememberSeconds);
    }
    if (found.decision === "flag") throw new Blocked(found, text.contentType, placeOf(text));
    return found;
  }

  /** The oldest stand first. */
  #remember(key: string, found: Found, seconds: number): void {
    const now = Date.now();
    this.#known.delete(key);
    this.#known.set(key, { until: now + seconds * 1000, found });
    for (const [old, { until }] of this.#known) {
      if (until > now && this.#known.size <= REMEMBERED_MAX) break;
      this.#known.delete(old);
    }
  }
}

/** Not the text itself: so many of them would be a hundred megabytes. */
async function keyOf(text: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return String.fromCharCode(...new Uint8Array(digest));
}
