"""docs/variables.md names the variables that the functions read, and no others."""

import re

import checks
import documents
from expand import ROOT


def complaints(text):
    """What is wrong with the page, in words."""
    rows = re.findall(r"^\| (`.+?`) \|", text, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    # The log filter is read where logging starts, not by the configuration.
    read = checks.variables_in_code("*") | {"RUST_LOG"}
    yield from (f"{name} is read and not on the page" for name in sorted(read - named))
    yield from (f"{name} is on the page and not read" for name in sorted(named - read))


# Changes of the page, each of which must be noticed.
BREAKAGES = [
    ("a variable is missing", "`METRICS_NAMESPACE`", "`RUST_LOG`"),
    ("a variable that nothing reads", "`TABLE_NAME`", "`TABLE`"),
]


def check():
    return documents.check("docs/variables.md", (ROOT / "docs" / "variables.md").read_text(), complaints, BREAKAGES)
