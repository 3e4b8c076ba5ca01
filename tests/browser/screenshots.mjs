// The README's pictures, made from a sandbox in use: `npm run screenshots`. WebP, each well below 80 KB.

import { mkdirSync, statSync, writeFileSync } from "node:fs";

import { until } from "./checks.mjs";
import { launch } from "./chromium.mjs";
import { start } from "./sandbox.mjs";

const FOLDER = new URL("../../docs/images/", import.meta.url);
const QUALITY = 68;

/** Writes what the page shows now. Playwright knows PNG and JPEG only, Chromium itself WebP too. */
async function shoot(page, name) {
  const session = await page.context().newCDPSession(page);
  const { data } = await session.send("Page.captureScreenshot", { format: "webp", quality: QUALITY });
  const file = new URL(`${name}.webp`, FOLDER);
  writeFileSync(file, Buffer.from(data, "base64"));
  const kilobytes = Math.ceil(statSync(file).size / 1024);
  if (kilobytes > 80) throw new Error(`${name} has ${kilobytes} KB`);
  process.stdout.write(`${name}.webp, ${kilobytes} KB\n`);
}

async function inBothSchemes(page, name) {
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    await shoot(page, `${name}-${colorScheme}`);
  }
}

mkdirSync(FOLDER, { recursive: true });
const environment = { BRAND_NAME: "Grove Reviews", ACCENT_COLOR: "#0f766e", SUPPORT_URL: "https://help.example.com/" };
const [browser, sandbox] = await Promise.all([launch(), start({ environment })]);
try {
  const admin = await browser.newPage({ viewport: { width: 400, height: 560 } });
  await admin.goto(sandbox.link);
  await admin.getByRole("radio", { name: "Birch Fitness" }).check();
  await admin.getByRole("button", { name: "Approve" }).click();
  await admin.getByRole("heading", { name: "The app is connected" }).waitFor();
  await inBothSchemes(admin, "installed");

  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  await page.goto(sandbox.console);
  const choose = (name) => page.getByRole("radio", { name }).check();
  const press = async (name, said) => {
    await page.getByRole("button", { name, exact: true }).click();
    await page.locator("#said", { hasText: said }).waitFor();
  };
  await choose("Grove Agency");
  await press("Install", "Installed");
  await choose("Cedar Realty");
  await press("Send one call", "1 answered");
  await choose("Alder Dental");
  await press("Install", "Installed");
  for (const pause of [900, 700, 1100]) {
    await press("Send one call", "1 answered");
    await page.waitForTimeout(pause);
  }
  await press("Send 150 at once", "refused by the relay");
  await choose("Birch Fitness");
  await press("Kill a refresh half-way", "is dead");
  await until("the process is back", async () => (await page.getByText(/refresh-1 · \d+ · start 2/).count()) === 1);
  await page.waitForTimeout(500);
  await page.mouse.move(0, 0);
  await inBothSchemes(page, "console");
} finally {
  await browser.close();
  await sandbox.end();
}
