"""docs/openapi.yaml against the contract's routes and the words in the code. .ci/run lints the document itself."""

import re

import documents
import expected
import yaml
from expand import ROOT, product_version

METHODS = {"get", "post", "put", "patch", "delete"}


def _words(file, begin, end):
    """The words in quotes between two texts of a source file."""
    text = (ROOT / file).read_text()
    found = set(re.findall(r'"([A-Za-z_]+)"', text[text.index(begin) :].split(end, 1)[0]))
    if not found:
        raise ValueError(f"{file}: no words after {begin}, so this check reads it wrongly")
    return found


def _outcomes():
    file = "functions/webhook/src/response.rs"
    refusals = _words(file, "impl Refusal {\n", "fn header")
    return (refusals | _words(file, "impl Acknowledgement", "/// The name of a result")) - {"POST"}


def complaints(text):
    """What is wrong with the document, in words."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        yield f"it is not YAML: {error}"
        return
    found = {}
    for path, item in document["paths"].items():
        methods = {method for method in item if method in METHODS}
        guards = set()
        for method in methods:
            security = item[method].get("security", document["security"])
            guards.add("AWS_IAM" if security == [{"sigv4": []}] else "open")
        # A method of the contract that is ANY has all the methods here.
        for method in ["ANY"] if methods == METHODS else [method.upper() for method in methods]:
            found[method, path] = guards
    # The document cannot say that the last parameter is greedy.
    wanted = {(method, path.replace("{path+}", "{path}")): {guard} for (method, path), (_, guard) in expected.ROUTES.items()}
    for route in sorted(set(wanted) | set(found)):
        if wanted.get(route) != found.get(route):
            yield f"{' '.join(route)}: {found.get(route)}, in the template {wanted.get(route)}"
    schemas = document["components"]["schemas"]
    for what, said, code in (
        ("codes", schemas["Problem"]["properties"]["code"]["enum"], _words("shared/src/domain/problem.rs", "pub fn as_str", "pub fn status")),
        ("states", schemas["Status"]["properties"]["status"]["enum"], _words("shared/src/domain/status.rs", "pub fn as_str", "pub fn parse")),
        ("outcomes of a webhook", schemas["WebhookResult"]["properties"]["outcome"]["enum"], _outcomes()),
    ):
        if set(said) != code:
            yield f"{what}: only in one of document and code are {sorted(set(said) ^ code)}"
    version = product_version()
    if document["info"]["version"] != version:
        yield f"its version is {document['info']['version']}, that of Cargo.toml {version}"


# Changes of the document, each of which must be noticed.
BREAKAGES = [
    ("a route is gone", "  /oauth/done:\n", "  /oauth/finished:\n"),
    ("a method of a relayed route is gone", "    delete: {operationId: deleteByDropIn,", "    head: {operationId: deleteByDropIn,"),
    ("a key opens a signed route", "      security: *signed\n", ""),
    ("a signed route that a key opens", "summary: Relays a GET for an agency, security: *signed,", "summary: Relays a GET for an agency,"),
    ("a code that nothing has", "            - suspended\n", "            - paused\n"),
    ("a state is missing", "Blocked, ", ""),
    ("an outcome is missing", "foreign_app, ", ""),
    ("another version", "version: 0.2.0", "version: 0.1"),
]


def check():
    return documents.check("docs/openapi.yaml", (ROOT / "docs" / "openapi.yaml").read_text(), complaints, BREAKAGES)
