// From a checkout, where nothing is built and no compiler is: `npm install` of the folder, `npm pack`.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const SOURCE = fileURLToPath(new URL("..", import.meta.url));
const BUILT = ["dist", "node_modules", "integrations"];
const NAMES = Object.keys(JSON.parse(readFileSync(join(SOURCE, "package.json"), "utf8")).exports);

/** A project with the library's source beside it. */
function checkout(t) {
  const folder = mkdtempSync(join(tmpdir(), "gateway-guard-"));
  t.after(() => rmSync(folder, { recursive: true }));
  cpSync(SOURCE, join(folder, "sdk"), { recursive: true, filter: (from) => !BUILT.includes(basename(from)) });
  writeFileSync(join(folder, "package.json"), '{ "private": true }');
  return folder;
}

const npm = (folder, ...given) =>
  execFileSync("npm", [...given, "--no-audit", "--no-fund"], { cwd: folder, stdio: ["ignore", "pipe", "inherit"] });

/** Each entry of the package, as both kinds of modules, with its types. */
function assertWorks(folder) {
  for (const name of NAMES) {
    const entry = JSON.stringify(join("gateway-guard", name));
    execFileSync("node", ["--input-type=module", "-e", `await import(${entry})`], { cwd: folder });
    execFileSync("node", ["--input-type=commonjs", "-e", `require(${entry})`], { cwd: folder });
  }
  assert.ok(readdirSync(join(folder, "node_modules/gateway-guard/dist/esm")).includes("index.d.ts"));
}

test("npm install of the folder gives a package that works", (t) => {
  const folder = checkout(t);
  npm(folder, "install", "./sdk");
  assertWorks(folder);
});

test("npm pack makes a package that works without the folder", (t) => {
  const folder = checkout(t);
  npm(join(folder, "sdk"), "pack", "--pack-destination", folder);
  rmSync(join(folder, "sdk"), { recursive: true });
  npm(folder, "install", `./${readdirSync(folder).find((name) => name.endsWith(".tgz"))}`);
  assertWorks(folder);
});
