"""The template as tools/package.py writes it, the metadata for publishing it, and the examples that deploy it."""

import re
import sys

import documents
import yaml
from expand import ROOT, product_version, source
from samcli.yamlhelper import yaml_dump

sys.path.insert(0, str(ROOT / "tools"))
import package  # noqa: E402


def complaints(text):
    """What is wrong with a packaged template, in words."""
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
        yield "it has YAML aliases"
    for binary in ("callback", "refresh", "relay", "webhook"):
        if f"CodeUri: {binary}-arm64.zip\n" not in text:
            yield f"it names no archive of {binary}"
    if "BuildMethod" in text:
        yield "it asks for a build"
    if len(text) > 1_000_000:
        yield "it is larger than CloudFormation reads from a bucket"
    application = source()["Metadata"]["AWS::ServerlessRepo::Application"]
    version = product_version()
    if application["SemanticVersion"] != version:
        yield f"it would be published as {application['SemanticVersion']}, and Cargo.toml has {version}"
    yield from (f"{application[name]} does not exist" for name in ("LicenseUrl", "ReadmeUrl") if not (ROOT / application[name]).is_file())
    example = (ROOT / "docs" / "examples" / "cdk" / "app.mjs").read_text()
    named = set(re.findall(r'"(\w+)"', re.search(r"for \(const name of \[(.*?)\]", example).group(1)))
    for name in sorted(named):
        if not re.search(rf"^  {name}:$", text.split("\nOutputs:\n", 1)[1], re.MULTILINE):
            yield f"docs/examples/cdk: the stack has no output {name}"


# Changes of the packaged template, each of which must be noticed.
BREAKAGES = [
    ("an alias", "CodeUri: relay-arm64.zip\n", "CodeUri: &code relay-arm64.zip\n      Tags: {code: *code}\n"),
    ("code that is not there", "CodeUri: webhook-arm64.zip", "CodeUri: ."),
    ("a function that would be built", "Description: Hoopai Relay\n", "Description: BuildMethod\n"),
    ("an output of the example is gone", "\n  WebhookUrl:\n", "\n  HookUrl:\n"),
]


def check():
    template, _ = package.packaged(source(), "arm64", "https://example.com/docs/operations.md")
    return documents.check("the packaged template", yaml_dump(template), complaints, BREAKAGES)
