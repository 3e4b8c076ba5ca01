// An admin's way: from the link to the page that says it worked, and everything that can come between.

import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, test } from "node:test";

import { fitsAPhone, hearComplaints, isAccessible, isPrivate, until } from "./checks.mjs";
import { launch } from "./chromium.mjs";
import { start } from "./sandbox.mjs";

let browser, sandbox, context, page, complaints;
before(async () => {
  [browser, sandbox] = await Promise.all([launch(), start()]);
});
after(async () => {
  await browser?.close();
  await sandbox?.end();
});
beforeEach(async () => {
  context = await browser.newContext({ viewport: { width: 1280, height: 800 } });
  page = await context.newPage();
  complaints = hearComplaints(page);
});
afterEach(async () => {
  await context.close();
  assert.deepEqual(complaints, []);
});

const heading = () => page.locator("h1").textContent();
const press = (name) => page.getByRole("button", { name, exact: true }).click();

async function control(method, path, body) {
  const answer = await fetch(`${sandbox.platform}/_sandbox/${path}`, { method, body: body && JSON.stringify(body) });
  assert.ok(answer.ok, `${method} ${path}: ${answer.status}`);
}

/** Presses something, and answers the last response of the navigation that comes of it. */
async function arriving(path, act, at = path) {
  const [response] = await Promise.all([page.waitForResponse((found) => new URL(found.url()).pathname === path), act()]);
  // The response comes before the page that it makes.
  await page.waitForURL((url) => url.pathname === at);
  return response;
}

test("from the link to the page that says it worked", async () => {
  await page.goto(sandbox.link);
  assert.equal(await heading(), "Install the app?");
  await isAccessible(page, "consent");
  await fitsAPhone(page, "consent");
  await page.getByRole("radio", { name: "Birch Fitness" }).check();
  const done = await arriving("/oauth/done", () => press("Approve"));
  assert.equal(await heading(), "The app is connected");
  isPrivate(done, "done");
  assert.equal(page.url(), `${sandbox.gateway}/oauth/done?for=location`, "the code is out of the address");
  await page.goBack();
  await until("back leads to the consent page, or to a page that helps", async () => /Install the app\?|already used/.test(await heading()));
});

test("an agency with some of its locations", async () => {
  await page.goto(sandbox.marketplace);
  await page.getByRole("radio", { name: /Grove Agency/ }).check();
  await page.getByText("with all its locations").click();
  await page.getByRole("checkbox", { name: "Alder Dental" }).uncheck();
  await arriving("/oauth/done", () => press("Approve"));
  assert.equal(await heading(), "The app is connected to your agency");
  await page.getByRole("link", { name: "Back to the marketplace" }).waitFor();
  const told = (location) => until(`${location} is told`, () => sandbox.lines.some((line) => line.includes(`INSTALL of location:${location}`)));
  await told("HLlocation000000003");
  assert.ok(!sandbox.lines.some((line) => line.includes("INSTALL of location:HLlocation000000001")), "it was left out");
});

test("refusing is no error of anyone, and leads back to the start", async () => {
  await page.goto(sandbox.link);
  const refused = await arriving("/oauth/callback", () => press("Refuse"));
  assert.equal(refused.status(), 400);
  isPrivate(refused, "refused");
  assert.equal(await heading(), "The app was not installed");
  await page.getByRole("link", { name: "Start again" }).click();
  assert.equal(await heading(), "Install the app?");
});

test("a redirect that comes again ends on the page that says it worked", async () => {
  await page.goto(sandbox.link);
  const callback = await arriving("/oauth/callback", () => press("Approve"), "/oauth/done");
  await page.goto(callback.url());
  assert.equal(page.url(), `${sandbox.gateway}/oauth/done?for=location`);
  assert.equal(await heading(), "The app is connected");
  // Two tabs that are restored at the same moment.
  const tabs = await Promise.all([context.newPage(), context.newPage()]);
  await Promise.all(tabs.map((tab) => tab.goto(callback.url())));
  for (const tab of tabs) assert.equal(await tab.locator("h1").textContent(), "The app is connected");
});

test("a link that another browser has used says so, and can be started again", async () => {
  const stranger = await browser.newContext();
  const other = await stranger.newPage();
  await other.goto(sandbox.marketplace);
  const [callback] = await Promise.all([
    other.waitForResponse((found) => new URL(found.url()).pathname === "/oauth/callback"),
    other.getByRole("button", { name: "Approve" }).click(),
  ]);
  await other.getByRole("heading", { name: /^The app is connected/ }).waitFor();
  await other.goto(callback.url());
  await other.getByRole("heading", { name: /^The app is connected/ }).waitFor();
  await stranger.close();

  const again = await page.goto(callback.url());
  assert.equal(again.status(), 400);
  isPrivate(again, "reuse");
  assert.equal(await heading(), "This link was already used, or is too old");
  assert.doesNotMatch(await page.content(), new RegExp(new URL(callback.url()).searchParams.get("code")));
  await page.getByRole("link", { name: "Start again" }).click();
  await arriving("/oauth/done", () => press("Approve"));
});

test("a reload while the app is being connected waits for it", async () => {
  await page.goto(sandbox.link);
  // The reload finds the exchange under way.
  await control("POST", "faults", { at: "exchange", fault: { kind: "late", millis: 600 } });
  const sent = page.waitForRequest((found) => new URL(found.url()).pathname === "/oauth/callback");
  await press("Approve").catch(() => {});
  await page.goto((await sent).url());
  assert.equal(await heading(), "The app is connected");
  await control("DELETE", "faults");
});

test("whatever an error says about itself stays off the page", async () => {
  let ran = false;
  await page.exposeFunction("hostile", () => {
    ran = true;
  });
  const hostile = `"><script>hostile()</script><img src=x onerror=hostile()><style>*{display:none}</style>`;
  const query = new URLSearchParams({ error: hostile, error_description: hostile, state: hostile });
  const answer = await page.goto(`${sandbox.gateway}/oauth/callback?${query}`);
  assert.equal(answer.status(), 400);
  assert.equal(await heading(), "The app was not installed");
  assert.doesNotMatch(await answer.text(), /hostile|onerror/);
  assert.ok(await page.locator("h1").isVisible());
  assert.equal(ran, false);
});

test("another browser cannot finish what this one began", async () => {
  await page.goto(sandbox.link);
  const consent = page.url();
  const stranger = await browser.newContext();
  const other = await stranger.newPage();
  await other.goto(consent);
  await other.getByRole("button", { name: "Approve" }).click();
  await other.getByRole("heading", { name: "Please finish in the browser you began with" }).waitFor();
  await stranger.close();
});

test("a platform that is down gets a button that works once it is up", async () => {
  await control("POST", "faults", { at: "exchange", fault: { kind: "hang_up", processed: false } });
  await page.goto(sandbox.link);
  const failed = await arriving("/oauth/callback", () => press("Approve"));
  assert.equal(failed.status(), 503);
  isPrivate(failed, "platform unavailable");
  assert.equal(await heading(), "The marketplace does not answer");
  await isAccessible(page, "platform unavailable");
  await control("DELETE", "faults");
  await page.getByRole("link", { name: "Try again" }).click();
  await arriving("/oauth/done", () => press("Approve"));
  assert.equal(await heading(), "The app is connected");
});

test("with the keyboard only", async () => {
  await page.goto(sandbox.link);
  const focused = () => page.evaluate(() => document.activeElement.textContent.trim() || document.activeElement.value);
  const tabTo = async (wanted) => {
    for (let press = 0; press < 20; press += 1) {
      await page.keyboard.press("Tab");
      if ((await focused()) === wanted) return;
    }
    assert.fail(`${wanted} is not reached with Tab`);
  };
  await page.keyboard.press("Tab");
  await page.keyboard.press("ArrowDown");
  assert.equal(await page.locator("input:checked").first().inputValue(), "location:HLlocation000000002");
  await tabTo("Approve");
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.equal(outline, "solid", "the focus is seen");
  await arriving("/oauth/done", () => page.keyboard.press("Enter"));
  await tabTo("Back to the marketplace");
  await page.keyboard.press("Enter");
  await page.waitForURL((url) => url.origin === sandbox.platform);
});

test("a brand, a choice of entrance, and no install from the marketplace's own pages", async () => {
  const environment = {
    INSTALL_CHOICE: "ask",
    MARKETPLACE_INSTALLS: "deny",
    BRAND_NAME: "<i>Grove</i> Reviews",
    ACCENT_COLOR: "#ffd60a",
    SUPPORT_URL: "https://help.example.com/?from=install",
  };
  const branded = await start({ environment });
  try {
    const asked = await page.goto(branded.link);
    isPrivate(asked, "choice");
    assert.equal(await page.title(), "Where do you sign in? · <i>Grove</i> Reviews");
    assert.equal(await page.locator(".brand").textContent(), "<i>Grove</i> Reviews");
    const back = await page.getByRole("link", { name: "At the marketplace" }).evaluate((node) => getComputedStyle(node).backgroundColor);
    assert.equal(back, "rgb(255, 214, 10)", "the policy lets the brand's style in");
    assert.equal(await page.getByRole("link", { name: "Contact support" }).getAttribute("href"), environment.SUPPORT_URL);
    await page.getByRole("link", { name: "At my agency’s own address" }).click();
    assert.equal(await heading(), "Install the app?");
    const done = page.waitForURL((url) => url.pathname === "/oauth/done");
    await press("Approve");
    await done;
    assert.equal(new URL(page.url()).searchParams.get("via"), "white-label");

    await page.goto(branded.marketplace);
    await press("Approve");
    assert.equal(await heading(), "Please start the installation from here");
    await page.getByRole("link", { name: "Install the app" }).click();
    assert.equal(await heading(), "Where do you sign in?");
  } finally {
    await branded.end();
  }
});
