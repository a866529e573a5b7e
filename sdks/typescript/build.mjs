// `prepare`: npm runs it for who installs this folder, and before a package is made. Neither brings
// the compiler.
import { execSync } from "node:child_process";
import { existsSync, writeFileSync } from "node:fs";

const run = (command) => execSync(command, { stdio: "inherit" });

if (!existsSync("node_modules/typescript")) {
  run("npm ci --ignore-scripts --include=dev --no-dry-run --no-audit --no-fund");
}
for (const config of ["tsconfig.json", "tsconfig.cjs.json"]) run(`node node_modules/typescript/bin/tsc -p ${config}`);
// The folder of CommonJS says what it is: the package itself is of modules.
writeFileSync("dist/cjs/package.json", '{ "type": "commonjs" }\n');
