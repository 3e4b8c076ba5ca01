"""Creates what the template declares on emulators of AWS: the table, the secrets and the queues, by their own definitions.

    python tests/template/deploy.py --parameter ClientId=abc-1 --parameter ApiUrl=http://127.0.0.1:8090 \
        --dynamodb http://127.0.0.1:8000 --moto http://127.0.0.1:5000 --api http://127.0.0.1:8080

Prints the result of the deployment as JSON: the environment of each function, and the outputs. It does not start the
functions; the caller does that.
"""

import argparse
import json
import re
import sys

sys.dont_write_bytecode = True

import boto3
from expand import expand, function_of, of_type, source

REGION = "us-east-1"
ACCOUNT = "123456789012"


class Deployment:
    """A stack's resources, made when something refers to them."""

    def __init__(self, template, parameters, endpoints):
        defaults = {name: parameter.get("Default") for name, parameter in template["Parameters"].items()}
        self.values = {
            **defaults,
            **parameters,
            "AWS::Region": REGION,
            "AWS::AccountId": ACCOUNT,
            "AWS::Partition": "aws",
            "AWS::StackName": "hoopai-relay",
        }
        missing = [name for name, value in self.values.items() if value is None]
        if missing:
            raise SystemExit(f"parameters without a value: {', '.join(missing)}")
        self.template = template
        self.endpoints = endpoints
        self.resources = expand(template, self.holds)
        self.made = {}

    def holds(self, condition):
        return self.boolean(self.template["Conditions"][condition])

    def boolean(self, expression):
        ((function, argument),) = expression.items()
        if function == "Fn::Equals":
            return len({str(self.resolve(side)) for side in argument}) == 1
        if function == "Fn::Not":
            return not self.boolean(argument[0])
        if function == "Fn::Or":
            return any(self.boolean(part) for part in argument)
        if function == "Fn::And":
            return all(self.boolean(part) for part in argument)
        if function == "Condition":
            return self.holds(argument)
        raise ValueError(f"a condition of an unknown form: {expression}")

    def resolve(self, value):
        """A value with its references replaced, as CloudFormation does it."""
        if isinstance(value, list):
            return [self.resolve(member) for member in value]
        if not isinstance(value, dict):
            return value
        if set(value) == {"Ref"}:
            return self.reference(value["Ref"], "Ref")
        if set(value) == {"Fn::GetAtt"}:
            name = value["Fn::GetAtt"]
            return self.reference(*(name if isinstance(name, list) else name.split(".", 1)))
        if set(value) == {"Fn::If"}:
            condition, then, otherwise = value["Fn::If"]
            return self.resolve(then if self.holds(condition) else otherwise)
        if set(value) == {"Fn::Sub"}:
            text, own = value["Fn::Sub"] if isinstance(value["Fn::Sub"], list) else (value["Fn::Sub"], {})

            def replaced(match):
                name, _, attribute = match.group(1).partition(".")
                found = self.resolve(own[name]) if name in own else self.reference(name, attribute or "Ref")
                return str(found)

            return re.sub(r"\$\{([^}!]+)\}", replaced, text)
        return {name: self.resolve(member) for name, member in value.items()}

    def reference(self, name, attribute):
        if name in self.values:
            return self.values[name]
        if name not in self.made:
            resource = self.resources[name]
            self.made[name] = MAKERS[resource["Type"]](self, name, resource.get("Properties", {}))
        return self.made[name][attribute]

    def client(self, service):
        return boto3.client(service, endpoint_url=self.endpoints[service], region_name=REGION)


def table(deployment, name, properties):
    wanted = ("AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode")
    properties = deployment.resolve(properties)
    client, physical = deployment.client("dynamodb"), f"hoopai-relay-{name}-1A2B3C"
    client.create_table(TableName=physical, **{member: properties[member] for member in wanted})
    client.update_time_to_live(TableName=physical, TimeToLiveSpecification=properties["TimeToLiveSpecification"])
    arn = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{physical}"
    return {"Ref": physical, "Arn": arn}


def secret(deployment, name, properties):
    properties, client = deployment.resolve(properties), deployment.client("secretsmanager")
    text = properties.get("SecretString")
    if generate := properties.get("GenerateSecretString"):
        own = ("SecretStringTemplate", "GenerateStringKey")
        password = client.get_random_password(**{key: value for key, value in generate.items() if key not in own})
        members = json.loads(generate["SecretStringTemplate"])
        text = json.dumps({**members, generate["GenerateStringKey"]: password["RandomPassword"]})
    made = client.create_secret(Name=f"{name}-4D5E6F", SecretString=text)
    return {"Ref": made["ARN"]}


def queue(deployment, name, properties):
    attributes = {
        key: json.dumps(value) if isinstance(value, dict) else str(value).lower()
        for key, value in deployment.resolve(properties).items()
    }
    client = deployment.client("sqs")
    url = client.create_queue(QueueName=f"hoopai-relay-{name}-7A8B9C", Attributes=attributes)["QueueUrl"]
    arn = client.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    return {"Ref": url, "Arn": arn}


def function(deployment, name, _properties):
    physical = function_of(name)
    return {"Ref": physical, "Arn": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{physical}"}


def log_group(_deployment, name, _properties):
    return {"Ref": f"/aws/vendedlogs/hoopai-relay/{name}"}


def api(deployment, _name, _properties):
    return {"Ref": "a1b2c3d4e5", "ApiEndpoint": deployment.endpoints["api"]}


MAKERS = {
    "AWS::DynamoDB::Table": table,
    "AWS::SecretsManager::Secret": secret,
    "AWS::SQS::Queue": queue,
    "AWS::Lambda::Function": function,
    "AWS::Logs::LogGroup": log_group,
    "AWS::ApiGatewayV2::Api": api,
}


def main():
    arguments = argparse.ArgumentParser(description="Creates the template's resources on emulators of AWS.")
    arguments.add_argument("--parameter", action="append", default=[], metavar="NAME=VALUE")
    arguments.add_argument("--dynamodb", required=True, metavar="URL")
    arguments.add_argument("--moto", required=True, metavar="URL")
    arguments.add_argument("--api", required=True, metavar="URL", help="where the HTTP API is")
    given = arguments.parse_args()
    endpoints = {"dynamodb": given.dynamodb, "secretsmanager": given.moto, "sqs": given.moto, "api": given.api}
    deployment = Deployment(source(), dict(pair.split("=", 1) for pair in given.parameter), endpoints)
    for kind in ("AWS::DynamoDB::Table", "AWS::SecretsManager::Secret", "AWS::SQS::Queue"):
        for name in of_type(deployment.resources, kind):
            deployment.reference(name, "Ref")
    environment = {
        function_of(name): deployment.resolve(resource["Properties"]["Environment"]["Variables"])
        for name, resource in of_type(deployment.resources, "AWS::Lambda::Function").items()
    }
    outputs = {
        name: deployment.resolve(output["Value"])
        for name, output in deployment.template["Outputs"].items()
        if "Condition" not in output or deployment.holds(output["Condition"])
    }
    texts = {name: {key: str(value) for key, value in variables.items()} for name, variables in environment.items()}
    print(json.dumps({"environment": texts, "outputs": outputs}))


if __name__ == "__main__":
    main()
