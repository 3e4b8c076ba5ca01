// The README's example after `<!-- example:NAME -->`, run as it is written.
"use strict";
const fs = require("node:fs");
const path = require("node:path");

const README = fs.readFileSync(path.join(__dirname, "..", "..", "README.md"), "utf8");
const AsyncFunction = (async () => {}).constructor;

// `given` are the names that the example takes for granted, `wanted` the one of its own that is wanted back.
module.exports = async function example(name, given, wanted) {
  const [, after] = README.split(`<!-- example:${name} -->`);
  const [, code] = after?.match(/^\s*```js\n(.*?)\n```/s) ?? [];
  if (!code) throw new Error(`README.md has no js block after <!-- example:${name} -->`);
  const run = new AsyncFunction("require", ...Object.keys(given), `${code}\nreturn ${wanted};`);
  return run(require, ...Object.values(given));
};
