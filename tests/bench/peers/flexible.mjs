// rate-limiter-flexible on DynamoDB: 100 in 10 s and 200,000 a day for one key.
//
//   node flexible.mjs prepare|measure|spend URL
//   node flexible.mjs caller URL BEGIN END      (milliseconds since 1970)

import { createInterface } from "node:readline";
import { DynamoDB } from "@aws-sdk/client-dynamodb";
import { RateLimiterDynamo } from "rate-limiter-flexible";

const [command, url, begin, end] = process.argv.slice(2);
const client = new DynamoDB({
  endpoint: url,
  region: "us-east-1",
  credentials: { accessKeyId: "sandbox", secretAccessKey: "sandbox" },
});
const TABLE = "peer-flexible";
const RAW = "peer-flexible-raw";

// It has no way to take from two limits at once: the burst first, then the day.
async function limiters(burst, daily) {
  const make = (keyPrefix, points, duration) =>
    new Promise((resolve, reject) => {
      const options = { storeClient: client, tableName: TABLE, tableCreated: true, ttlSet: true, keyPrefix, points, duration };
      const limiter = new RateLimiterDynamo(options, (error) => (error ? reject(error) : resolve(limiter)));
    });
  return [await make("burst", burst, 10), await make("day", daily, 86400)];
}

async function take([burst, day], key) {
  try {
    await burst.consume(key);
    await day.consume(key);
    return 0;
  } catch (refusal) {
    if (refusal instanceof Error) throw refusal;
    return Math.max(refusal.msBeforeNext, 1);
  }
}

async function rawTake(key) {
  await client.updateItem({
    TableName: RAW,
    Key: { pk: { S: key } },
    UpdateExpression: "SET used = used + :one",
    ConditionExpression: "used < :most",
    ExpressionAttributeValues: { ":one": { N: "1" }, ":most": { N: "1000000000" } },
  });
}

async function createTable(name, key) {
  await client.createTable({
    TableName: name,
    BillingMode: "PAY_PER_REQUEST",
    AttributeDefinitions: [{ AttributeName: key, AttributeType: "S" }],
    KeySchema: [{ AttributeName: key, KeyType: "HASH" }],
  });
}

// Decisions a second of so many callers, each with a key of its own.
async function rate(callers, each, call) {
  const began = performance.now();
  const caller = async (_, number) => {
    for (let i = 0; i < each; i++) await call(`k${number}`);
  };
  await Promise.all(Array.from({ length: callers }, caller));
  return (callers * each) / ((performance.now() - began) / 1000);
}

async function pairs(limits, callers, each, count) {
  const raw = () => rate(callers, each, rawTake);
  const system = () => rate(callers, each, (key) => take(limits, key));
  await raw();
  await system();
  const measured = [];
  for (let i = 0; i < count; i++) {
    if (i % 2 === 0) {
      const a = await raw();
      measured.push([a, await system()]);
    } else {
      const b = await system();
      measured.push([await raw(), b]);
    }
  }
  return measured;
}

const say = (value) => console.log(JSON.stringify(value));
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, Math.max(ms, 0)));

if (command === "prepare") {
  await createTable(TABLE, "key");
  await createTable(RAW, "pk");
  for (let number = 0; number < 32; number++) {
    await client.putItem({ TableName: RAW, Item: { pk: { S: `k${number}` }, used: { N: "0" } } });
  }
  say({});
} else if (command === "measure") {
  const limits = await limiters(1e9, 1e9);
  say({ one: await pairs(limits, 1, 40, 16), many: await pairs(limits, 32, 5, 16) });
} else if (command === "spend") {
  const limits = await limiters(100, 200000);
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  for (let i = 0; i < 3; i++) await take(limits, "warm");
  say("ready");
  await lines.next();
  let admitted = 0;
  for (let i = 0; i < 80; i++) admitted += (await take(limits, "spend")) === 0;
  say(admitted);
  await lines.next();
  while ((await take(limits, "spend")) === 0);
  say("full");
  await lines.next();
  let refused = 0;
  for (let i = 0; i < 100; i++) refused += (await take(limits, "spend")) !== 0;
  say(refused);
  process.exit(0);
} else {
  const limits = await limiters(100, 200000);
  const sent = [];
  let refused = 0;
  await sleep(Number(begin) - Date.now());
  const caller = async () => {
    while (Date.now() < Number(end)) {
      const wait = await take(limits, "pressure");
      if (wait === 0) {
        sent.push(Date.now());
      } else {
        refused++;
        await sleep(Math.min(wait, Number(end) - Date.now()));
      }
    }
  };
  await Promise.all(Array.from({ length: 25 }, caller));
  say({ sent, refused });
}
