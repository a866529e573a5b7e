// What of a body is judged as what: ../../vectors/bodies.json.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { fields, guardRoute } from "../dist/esm/next.js";

const BODIES = JSON.parse(readFileSync(new URL("../../vectors/bodies.json", import.meta.url)));
const guard = { checkAll: async () => [] };

for (const one of BODIES) {
  test(`a body: ${one.what}`, async () => {
    const found = [];
    const extract = (body) => (found.push(...fields("message")(body)), []);
    const handler = guardRoute(guard, () => new Response(), { extract });
    const sent = { method: "POST", body: one.body ?? Buffer.from(one.base64, "base64") };
    const request = new Request("http://localhost/chat", sent);
    request.headers.delete("content-type");
    if (one.type) request.headers.set("content-type", one.type);
    const { status } = await handler(request);
    if (one.refused) {
      assert.deepEqual([status, found], [one.refused, []]);
      return;
    }
    assert.equal(status, 200);
    assert.deepEqual(found.map(({ text }) => text).sort(), one.texts.sort());
    assert.ok(found.every(({ contentType }) => contentType === "user_input"));
  });
}

test("a body of more texts than anybody writes is refused", async () => {
  const handler = guardRoute(guard, () => new Response());
  const body = JSON.stringify({ message: Array.from({ length: 1_001 }, (_, n) => String(n)) });
  assert.equal((await handler(new Request("http://localhost/chat", { method: "POST", body }))).status, 400);
});
