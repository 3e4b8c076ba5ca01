"""zae-limiter on DynamoDB: 100 in 10 s and 200,000 a day for one entity.

    python zae.py prepare|measure|spend URL
    python zae.py caller URL BEGIN END      (milliseconds since 1970)
"""

import asyncio
import json
import os
import sys
import time
import warnings

warnings.filterwarnings("ignore")
os.environ.update(
    AWS_ACCESS_KEY_ID="sandbox", AWS_SECRET_ACCESS_KEY="sandbox", AWS_DEFAULT_REGION="us-east-1", AWS_REGION="us-east-1"
)

from zae_limiter import Limit, RateLimiter, RateLimitExceeded, Repository  # noqa: E402

TABLE = "peer-zae"
RAW = "peer-zae-raw"


def limits(burst: int, daily: int) -> list[Limit]:
    return [
        Limit.custom("burst", capacity=burst, refill_amount=burst, refill_period_seconds=10),
        Limit.per_day("day", daily),
    ]


class Peer:
    def __init__(self, url: str, burst: int = 100, daily: int = 200_000) -> None:
        self.repository = Repository(name=TABLE, endpoint_url=url, region="us-east-1")
        self.limiter = RateLimiter(repository=self.repository)
        self.limits = limits(burst, daily)

    async def take(self, key: str) -> float:
        """Seconds to wait; none if admitted."""
        try:
            async with self.limiter.acquire(key, "api", {"burst": 1, "day": 1}, limits=self.limits):
                return 0.0
        except RateLimitExceeded as refusal:
            return max(refusal.retry_after_seconds, 0.001)

    async def client(self):
        return await self.repository._get_client()


async def raw_take(client, key: str) -> None:
    await client.update_item(
        TableName=RAW,
        Key={"pk": {"S": key}},
        UpdateExpression="SET used = used + :one",
        ConditionExpression="used < :most",
        ExpressionAttributeValues={":one": {"N": "1"}, ":most": {"N": "1000000000"}},
    )


async def rate(callers: int, each: int, call) -> float:
    """Decisions a second of so many callers, each with a key of its own."""

    async def caller(number: int) -> None:
        for _ in range(each):
            await call(f"k{number}")

    began = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    return callers * each / (time.perf_counter() - began)


async def pairs(peer: Peer, callers: int, each: int, count: int) -> list[list[float]]:
    client = await peer.client()

    async def raw() -> float:
        return await rate(callers, each, lambda key: raw_take(client, key))

    async def system() -> float:
        return await rate(callers, each, peer.take)

    await raw()
    await system()
    measured = []
    for i in range(count):
        if i % 2 == 0:
            a = await raw()
            measured.append([a, await system()])
        else:
            b = await system()
            measured.append([await raw(), b])
    return measured


def say(value) -> None:
    print(json.dumps(value), flush=True)


async def main() -> None:
    command, url = sys.argv[1:3]
    if command == "prepare":
        peer = Peer(url)
        await peer.repository.create_table()
        client = await peer.client()
        await client.create_table(
            TableName=RAW,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        )
        for number in range(32):
            await client.put_item(TableName=RAW, Item={"pk": {"S": f"k{number}"}, "used": {"N": "0"}})
        say({})
    elif command == "measure":
        peer = Peer(url, 1_000_000_000, 1_000_000_000)
        say({"one": await pairs(peer, 1, 40, 16), "many": await pairs(peer, 32, 5, 16)})
    elif command == "spend":
        peer = Peer(url)
        for _ in range(3):
            await peer.take("warm")
        await peer.take("spend")
        say("ready")
        sys.stdin.readline()
        say(sum([await peer.take("spend") == 0 for _ in range(80)]))
        sys.stdin.readline()
        while await peer.take("spend") == 0:
            pass
        say("full")
        sys.stdin.readline()
        refused = 0
        for _ in range(100):
            refused += await peer.take("spend") != 0
        say(refused)
    else:
        begin, end = (int(argument) / 1000 for argument in sys.argv[3:5])
        peer = Peer(url)
        sent, refused = [], 0
        await asyncio.sleep(begin - time.time())

        async def caller() -> None:
            nonlocal refused
            while time.time() < end:
                wait = await peer.take("pressure")
                if wait == 0:
                    sent.append(int(time.time() * 1000))
                else:
                    refused += 1
                    await asyncio.sleep(max(min(wait, end - time.time()), 0))

        await asyncio.gather(*(caller() for _ in range(25)))
        say({"sent": sent, "refused": refused})


asyncio.run(main())
