import type { Guard } from "./guard.js";
import { guarded } from "./models.js";
import type { ModelOptions } from "./models.js";

/**
 * A client like `client` (of `openai`, Azure's too) that checks what it sends: what the user says, what
 * tools returned, documents, definitions of tools, each as what it is; and what the model says, and the
 * calls it asks for. Rejects with `Blocked` before anything is sent, or before an answer is given out.
 * Instructions (`system`, `developer`) and pictures are not judged.
 */
export function guardOpenAI<C extends object>(client: C, guard: Guard, options?: ModelOptions): C {
  return guarded(client, guard, options);
}
export type { ModelOptions };
