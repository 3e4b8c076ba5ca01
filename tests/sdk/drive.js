// The official Node client and the AWS SDK against a relay that runs. Started by tests/it/tests/sdk.rs, which says in
// the environment where.
"use strict";
const assert = require("node:assert/strict");
const { GHLRateLimitError, HighLevel } = require("@gohighlevel/api-client");
const run = require("./example.js");

const { DROP_IN_URL, RELAY_KEY, LOCATION_ID, LIMITED_LOCATION_ID, COMPANY_ID } = process.env;
const here = { headers: { locationId: LOCATION_ID } };
const location = { location: LOCATION_ID };
const company = { company: COMPANY_ID };

function clientWith(key) {
  const client = new HighLevel({ privateIntegrationToken: key, logLevel: "error" });
  client.getHttpClient().defaults.baseURL = DROP_IN_URL;
  return client;
}

async function refused(call) {
  const error = await call.then(() => null, (error) => error);
  assert.ok(error, "it was answered");
  return error;
}

async function services(client) {
  const altId = { altId: LOCATION_ID, altType: "location" };
  const locationId = LOCATION_ID;
  const companyId = COMPANY_ID;
  const calls = {
    "businesses": [client.businesses.getBusinessesByLocation({ locationId }), location],
    "calendars": [client.calendars.getCalendars({ locationId }), location],
    "conversations": [client.conversations.searchConversation({ locationId, query: "a b&c'd" }), location],
    "forms": [client.forms.getForms({ locationId, limit: 10 }), location],
    "funnels": [client.funnels.getFunnels({ locationId }), location],
    "invoices": [client.invoices.listInvoiceTemplates({ ...altId, limit: "10", offset: "0" }), location],
    "invoices, by the body": [client.invoices.createInvoiceTemplate({ ...altId, name: "x" }), location],
    "links": [client.links.getLinks({ locationId }), location],
    "medias": [client.medias.fetchMediaContent({ ...altId, type: "file", sortBy: "a", sortOrder: "asc" }), location],
    "opportunities": [client.opportunities.searchOpportunity({ locationId }), location],
    "payments": [client.payments.listTransactions({ ...altId }), location],
    "surveys": [client.surveys.getSurveys({ locationId }), location],
    "tags, by the path": [client.locations.createTag({ locationId }, { name: "é" }), location],
    "users, both named": [client.users.searchUsers({ companyId, locationId }), location],
    "users, a company named": [client.users.searchUsers({ companyId }), company],
    "workflows": [client.workflows.getWorkflow({ locationId }), location],
    "nothing named but by a header": [client.opportunities.getOpportunity({ id: "O1" }, here), location],
    "custom menus, which are a company's": [client.customMenus.getCustomMenus({ locationId }), company],
  };
  for (const [name, [call, expected]] of Object.entries(calls)) {
    const echo = await call;
    assert.deepEqual(echo.resource, expected, name);
    assert.equal(echo.authorization, 1, name);
  }
  const { location: own } = await client.locations.getLocation({ locationId });
  assert.equal(own.id, LOCATION_ID);
  const agency = await client.companies.getCompany({ companyId });
  assert.equal(agency.company.id, COMPANY_ID);
  const { contact } = await client.contacts.createContact({ locationId, firstName: "Grace", tags: ["ü"] });
  const read = await client.contacts.getContact({ contactId: contact.id }, here);
  assert.deepEqual(read.contact, contact);
  return Object.keys(calls).length + 4;
}

async function errors(client) {
  const unknown = await refused(client.contacts.getContact({ contactId: "HLnobody" }, here));
  assert.deepEqual([unknown.statusCode, unknown.message], [400, "Contact not found"], "the platform's own words");
  const unclear = await refused(client.contacts.getContact({ contactId: "C1" }));
  assert.deepEqual([unclear.statusCode, unclear.response.code], [400, "resource_unclear"]);
  assert.match(unclear.message, /x-location-id/, "the client's error says what to do");
  const stranger = await refused(clientWith("rk_of_nobody").forms.getForms({ locationId: LOCATION_ID }));
  assert.deepEqual([stranger.statusCode, stranger.response.code], [401, "unauthenticated"]);
  const elsewhere = await refused(client.forms.getForms({ locationId: "HLnotinstalled0001" }));
  assert.deepEqual([elsewhere.statusCode, elsewhere.response.code], [404, "not_installed"]);
  const scope = await refused(client.payments.listOrders({ altId: LOCATION_ID, altType: "location" }));
  assert.deepEqual([scope.statusCode, scope.message], [401, "The token is not authorized for this scope."]);
}

async function limits(client) {
  const locationId = LIMITED_LOCATION_ID;
  let error = null;
  for (let sent = 0; sent < 200 && !error; sent++) {
    error = await client.forms.getForms({ locationId }).then(() => null, (error) => error);
  }
  assert.ok(error instanceof GHLRateLimitError, String(error));
  assert.equal(error.statusCode, 429);
  assert.equal(error.rateLimit.scope, "burst", "the client's own reading of the headers");
  assert.equal(error.response.code, "burst_limited");
  const waited = await client.forms.getForms({ locationId }, { headers: { "Relay-Wait-Ms": "15000" } });
  assert.deepEqual(waited.resource, { location: locationId }, "who waits is served");
}

(async () => {
  assert.equal(run("sdk-node"), "Ada\n");
  const client = clientWith(RELAY_KEY);
  const answered = await services(client);
  await errors(client);
  await limits(client);
  const [status, source, body] = run("invoke-node").split(/ (.*?) (.*)/s);
  assert.deepEqual([status, source], ["200", "platform"]);
  assert.equal(JSON.parse(body).contacts[0].locationId, LOCATION_ID);
  const contacts = Array.from({ length: 25 }, (_, number) => ({ firstName: `N${number}`, email: `n${number}@example.com` }));
  for (const _again of [false, true]) {
    assert.equal(run("job-node", JSON.stringify(contacts)), "25 done, 0 failed, 0 to look at\n");
  }
  assert.match(run("paging-node"), /^(2[1-9]|[3-9]\d) contacts\n$/, "more than a page");
  process.stdout.write(`node: ${answered} operations, errors, limits, invoke, paging\n`);
})().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
