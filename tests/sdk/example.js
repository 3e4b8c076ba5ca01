// The example after `<!-- example:NAME -->` in one of the pages, run as it is written, as a program of its own.
"use strict";
const { execFileSync } = require("node:child_process");
const fs = require("node:fs");
const path = require("node:path");

const root = path.join(__dirname, "..", "..");
const recipes = fs.readdirSync(path.join(root, "docs/recipes")).map((page) => `docs/recipes/${page}`);
const names = ["README.md", "docs/calling.md", ...recipes];
const pages = names.map((page) => fs.readFileSync(path.join(root, page), "utf8")).join("");

// A module finds its packages from the folder that it is in: the one with the clients' node_modules.
module.exports = function run(name, input = "") {
  const [, after] = pages.split(`<!-- example:${name} -->`);
  const [, code] = after?.match(/^\s*```js\n(.*?)\n```/s) ?? [];
  if (!code) throw new Error(`no page has a js block after <!-- example:${name} -->`);
  const file = path.join(path.dirname(process.env.NODE_PATH), `${name}-${process.pid}.mjs`);
  fs.writeFileSync(file, code);
  try {
    return execFileSync(process.execPath, [file], { encoding: "utf8", input });
  } finally {
    fs.rmSync(file);
  }
};
