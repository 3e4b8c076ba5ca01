// Debian's Chromium, driven by playwright-core, with a profile that is new each time.

import { existsSync } from "node:fs";
import { chromium } from "playwright-core";

const PROGRAM = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]
  .find((path) => path && existsSync(path));

/** A browser without a window. Its own requests to the internet are switched off. */
export function launch() {
  if (!PROGRAM) throw new Error("no Chromium found: install Debian's package chromium, or say where it is in CHROMIUM");
  return chromium.launch({
    executablePath: PROGRAM,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}
