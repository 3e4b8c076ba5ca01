// All pages of `callback`, without a brand and with one: their HTML, their accessibility, their width.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { after, before, test } from "node:test";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";

import { fitsAPhone, isAccessible } from "./checks.mjs";
import { launch } from "./chromium.mjs";
import { writePages } from "./sandbox.mjs";

const FOLDER = mkdtempSync(join(tmpdir(), "pages-"));
writePages(FOLDER);
const PAGES = [FOLDER, join(FOLDER, "branded")].flatMap((folder) =>
  readdirSync(folder)
    .filter((name) => name.endsWith(".html"))
    .map((name) => join(folder, name)),
);
const CONSOLE = new URL("../sandbox/src/console/", import.meta.url);

let browser, page;
before(async () => {
  browser = await launch();
  page = await browser.newPage();
});
after(async () => {
  await browser?.close();
  rmSync(FOLDER, { recursive: true });
});

test("the pages and the console are valid HTML and CSS", { timeout: 120_000 }, async () => {
  assert.equal(PAGES.length, 42, "17 failures, 3 successes and a choice, each twice");
  const jar = createRequire(import.meta.url).resolve("vnu-jar/build/dist/vnu.jar");
  const ours = ["console.html", "console.css"].map((name) => new URL(name, CONSOLE).pathname);
  const consent = new URL("../marketplace/consent.css", CONSOLE).pathname;
  const files = [...PAGES, ...ours, consent];
  // It says whatever is wrong on its standard error, and ends with another status than 0.
  await promisify(execFile)("java", ["-jar", jar, "--also-check-css", "--Werror", ...files]);
});

for (const path of PAGES) {
  const name = path.slice(FOLDER.length + 1).replace(".html", "");
  test(`${name} is accessible, and fits a phone`, async () => {
    await page.goto(pathToFileURL(path).href);
    assert.equal(await page.locator("h1").count(), 1, basename(path));
    await isAccessible(page, name);
    await fitsAPhone(page, name);
  });
}
