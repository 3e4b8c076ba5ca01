"""Checks the template against the contract and the code, then checks the checks. Checks the documents in the same way.

    python tests/template/check.py

Needs aws-sam-translator (aws-sam-cli brings it along); neither AWS nor credentials. Every check is run a second time
on templates broken on purpose, and must notice.
"""

import copy
import sys

sys.dont_write_bytecode = True

import checks
import environments
import example
import links
import openapi
import packaging
import variables
from breakages import BREAKAGES
from expand import expand, source

# Each has a document, its checks, and changes of the document that must be noticed.
DOCUMENTS = (example, environments, openapi, packaging, variables, links)


def complaints(check, template):
    full, bare = expand(template, True), expand(template, False)
    return list(check(template, full, bare))


def check_template(template):
    ok = True
    for check in checks.ALL:
        found = complaints(check, template)
        print(f"{'FAIL' if found else 'ok  '} {check.__name__.replace('_', ' ')}")
        for complaint in found:
            print(f"       {complaint}")
        ok &= not found
    return ok


def check_checks(template):
    ok = True
    known = {check: set(complaints(check, template)) for check in checks.ALL}
    for check in checks.ALL:
        if check not in {check for check, _, _ in BREAKAGES}:
            print(f"FAIL no template is broken for: {check.__name__}")
            ok = False
    for check, what, breaks in BREAKAGES:
        broken = copy.deepcopy(template)
        breaks(broken)
        if broken == template:
            print(f"FAIL breaks nothing: {what}")
            ok = False
        elif set(complaints(check, broken)) <= known[check]:
            print(f"FAIL goes unnoticed by {check.__name__}: {what}")
            ok = False
    if ok:
        print(f"ok   {len(BREAKAGES)} broken templates are noticed")
    return ok


if __name__ == "__main__":
    template = source()
    results = [check_template(template), check_checks(template), *(document.check() for document in DOCUMENTS)]
    sys.exit(0 if all(results) else 1)
