// The folder of CommonJS says what it is: the package itself is of modules.
import { writeFileSync } from "node:fs";

writeFileSync("dist/cjs/package.json", '{ "type": "commonjs" }\n');
