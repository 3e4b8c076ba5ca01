"""The calls that the functions made in the end-to-end tests, compared with the permissions of the template, both ways.

    python tests/template/observed.py target/observed

`tests/it/src/outside/observed.rs` writes the calls. A call without a permission would fail on AWS, and a permission without
a call is too much. `checks.py` compares the template with the same table of permissions.
"""

import json
import sys
from fnmatch import fnmatchcase
from pathlib import Path

sys.dont_write_bytecode = True

from expected import PERMISSIONS, PERMISSIONS_OF_A_BUS, PERMISSIONS_OF_CALLS, PERMISSIONS_OF_HMAC

# The sandbox's names of the template's resources.
NAMES = {
    "hoopai-relay/app": "AppSecret",
    "hoopai-relay/sealing": "SealingSecret",
    "hoopai-relay/callers": "CallersSecret",
    "rescue": "RescueQueue",
    "overflow": "EventsOverflow",
    "calls": "Calls",
    "results": "CallResults",
    "dead-calls": "CallFailures",
    "bus": "event-bus/EventBusName",
}

# What Lambda itself does with a function's role: it polls the queues, writes the logs and sends the traces.
BY_LAMBDA = {"logs", "xray"}
BY_EVENT_SOURCE = {("refresh", "RescueQueue"), ("webhook", "EventsOverflow"), ("relay", "Calls")}
POLLING = {"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"}


# Needed, but not by every run of the end-to-end tests. The suite in brackets makes such a call in every run. The end-to-end
# tests may make it too, for example when a slow machine makes a write come too late.
ELSEWHERE = {
    # A version of the platform's API is remembered when it changes (--test agency, versions).
    ("callback", "dynamodb:UpdateItem", "Table", "app#api"),
    ("webhook", "dynamodb:UpdateItem", "Table", "app#api"),
    # Limits in an answer are compared with the counters, which are read if they are not in memory (--test quota).
    ("refresh", "dynamodb:GetItem", "Table", "quota#*"),
    ("webhook", "dynamodb:GetItem", "Table", "quota#*"),
    # The platform is asked about an uninstall with a token that must be minted first (--test agency, webhooks).
    ("webhook", "dynamodb:Query", "Table/index/due", "companies"),
    ("webhook", "dynamodb:UpdateItem", "Table", "minter-quota#*"),
    # A pair goes to the queue if the table does not take it, and a refusal looks at the queue first (--test lifecycle).
    ("refresh", "sqs:SendMessage", "RescueQueue", None),
    ("relay", "sqs:SendMessage", "RescueQueue", None),
    ("relay", "sqs:GetQueueAttributes", "RescueQueue", None),
    # A queued call that must be tried again, or wait for long, is sent anew (--test once, messages).
    ("relay", "sqs:SendMessage", "Calls", None),
}

# Secrets of single tests, which stand for a secret of the template.
TESTS_SECRETS = {"webhook-secret": "WebhookSecret", "other-callers": "CallersSecret", "another-sealing": "SealingSecret"}
TESTS_SECRETS |= {f"secret-of-relay-{state}-callers": "CallersSecret" for state in ("with-bad", "without")}
TESTS_SECRETS |= {f"secret-of-relay-{state}-keys": "SealingSecret" for state in ("with-bad", "without")}
NAMES |= TESTS_SECRETS


def name_of(resource):
    """The template's name of a resource, which is part of the name that a deployment to emulators gives it."""
    deployed = [name for name in NAMES.values() if name in resource]
    return NAMES.get(resource, deployed[0] if deployed else resource)


def observed(folder):
    calls = set()
    for file in Path(folder).glob("*.jsonl"):
        for line in file.read_text().splitlines():
            call = json.loads(line)
            calls.add((call["function"], call["action"], name_of(call["resource"]), call["key"]))
    return calls


def permitted():
    """One row for each function, action, resource and pattern of a key."""
    sometimes = (PERMISSIONS_OF_A_BUS, PERMISSIONS_OF_CALLS, PERMISSIONS_OF_HMAC)
    for function in PERMISSIONS:
        optional = set().union(*(rows.get(function, set()) for rows in sometimes))
        for action, resource, prefixes in PERMISSIONS[function] | optional:
            for pattern in prefixes or (None,):
                yield function, action, resource, pattern


def matches(call, row):
    return call[:3] == row[:3] and (row[3] is None or (call[3] is not None and fnmatchcase(call[3], row[3])))


def complaints(calls, rows):
    for call in sorted(calls, key=str):
        if not any(matches(call, row) for row in rows):
            yield f"no permission for {call}"
    for row in sorted(rows, key=str):
        function, action, resource, _ = row
        if action.split(":")[0] in BY_LAMBDA or (function, resource) in BY_EVENT_SOURCE and action in POLLING:
            continue
        if row not in ELSEWHERE and not any(matches(call, row) for call in calls):
            yield f"no call needs {row}"
    yield from (f"ELSEWHERE has {row}, which is no permission" for row in sorted(ELSEWHERE - set(rows), key=str))


def main(folder):
    calls, rows = observed(folder), list(permitted())
    found = list(complaints(calls, rows)) if calls else [f"{folder} has no calls: run the end-to-end tests first"]
    print("\n".join(found) or f"ok   {len(calls)} kinds of calls need the permissions of the template, and no others")
    return not found


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1]) else 1)
