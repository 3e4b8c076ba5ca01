"""The official Python client, the AWS SDK and curl against a relay that runs.

Started by tests/it/tests/sdk.rs, which says in the environment where.
"""

import asyncio
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import boto3
from highlevel import HighLevel
from highlevel.error import GHLError

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "docs/recipes").glob("*.md"))
PAGES = "".join(page.read_text() for page in (ROOT / "README.md", ROOT / "docs/calling.md", ROOT / "docs/queue.md", *RECIPES))
LOCATION, COMPANY = os.environ["LOCATION_ID"], os.environ["COMPANY_ID"]
HERE = {"headers": {"locationId": LOCATION}}


def example(name: str, language: str) -> str:
    """The example after `<!-- example:NAME -->` in one of the pages, as it is written."""
    found = re.search(rf"<!-- example:{name} -->\s*```{language}\n(.*?)\n```", PAGES, re.S)
    assert found, f"no page has a {language} block after <!-- example:{name} -->"
    return found[1]


def run(*command: str, given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_python(name: str, given: str = "") -> str:
    return run(sys.executable, "-c", example(name, "python"), given=given)


def run_shell(name: str, then: str = "") -> str:
    return run("bash", "-euo", "pipefail", "-c", f"{example(name, 'sh')}\n{then}")


def new_callers() -> None:
    """Runs the recipes' commands that add callers, and puts the keys into the environment."""
    for name, keys in {"three-callers": ("CRM_SYNC_KEY", "MAILER_KEY", "REPORT_KEY"), "agent-caller": ("AGENT_KEY",)}.items():
        printed = run_shell(name, "".join(f'\necho "key:{key}=${key}"' for key in keys))
        found = dict(re.findall(r"^key:(\w+)=(rk_\w+)$", printed, re.M))
        assert set(found) == set(keys), printed
        os.environ.update(found)


def recipes() -> None:
    """Runs the recipes. A relay knows new callers within a minute."""
    said = ""
    for _ in range(70):
        said = run_shell("three-callers-use")
        if "401" not in said:
            break
        time.sleep(1)
    assert said == "200\n403\n", said
    # The relays learn of the callers one after another.
    for _ in range(70):
        said = run_python("agent-python")
        if "401" not in said:
            break
        time.sleep(1)
    assert said == "200 403\n", said
    total = re.search(r'"total":(\d+)', run_shell("key-curl"))
    # The second request of the example has added a contact.
    assert total and run_python("paging-python") == f"{int(total[1]) + 1} contacts\n"
    assert int(total[1]) > 20, "more than a page"
    first, second = run_python("charge-python"), run_python("charge-python")
    assert first == second and first.strip(), (first, second)


def results() -> None:
    """Queues calls, and gives their results to the handler of docs/queue.md, with one that is no result."""
    queue = boto3.client("sqs")
    sent = {
        "found": {"method": "GET", "path": f"/locations/{LOCATION}"},
        "again": {"method": "GET", "path": "/contacts/"},
        "missing": {"method": "GET", "path": "/contacts/HLnobody"},
        "forbidden": {"method": "GET", "path": "/oauth/installedLocations"},
    }
    for reference, request in sent.items():
        body = {"caller": "job", "reference": reference, "resource": {"location": LOCATION}, **request}
        queue.send_message(QueueUrl=os.environ["CALLS_QUEUE_URL"], MessageBody=json.dumps(body), MessageGroupId=LOCATION)
    found, until = {}, time.monotonic() + 30
    while set(found) != set(sent) and time.monotonic() < until:
        received = queue.receive_message(QueueUrl=os.environ["RESULTS_QUEUE_URL"], WaitTimeSeconds=1)
        for message in received.get("Messages", []):
            result = json.loads(message["Body"])
            # A result may come twice, also one of an earlier call.
            if result["reference"] in sent:
                found[result["reference"]] = (message["MessageId"], result)
            queue.delete_message(QueueUrl=os.environ["RESULTS_QUEUE_URL"], ReceiptHandle=message["ReceiptHandle"])
    ends = {reference: (result["outcome"], result["status"] < 300) for reference, (_, result) in found.items()}
    answered = {"found": ("answered", True), "again": ("answered", True), "missing": ("answered", False)}
    assert ends == {**answered, "forbidden": ("refused", False)}, ends
    looked_at = []

    def done(reference: str) -> None:
        assert reference in ("found", "again"), reference
        if reference == "again":
            raise ValueError("not now")

    names = {"done": done, "look_at": lambda result: looked_at.append(result["reference"])}
    exec(example("results-python", "python"), names)
    records = [{"messageId": message, "body": json.dumps(result)} for message, result in found.values()]
    answer = names["handler"]({"Records": [*records, {"messageId": "m0", "body": "no result"}]}, None)
    failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
    assert failed == {"m0", found["again"][0]} and sorted(looked_at) == ["forbidden", "missing"], (failed, looked_at)


async def services(client: HighLevel) -> int:
    location, company = {"location": LOCATION}, {"company": COMPANY}
    alternate = {"alt_id": LOCATION, "alt_type": "location"}
    calls = {
        "businesses": (client.businesses.get_businesses_by_location(LOCATION), location),
        "calendars": (client.calendars.get_calendars(LOCATION), location),
        "conversations": (client.conversations.search_conversation(LOCATION, query="a b&c'd"), location),
        "forms": (client.forms.get_forms(LOCATION), location),
        "funnels": (client.funnels.get_funnels(LOCATION), location),
        "invoices": (client.invoices.list_invoice_templates(**alternate, limit="10", offset="0"), location),
        "links": (client.links.get_links(LOCATION), location),
        "medias": (client.medias.fetch_media_content("a", "asc", "file", "location", LOCATION), location),
        "opportunities": (client.opportunities.search_opportunity(LOCATION), location),
        "payments": (client.payments.list_transactions(**alternate), location),
        "surveys": (client.surveys.get_surveys(LOCATION), location),
        "tags, by the path": (client.locations.get_location_tags(LOCATION), location),
        "users, both named": (client.users.search_users(COMPANY, location_id=LOCATION), location),
        "users, a company named": (client.users.search_users(COMPANY), company),
        "workflows": (client.workflows.get_workflow(LOCATION), location),
        "a header": (client.opportunities.get_opportunity("O1", options=HERE), location),
        "custom menus": (client.custom_menus.get_custom_menus(location_id=LOCATION), company),
    }
    for name, (call, expected) in calls.items():
        echo = await call
        assert echo["resource"] == expected, (name, echo)
        assert ["version", "v3"] in echo["headers"], f"{name}: the client's own version passes"
    assert (await client.locations.get_location(LOCATION))["location"]["id"] == LOCATION
    assert (await client.companies.get_company(COMPANY))["company"]["id"] == COMPANY
    contact = (await client.contacts.create_contact({"locationId": LOCATION, "firstName": "Grace", "tags": ["ü"]}))["contact"]
    read = await client.contacts.get_contact(contact["id"], options=HERE)
    assert read["contact"] == contact, read
    return len(calls) + 4


async def refused(call) -> GHLError:
    try:
        answer = await call
    except GHLError as error:
        return error
    raise AssertionError(f"it was answered: {answer}")


async def errors(client: HighLevel) -> None:
    unknown = await refused(client.contacts.get_contact("HLnobody", options=HERE))
    assert (unknown.status_code, "Contact not found" in str(unknown)) == (400, True), unknown
    unclear = await refused(client.contacts.get_contact("C1"))
    assert (unclear.status_code, "x-location-id" in str(unclear)) == (400, True), unclear
    elsewhere = await refused(client.forms.get_forms("HLnotinstalled0001"))
    assert elsewhere.status_code == 404, elsewhere
    stranger = await refused(HighLevel(private_integration_token="rk_of_nobody").forms.get_forms(LOCATION))
    assert stranger.status_code == 401, stranger


async def limits(client: HighLevel) -> None:
    limited = os.environ["LIMITED_LOCATION_ID"]
    for _ in range(200):
        try:
            await client.forms.get_forms(limited)
        except GHLError as error:
            assert error.status_code == 429, error
            break
    else:
        raise AssertionError("no limit was met")
    waited = await client.forms.get_forms(limited, options={"headers": {"Relay-Wait-Ms": "15000"}})
    assert waited["resource"] == {"location": limited}, "who waits is served"


async def main() -> None:
    new_callers()
    assert run_python("sdk-python") == "Ada\n"
    HighLevel.BASE_URL = os.environ["DROP_IN_URL"]
    client = HighLevel(private_integration_token=os.environ["RELAY_KEY"])
    answered = await services(client)
    await errors(client)
    await limits(client)
    answer = run_python("invoke-python")
    assert answer.startswith('200 platform {"contacts"'), answer
    answers = run_shell("key-curl")
    assert '"contacts"' in answers and '"contact"' in answers, answers
    assert '"contacts"' in run_shell("sigv4-curl")
    contacts = [{"firstName": f"P{number}", "email": f"p{number}@example.com"} for number in range(25)]
    for _ in range(2):
        said = run_python("job-python", json.dumps(contacts))
        assert said == "25 done, 0 failed, 0 to look at\n", said
    results()
    recipes()
    print(f"python: {answered} operations, errors, limits, invoke, recipes; curl with a key and signed")


asyncio.run(main())
