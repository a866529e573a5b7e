// What a guard remembers.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";

import { Guard } from "../dist/esm/index.js";

/** A client that allows all, and remembers what it was asked. */
function allowing() {
  const asked = [];
  const detect = async (text) => (asked.push(text), { decision: "allow", status: "complete" });
  return { asked, detect };
}

test("a verdict holds for an equal text of the same kind, for as long as it was told", async (t) => {
  t.mock.timers.enable({ apis: ["Date"] });
  const client = allowing();
  const guard = new Guard(client, { rememberSeconds: 10 });
  for (const kind of ["user_input", "document", "user_input"]) await guard.check("One.", kind);
  assert.equal(client.asked.length, 2);
  t.mock.timers.tick(10_001);
  await guard.check("One.");
  assert.equal(client.asked.length, 3);
  const forgetful = new Guard(client, { rememberSeconds: 0 });
  await forgetful.check("One.");
  await forgetful.check("One.");
  assert.equal(client.asked.length, 5);
});

test("ten thousand long texts do not fill the memory", () => {
  const script = `
    import { Guard } from ${JSON.stringify(new URL("../dist/esm/index.js", import.meta.url))};
    const guard = new Guard({ detect: async () => ({ decision: "allow", status: "complete" }) });
    for (let n = 0; n < 10_000; n++) {
      await guard.check(Buffer.alloc(10_000, \`\${n} \`).toString("latin1"));
    }
    console.log("done");
  `;
  const given = ["--max-old-space-size=48", "--input-type=module", "--eval", script];
  const { stdout, stderr } = spawnSync(process.execPath, given, { encoding: "utf8" });
  assert.equal(stdout.trim(), "done", stderr.slice(0, 500));
});
