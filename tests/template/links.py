"""The links between the documents: each file and each heading that a page names is there."""

import re

import documents
from expand import ROOT

FOLDERS = ("*.md", "docs/**/*.md", "tests/*.md", ".github/*.md")


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    headings = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)]
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken(page, text):
    """The links of a page that lead nowhere, in words."""
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        if link.startswith(("http", "mailto")):
            continue
        target = (page.parent / file).resolve() if file else page
        if not target.exists():
            yield f"{page.relative_to(ROOT)}: {link} does not exist"
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text() if file else text):
            yield f"{page.relative_to(ROOT)}: {link} names no heading"


def complaints(readme):
    """What is wrong with the links of all pages, with this text as the README."""
    for page in sorted(page for folder in FOLDERS for page in ROOT.glob(folder)):
        yield from broken(page, readme if page == ROOT / "README.md" else page.read_text())


# Changes of the README, each of which must be noticed.
BREAKAGES = [
    ("a page that does not exist", "(docs/recovery.md)", "(docs/restoring.md)"),
    ("a heading that does not exist", "(docs/calling.md#callers)", "(docs/calling.md#keys)"),
]


def check():
    return documents.check("the links between the documents", (ROOT / "README.md").read_text(), complaints, BREAKAGES)
