"""docs/parameters.md, which is written from the template.

    python tests/template/parameters.py       # writes the page
"""

import sys

sys.dont_write_bytecode = True

from expand import ROOT, source

PAGE = ROOT / "docs" / "parameters.md"
BEGINNING = """# Parameters

The parameters of `template.yaml`. This page is written from the template by `python tests/template/parameters.py`. The README
says [where the first four are found](../README.md#deploy-it), and [deployment](deployment.md) how to give them.
"""


def _default(parameter):
    if "Default" not in parameter:
        return "required"
    return f"`{parameter['Default']}`" if parameter["Default"] != "" else ""


def _values(parameter):
    values = [value for value in parameter.get("AllowedValues", []) if value != ""]
    return f" One of {', '.join(f'`{value}`' for value in values)}." if values else ""


def page(template):
    """The page for a template."""
    lines = [BEGINNING]
    for group in template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]:
        lines.append(f"## {group['Label']['default']}\n\n| parameter | default | meaning |\n|---|---|---|")
        for name in group["Parameters"]:
            parameter = template["Parameters"][name]
            meaning = " ".join(parameter["Description"].split()).replace("|", "\\|")
            lines.append(f"| `{name}` | {_default(parameter)} | {meaning}{_values(parameter)} |")
        lines.append("")
    return "\n".join(lines)


def is_written_from_the_template(template, full, bare):
    if not PAGE.exists() or PAGE.read_text() != page(template):
        yield "docs/parameters.md is older than the template: run python tests/template/parameters.py"


if __name__ == "__main__":
    PAGE.write_text(page(source()))
