// The sandbox as a developer starts it, on free ports, built before: `cargo build --workspace --bins --examples`.

import { execFileSync, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), "../..");
const TARGET = resolve(ROOT, process.env.CARGO_TARGET_DIR ?? "target", "debug");

function built(name) {
  const path = join(TARGET, name);
  if (!existsSync(path)) throw new Error(`${path} is not there: cargo build --workspace --bins --examples`);
  return path;
}

/** Writes every page of `callback` to a folder. */
export function writePages(folder) {
  execFileSync(built("examples/pages"), [folder]);
}

/** Starts a sandbox; `environment` is for the functions. Answers its addresses, its output, and how to end it. */
export async function start({ options = [], environment = {}, consolePort = 0 } = {}) {
  const ports = ["--port", "0", "--platform-port", "0", "--console-port", String(consolePort)];
  const assignments = Object.entries(environment).flatMap(([name, value]) => ["--env", `${name}=${value}`]);
  const child = spawn(built("sandbox"), [...ports, ...options, ...assignments], { stdio: ["ignore", "pipe", "inherit"] });
  const lines = [];
  const found = {};
  const wanted = { console: /console, with buttons +(\S+)/, link: /our link, with a state +(\S+)/, marketplace: /from the marketplace +(\S+)/ };
  await new Promise((ready, failed) => {
    child.once("exit", (code) => failed(new Error(`the sandbox ended with ${code}`)));
    createInterface({ input: child.stdout }).on("line", (line) => {
      lines.push(line);
      for (const [name, pattern] of Object.entries(wanted)) found[name] ??= pattern.exec(line)?.[1];
      if (line.startsWith("Ctrl-C")) ready();
    });
  });
  const { console, link, marketplace } = found;
  const end = () =>
    new Promise((ended) => {
      child.removeAllListeners("exit").once("exit", ended);
      child.kill("SIGTERM");
    });
  return { console, link, marketplace, gateway: new URL(link).origin, platform: new URL(marketplace).origin, lines, end };
}
