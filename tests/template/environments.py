"""The environments of samconfig.toml: each is a stack of its own, and no parameter of a stack is in that tracked file."""

import tomllib

import documents
from expand import ROOT

ENVIRONMENTS = {"default", "staging", "production"}


def complaints(text):
    """What is wrong with the settings of `sam`, in words."""
    settings = tomllib.loads(text)
    environments = {name: value for name, value in settings.items() if isinstance(value, dict)}
    if set(environments) != ENVIRONMENTS:
        yield f"the environments are {sorted(environments)}"
    deployments = {
        name: {**value.get("global", {}).get("parameters", {}), **value["deploy"]["parameters"]}
        for name, value in environments.items()
    }
    for member in ("stack_name", "s3_prefix"):
        if len({one.get(member) for one in deployments.values()}) != len(deployments):
            yield f"two environments have one {member}"
    for name, one in deployments.items():
        if "parameter_overrides" in one:
            yield f"{name} has parameters of a stack"
        if set(one) != set(deployments["default"]):
            yield f"{name} and default do not set the same"
        if one.get("confirm_changeset") is not (name != "staging"):
            yield f"{name}: confirm_changeset is {one.get('confirm_changeset')}"


# Changes of the file, each of which must be noticed.
BREAKAGES = [
    ("staging is production", "hoopai-relay-staging", "hoopai-relay-production"),
    ("a deployment has written its parameters", 'tags = "project=hoopai-relay"\n', 'parameter_overrides = "ClientId=abc"\n'),
    ("an environment without IAM", 'stack_name = "hoopai-relay-staging"\ncapabilities = "CAPABILITY_IAM"\n', 'stack_name = "hoopai-relay-staging"\n'),
    ("production is changed without a look", "confirm_changeset = true", "confirm_changeset = false"),
    ("no production", "[production.", "[live."),
]


def check():
    return documents.check("the environments of samconfig.toml", (ROOT / "samconfig.toml").read_text(), complaints, BREAKAGES)
