"""The template as CloudFormation gets it: SAM's shorthand expanded offline, conditions decided."""

import copy
import logging
import os
import re
from pathlib import Path

# The translator asks for a region, and for nothing else of AWS.
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")

from samtranslator.translator.managed_policy_translator import ManagedPolicyLoader
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

# It warns about telemetry that it was not asked for.
logging.getLogger("samtranslator").setLevel(logging.ERROR)

ROOT = Path(__file__).resolve().parents[2]


def product_version():
    """The version in Cargo.toml."""
    return re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)


def source():
    """The template as it is written."""
    return yaml_parse((ROOT / "template.yaml").read_text())


def expand(template, holds):
    """CloudFormation's resources, with every `Fn::If` decided: by a function that knows conditions by name, or by True
    or False, as if all optional parameters had a value, or none. The stack has its own table then."""
    if isinstance(holds, bool):
        return expand(template, lambda condition: holds and condition != "HasRestoredTable")
    template = copy.deepcopy(template)
    # The code is only a name here; the translator accepts no folder.
    template["Globals"]["Function"]["CodeUri"] = "s3://bucket/key"
    expanded = transform(template, {}, ManagedPolicyLoader(None))
    return _decided(expanded["Resources"], holds)


_NO_VALUE = {"Ref": "AWS::NoValue"}


def _decided(value, holds):
    if isinstance(value, dict):
        if set(value) == {"Fn::If"}:
            condition, then, otherwise = value["Fn::If"]
            return _decided(then if holds(condition) else otherwise, holds)
        decided = {key: _decided(member, holds) for key, member in value.items()}
        return {key: member for key, member in decided.items() if member != _NO_VALUE}
    if isinstance(value, list):
        decided = [_decided(member, holds) for member in value]
        return [member for member in decided if member != _NO_VALUE]
    return value


def name_of(reference):
    """`!Ref`, `!GetAtt ….Arn` and `!Sub` of a resource in one readable form, so that tables can be compared."""
    if isinstance(reference, str):
        return reference
    if "Ref" in reference:
        return reference["Ref"]
    if "Fn::GetAtt" in reference:
        return reference["Fn::GetAtt"][0]
    if "Fn::Sub" in reference and isinstance(reference["Fn::Sub"], str):
        short = re.sub(r"\$\{(\w+)(\.Arn)?\}", r"\1", reference["Fn::Sub"])
        return re.sub(r"^arn:\$\{AWS::Partition\}:events:\$\{AWS::Region\}:\$\{AWS::AccountId\}:", "", short)
    raise ValueError(f"a reference of an unknown form: {reference}")


def of_type(resources, kind):
    """All resources of one CloudFormation type, by name."""
    return {name: resource for name, resource in resources.items() if resource["Type"] == kind}


def function_of(logical_id):
    """`RelayFunction` is the function `relay`."""
    return logical_id.removesuffix("Function").lower()


def as_list(value):
    return value if isinstance(value, list) else [value]
