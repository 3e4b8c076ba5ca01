"""Writes the template and the built functions of one architecture into a folder, for tools that do not build.

    cargo lambda build --release --locked --arm64 --output-format zip
    python tools/package.py --architecture arm64 --functions target/lambda --out dist

The template has no YAML aliases, which only SAM's command line reads, and names the functions' archives beside it.
`aws cloudformation package` uploads them to a bucket. Needs tools/requirements.txt.
"""

import argparse
import shutil
from pathlib import Path

from samcli.yamlhelper import yaml_dump, yaml_parse

ROOT = Path(__file__).resolve().parents[1]


def packaged(template, architecture, runbook):
    """The template for one architecture, and the archive that each function needs."""
    archives = {}
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            binary = resource.pop("Metadata")["BuildProperties"]["Binary"]
            archives[binary] = f"{binary}-{architecture}.zip"
            resource["Properties"]["CodeUri"] = archives[binary]
    del template["Globals"]["Function"]["CodeUri"]
    template["Parameters"]["Architecture"].update(Default=architecture, AllowedValues=[architecture])
    if runbook:
        template["Parameters"]["RunbookUrl"]["Default"] = runbook
    return template, archives


def main():
    arguments = argparse.ArgumentParser(description="Writes the template and the built functions of one architecture.")
    arguments.add_argument("--architecture", required=True, choices=["arm64", "x86_64"])
    arguments.add_argument("--functions", type=Path, required=True, help="folder with BINARY/bootstrap.zip of each function")
    arguments.add_argument("--runbook", metavar="URL", help="https address of docs/operations.md, the default of RunbookUrl")
    arguments.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    given = arguments.parse_args()
    template, archives = packaged(yaml_parse((ROOT / "template.yaml").read_text()), given.architecture, given.runbook)
    given.out.mkdir(parents=True, exist_ok=True)
    for binary, archive in archives.items():
        shutil.copyfile(given.functions / binary / "bootstrap.zip", given.out / archive)
    (given.out / f"template-{given.architecture}.yaml").write_text(yaml_dump(template))


if __name__ == "__main__":
    main()
