// What holds for every page, whatever it shows.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

export const PATIENCE = 30_000;

/** Waits until `look` answers something true, and answers it. */
export async function until(what, look) {
  const deadline = Date.now() + PATIENCE;
  for (;;) {
    const seen = await look();
    if (seen) return seen;
    assert.ok(Date.now() < deadline, `${what}: did not happen`);
    await new Promise((go) => setTimeout(go, 50));
  }
}

/** No violation of any of axe-core's rules, best practices too, in both colour schemes. */
export async function isAccessible(page, name) {
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    // Not as a script of the page: its policy allows none.
    await page.evaluate(AXE);
    const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
    const told = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.target} ${node.failureSummary}`).join("\n")}`);
    assert.deepEqual(told, [], `${name}, ${colorScheme}`);
  }
  await page.emulateMedia({ colorScheme: "light" });
}

/** Nothing is wider than a small phone. */
export async function fitsAPhone(page, name) {
  const before = page.viewportSize();
  for (const width of [360, 320]) {
    await page.setViewportSize({ width, height: 740 });
    const { scroll, widest } = await page.evaluate(() => {
      const all = [...document.querySelectorAll("body *")];
      const right = (node) => node.getBoundingClientRect().right;
      const worst = all.reduce((most, node) => (right(node) > right(most) ? node : most), document.body);
      return { scroll: document.documentElement.scrollWidth, widest: `${worst.tagName}.${worst.className} to ${right(worst)}` };
    });
    assert.ok(scroll <= width, `${name} at ${width} px is ${scroll} wide: ${widest}`);
  }
  await page.setViewportSize(before);
}

/** The headers of a page of `callback`. */
export function isPrivate(response, name) {
  const headers = response.headers();
  assert.equal(headers["cache-control"], "no-store", name);
  assert.equal(headers["referrer-policy"], "no-referrer", name);
  assert.equal(headers["x-content-type-options"], "nosniff", name);
  assert.equal(headers["x-frame-options"], "DENY", name);
  assert.match(headers["content-security-policy"], /^default-src 'none'; /, name);
  assert.match(headers["content-security-policy"], /frame-ancestors 'none'/, name);
  assert.doesNotMatch(headers["content-security-policy"], /unsafe|https?:|\*/, name);
}

/** Fails a test when a page logs anything: a policy that was broken, a script that failed. */
export function hearComplaints(page) {
  const heard = [];
  page.on("console", (message) => {
    // Chromium reports every status of 400 or more as an error of its own.
    if (["error", "warning"].includes(message.type()) && !message.text().startsWith("Failed to load resource")) heard.push(message.text());
  });
  page.on("pageerror", (error) => heard.push(error.message));
  return heard;
}
