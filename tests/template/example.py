"""The subscriber's template in docs/events.md: it is valid, and its function names the messages that failed."""

import contextlib
import io
import json
import re

import documents
from cfnlint.api import lint_all
from expand import ROOT
from samtranslator.yaml_helper import yaml_parse


def source():
    """The template as the page shows it."""
    page = (ROOT / "docs" / "events.md").read_text()
    return re.search(r"<!-- example:events-sam -->\s*```yaml\n(.*?)```", page, re.S).group(1)


def complaints(text):
    """What is wrong with a template, in words."""
    # Advice, whose ids begin with I, is for the reader's own template.
    for match in lint_all(text):
        if not match.rule.id.startswith("I"):
            yield f"cfn-lint: {match}"
    resources = yaml_parse(text)["Resources"]
    function = resources["ContactsFunction"]["Properties"]
    names = {}
    exec(function["InlineCode"], names)
    event = {"detail-type": "ContactCreate", "resources": ["location:L1"], "detail": {"type": "ContactCreate", "id": "c1"}}
    messages = [{"messageId": "good", "body": json.dumps(event)}, {"messageId": "bad", "body": "{}"}]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            answer = names["handler"]({"Records": messages}, None)
    except Exception as error:
        answer = repr(error)
    if answer != {"batchItemFailures": [{"itemIdentifier": "bad"}]}:
        yield f"the function answers {answer}"
    if resources["Contacts"]["Properties"].get("VisibilityTimeout", 0) < 6 * function["Timeout"]:
        yield "the visibility timeout is less than six times the function's (Lambda Developer Guide, Amazon SQS)"


# Changes of the template, each of which must be noticed.
BREAKAGES = [
    ("an unknown property", "MessageRetentionPeriod:", "RetentionPeriod:"),
    ("a reference to nothing", "!GetAtt Contacts.Arn", "!GetAtt Contact.Arn"),
    ("a failure that is not reported", "failed.append(", "repr("),
    ("a message that fails the batch", "except Exception as error:", "except OSError as error:"),
    ("a visibility timeout that is too short", "VisibilityTimeout: 180", "VisibilityTimeout: 179"),
]


def check():
    return documents.check("the template of docs/events.md", source(), complaints, BREAKAGES)
