"""One function a promise of the template. Each takes expanded resources and yields what is wrong, in words."""

import copy
import json
import re

import expected
import monitoring
import parameters
from expand import ROOT, as_list, expand, function_of, name_of, of_type

FUNCTIONS = ("callback", "refresh", "relay", "webhook")
# The longest time that an HTTP API waits for a function (API Gateway Developer Guide, "Quotas for HTTP APIs").
LONGEST_INTEGRATION_MS = 30_000


def _difference(what, wanted, found):
    for row in sorted(wanted - found, key=str):
        yield f"{what}: missing {row}"
    for row in sorted(found - wanted, key=str):
        yield f"{what}: not expected {row}"


def _functions(resources):
    return {function_of(name): resource["Properties"] for name, resource in of_type(resources, "AWS::Lambda::Function").items()}


def functions_are_the_four_binaries(template, full, bare):
    found = _functions(full)
    yield from _difference("functions", set(FUNCTIONS), set(found))
    for name in FUNCTIONS:
        metadata = template["Resources"].get(f"{name.capitalize()}Function", {}).get("Metadata", {})
        if metadata.get("BuildMethod") != "rust-cargolambda" or metadata.get("BuildProperties") != {"Binary": name}:
            yield f"{name}: is not built as the binary {name}"
    for name, function in found.items():
        if function["Runtime"] != "provided.al2023":
            yield f"{name}: runs on {function['Runtime']}"
        if function["Architectures"] != [{"Ref": "Architecture"}]:
            yield f"{name}: its architecture is not the parameter's"
        if function["TracingConfig"] != {"Mode": "Active"}:
            yield f"{name}: is not traced"
        group = name_of(function.get("LoggingConfig", {}).get("LogGroup", "none"))
        if "RetentionInDays" not in full.get(group, {}).get("Properties", {}):
            yield f"{name}: its log group {group} keeps lines for ever"


def routes_are_the_contracts(template, full, bare):
    found = {}
    for api in of_type(full, "AWS::ApiGatewayV2::Api").values():
        for path, methods in api["Properties"]["Body"]["paths"].items():
            for method, operation in methods.items():
                integration = operation["x-amazon-apigateway-integration"]
                if integration["payloadFormatVersion"] != "2.0":
                    yield f"{method} {path}: payload {integration['payloadFormatVersion']}"
                function = re.search(r"functions/\$\{(\w+?)(?:\.Arn|Alias\w+)?\}", integration["uri"]["Fn::Sub"]).group(1)
                guards = [guard for entry in operation.get("security", []) for guard in entry]
                verb = "ANY" if method == "x-amazon-apigateway-any-method" else method.upper()
                found[verb, path] = (function_of(function), "+".join(guards) or "open")
    yield from _difference("routes", set(expected.ROUTES.items()), set(found.items()))
    stages = {stage["Properties"]["StageName"] for stage in of_type(full, "AWS::ApiGatewayV2::Stage").values()}
    yield from _difference("stages", {"$default"}, stages)


def only_the_api_and_the_schedule_may_invoke(template, full, bare):
    for name, permission in of_type(full, "AWS::Lambda::Permission").items():
        properties = permission["Properties"]
        if properties["Principal"] != "apigateway.amazonaws.com" or "SourceArn" not in properties:
            yield f"{name}: lets {properties['Principal']} in, from {properties.get('SourceArn', 'anywhere')}"


def only_the_gateways_alias_is_invoked(template, full, bare):
    """API, queue and schedule invoke the alias that GATEWAY_ALIAS names: by another one their events are refused."""
    alias = expected.GATEWAY_ALIAS
    for name in FUNCTIONS:
        logical = f"{name.capitalize()}Function"
        variable = full[logical]["Properties"]["Environment"]["Variables"].get("GATEWAY_ALIAS")
        if variable != alias:
            yield f"{name}: GATEWAY_ALIAS is {variable}"
        found = full.get(f"{logical}Alias{alias}", {}).get("Properties", {})
        version = found.get("FunctionVersion", {}).get("Fn::GetAtt", ["none"])[0]
        if found.get("Name") != alias or full.get(version, {}).get("Type") != "AWS::Lambda::Version":
            yield f"{name}: no alias {alias} of a published version"
    aliases = {f"{name.capitalize()}FunctionAlias{alias}" for name in FUNCTIONS}
    invoked = {name: permission["Properties"]["FunctionName"] for name, permission in of_type(full, "AWS::Lambda::Permission").items()}
    mappings = of_type(full, "AWS::Lambda::EventSourceMapping").items()
    invoked.update({name: mapping["Properties"]["FunctionName"] for name, mapping in mappings})
    schedules = of_type(full, "AWS::Scheduler::Schedule").items()
    invoked.update({name: schedule["Properties"]["Target"]["Arn"] for name, schedule in schedules})
    for api in of_type(full, "AWS::ApiGatewayV2::Api").values():
        for path, methods in api["Properties"]["Body"]["paths"].items():
            for method, operation in methods.items():
                uri = operation["x-amazon-apigateway-integration"]["uri"]["Fn::Sub"]
                invoked[f"{method} {path}"] = {"Ref": re.search(r"functions/\$\{([\w.]+)\}/", uri).group(1)}
    for name, reference in invoked.items():
        if reference.get("Ref") not in aliases:
            yield f"{name}: invokes {reference}, not the alias {alias}"
    for name, configuration in of_type(full, "AWS::Lambda::EventInvokeConfig").items():
        if configuration["Properties"]["Qualifier"] != alias:
            yield f"{name}: is about {configuration['Properties']['Qualifier']}, not about {alias}"


def every_change_publishes_a_version(template, full, bare):
    """SAM's hash sees what is written in the template, and no parameter's value. Those are numbered by Settings."""
    for name in FUNCTIONS:
        function = template["Resources"].get(f"{name.capitalize()}Function", {}).get("Properties", {})
        everything = {**template["Globals"]["Function"], **function}
        if everything.get("AutoPublishAliasAllProperties") is not True:
            yield f"{name}: a change of the template need not publish a version"
        for property in ("Description", "VersionDescription"):
            if "${Settings}" not in json.dumps(everything.get(property, "")):
                yield f"{name}: its {property} does not change with the settings"
    content = full["Settings"]["Properties"]["Content"]["Fn::Sub"]
    numbered = set(re.findall(r"\$\{(\w+)\}", content))
    functions = [template["Globals"]["Function"], *(template["Resources"][f"{name.capitalize()}Function"]["Properties"] for name in FUNCTIONS)]
    # Routes and the way in which an update reaches them are no properties of a function.
    beside = {"Events": None, "DeploymentPreference": None}
    used = set().union(*(_parameters(template, {**one, **beside}) for one in functions))
    yield from _difference("parameters in Settings", used, numbered)


def an_update_is_tried_before_all_invocations_use_it(template, full, bare):
    for name in FUNCTIONS:
        logical = f"{name.capitalize()}Function"
        update = full.get(f"{logical}Alias{expected.GATEWAY_ALIAS}", {}).get("UpdatePolicy", {}).get("CodeDeployLambdaAliasUpdate", {})
        group = full.get(update.get("DeploymentGroupName", {}).get("Ref"), {}).get("Properties", {})
        if group.get("DeploymentConfigName") != {"Ref": "Rollout"} and group.get("DeploymentConfigName") != template["Parameters"]["Rollout"]["Default"]:
            yield f"{name}: its alias is not moved as Rollout says"
        alarms = group.get("AlarmConfiguration", {})
        watched = {alarm["Name"]["Ref"] for alarm in alarms.get("Alarms", [])}
        if alarms.get("Enabled") is not True or watched != expected.ROLLBACK_ALARMS:
            yield f"{name}: an update is rolled back by {sorted(watched)}"
        if "DEPLOYMENT_STOP_ON_ALARM" not in group.get("AutoRollbackConfiguration", {}).get("Events", []):
            yield f"{name}: an alarm does not roll an update back"
        if group.get("ServiceRoleArn") != {"Fn::GetAtt": ["RolloutRole", "Arn"]}:
            yield f"{name}: CodeDeploy has a role that SAM makes, outside of the boundary"
    if template["Conditions"]["HasRollbackAlarms"] != {
        "Fn::And": [
            {"Condition": "IsMonitored"},
            {"Fn::Not": [{"Fn::Equals": [{"Ref": "Rollout"}, "CodeDeployDefault.LambdaAllAtOnce"]}]},
        ]
    }:
        yield "a repair cannot be deployed while an alarm is raised"
    # Without monitoring there are no alarms to name.
    groups = of_type(bare, "AWS::CodeDeploy::DeploymentGroup")
    yield from (f"{name}: names alarms that do not exist" for name, one in groups.items() if one["Properties"].get("AlarmConfiguration"))
    if not template["Parameters"]["Rollout"]["Default"].startswith("CodeDeployDefault.LambdaCanary"):
        yield "an update reaches all invocations at once unless asked not to"


def _parameters(template, value):
    """The parameters that a value depends on, those of its conditions included."""
    if isinstance(value, list):
        return set().union(*(_parameters(template, member) for member in value), set())
    if not isinstance(value, dict):
        return set()
    found = set()
    for key, member in value.items():
        if key == "Ref" and member in template["Parameters"]:
            found.add(member)
        elif key == "Fn::Sub":
            texts = re.findall(r"\$\{(\w+)\}", member if isinstance(member, str) else member[0])
            found |= set(texts) & set(template["Parameters"])
        elif key == "Fn::If":
            found |= _parameters(template, template["Conditions"][member[0]]) | _parameters(template, member[1:])
        elif key == "Condition" and isinstance(member, str):
            found |= _parameters(template, template["Conditions"][member])
        else:
            found |= _parameters(template, member)
    return found


def environment_is_what_the_code_reads(template, full, bare):
    functions = _functions(full)
    for name, function in functions.items():
        wanted = expected.ENVIRONMENT.get(name, set())
        yield from _difference(f"environment of {name}", wanted, set(function["Environment"]["Variables"]))
        unread = set(function["Environment"]["Variables"]) - variables_in_code("mod", name) - {"RUST_LOG"}
        yield from (f"environment of {name}: {variable} is set, but the function does not read it" for variable in sorted(unread))
    in_template = {variable for function in functions.values() for variable in function["Environment"]["Variables"]}
    # The log filter is read where logging starts, not by the configuration.
    in_code = variables_in_code("*") | {"RUST_LOG"}
    yield from _difference("environment (the template against shared/src/config)", in_code, in_template)
    for name, function in functions.items():
        namespace = function["Environment"]["Variables"].get("METRICS_NAMESPACE")
        if namespace != {"Fn::Sub": expected.NAMESPACE}:
            yield f"{name}: a second stack has the same namespace of metrics, {namespace}"


def defaults_and_ranges_are_the_codes(template, full, bare):
    parameter_of = {
        variable: template["Parameters"][value["Ref"]]
        for function in _functions(full).values()
        for variable, value in function["Environment"]["Variables"].items()
        if isinstance(value, dict) and value.get("Ref") in template["Parameters"]
    }
    code = _configuration("*")
    texts = re.findall(r'env\.(?:url|path)\(\s*"(\w+)",\s*"([^"]+)"', code)
    numbers = re.findall(r'env\.number\(\s*"(\w+)",\s*([\d_]+),\s*([\d_]+)\.\.=([\d_]+)', code)
    if not texts or not numbers:
        yield "shared/src/config: no defaults found, so this check reads it wrongly"
    for variable, default in texts:
        if parameter_of[variable].get("Default") != default:
            yield f"{variable}: default {parameter_of[variable].get('Default')}, in the code {default}"
    ranges = {name: (low, high) for name, low, high in re.findall(r"const (\w+): RangeInclusive<u32> = ([\d_]+)\.\.=([\d_]+)", code)}
    bounded = [(variable, low, high) for variable, _, low, high in numbers]
    for *variables, name in re.findall(r'limit\("(\w+)", "(\w+)", [\d_]+, [\d_]+, (\w+)\)', code):
        bounded += [(variable, *ranges[name]) for variable in variables]
    if len(bounded) < 5:
        yield "shared/src/config: the limits are not found, so this check reads it wrongly"
    for variable, *texts in bounded:
        low, high = (int(text.replace("_", "")) for text in texts)
        parameter = parameter_of[variable]
        # Empty leaves the default to the code: a variable that is set is a ceiling, too.
        taken = [text for text in ("", low, high, low - 1, high + 1) if re.fullmatch(parameter.get("AllowedPattern", ".*"), str(text))]
        if parameter.get("Default") != "" or taken != ["", low, high]:
            yield f"{variable}: default {parameter.get('Default')!r}, takes {taken}, in the code {low} to {high}"


def _configuration(*modules):
    """The source of these modules of the configuration, without their tests. The module `mod` is read by every function,
    and a module that bears a function's name is read by this function alone."""
    folder = ROOT / "shared" / "src" / "config"
    files = sorted({file for module in modules for file in folder.glob(f"{module}.rs")})
    return "".join(file.read_text().split("#[cfg(test)]")[0] for file in files)


def variables_in_code(*modules):
    """Variables appear in the configuration's source as literals; the AWS SDK's own are not the template's business."""
    literals = set(re.findall(r'"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*)"', _configuration(*modules)))
    return {name for name in literals if not name.startswith("AWS_")}


def roles_hold_exactly_the_expected_permissions(template, full, bare):
    functions = {function_of(name) for name in of_type(full, "AWS::Lambda::Function")}
    for resources, has_bus in ((full, True), (bare, False)):
        roles = of_type(resources, "AWS::IAM::Role")
        for name in functions:
            role = name_of(resources[f"{name.capitalize()}Function"]["Properties"]["Role"])
            found = _permissions(roles[role])
            optional = expected.PERMISSIONS_OF_A_BUS[name] | expected.PERMISSIONS_OF_HMAC.get(name, set())
            optional |= expected.PERMISSIONS_OF_CALLS.get(name, set())
            yield from _difference(f"role of {name}", expected.PERMISSIONS[name] | (optional if has_bus else set()), found)
        others = set(roles) - {f"{name.capitalize()}Role" for name in functions}
        if others != {"ScheduleRole", "RolloutRole"}:
            yield f"roles beside the functions' own: {sorted(others)}"
            return
        yield from _difference("role ScheduleRole", expected.SCHEDULE_PERMISSIONS, _permissions(roles["ScheduleRole"]))
        # Lambda's roles need no such condition: only iam:PassRole in this account gives one to a function.
        for name in others:
            for statement in roles[name]["Properties"]["AssumeRolePolicyDocument"]["Statement"]:
                if statement.get("Condition") != {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}:
                    yield f"role {name}: the service may use it for another account"
        for name, role in roles.items():
            managed = [arn["Fn::Sub"] if isinstance(arn, dict) else arn for arn in role["Properties"].get("ManagedPolicyArns", [])]
            if managed != expected.MANAGED_POLICIES.get(name, []):
                yield f"role {name}: managed policies allow more than anyone reads: {managed}"
    for name in full:
        if full[name]["Type"] in ("AWS::IAM::Policy", "AWS::IAM::ManagedPolicy"):
            yield f"{name}: permissions outside of the roles"


def _permissions(role):
    rows = set()
    for policy in role["Properties"].get("Policies", []):
        for statement in policy["PolicyDocument"]["Statement"]:
            if statement["Effect"] != "Allow" or set(statement) & {"NotAction", "NotResource"}:
                raise ValueError(f"a statement of a form this test does not read: {statement}")
            prefixes = None
            if "Condition" in statement:
                condition = copy.deepcopy(statement["Condition"])
                prefixes = tuple(sorted(as_list(condition.get("ForAllValues:StringLike", {}).pop("dynamodb:LeadingKeys", []))))
                # ForAllValues holds for a request without any key, so a condition on items demands that there is one.
                of_index = all("/index/" in name_of(resource) for resource in as_list(statement["Resource"]))
                has_key = {} if of_index else {"Null": {"dynamodb:LeadingKeys": "false"}}
                if condition != {"ForAllValues:StringLike": {}, **has_key}:
                    prefixes = ("a condition of another form",)
            for action in as_list(statement["Action"]):
                for resource in as_list(statement["Resource"]):
                    rows.add((action, name_of(resource), prefixes))
    return rows


def wildcards_only_where_aws_demands_them(template, full, bare):
    for name, role in of_type(full, "AWS::IAM::Role").items():
        for action, resource, prefixes in _permissions(role):
            if "*" in action:
                yield f"{name}: action {action}"
            if "*" in resource and action not in expected.MAY_BE_WILDCARD:
                yield f"{name}: {action} on {resource}"
            if resource == "Table" and not prefixes:
                yield f"{name}: {action} on every kind of item"
            if action in ("dynamodb:Scan", "dynamodb:DeleteItem", "dynamodb:BatchWriteItem"):
                yield f"{name}: {action} is nobody's"


def _integration_timeouts(resources):
    """Route -> (function, milliseconds that the API waits for it)."""
    found = {}
    for api in of_type(resources, "AWS::ApiGatewayV2::Api").values():
        for path, methods in api["Properties"]["Body"]["paths"].items():
            for method, operation in methods.items():
                integration = operation["x-amazon-apigateway-integration"]
                function = re.search(r"functions/\$\{(\w+?)Alias\w+\}", integration["uri"]["Fn::Sub"]).group(1)
                found[f"{method} {path}"] = (function_of(function), integration.get("timeoutInMillis"))
    return found


def times_fit_into_each_other(template, full, bare):
    functions = _functions(full)
    event = (ROOT / "functions" / "relay" / "src" / "event.rs").read_text()
    relay_answers = int(re.search(r"LONGEST: Duration = Duration::from_secs\((\d+)\)", event).group(1)) * 1_000
    for route, (function, wait) in _integration_timeouts(full).items():
        # The translator adds no time-out of its own, and the documents of SAM and of API Gateway differ about the default.
        if wait is None or wait > LONGEST_INTEGRATION_MS:
            yield f"{route}: the API waits {wait} ms"
        elif functions[function]["Timeout"] * 1_000 > wait:
            yield f"{route}: {function} may take {functions[function]['Timeout']} s, and the API waits {wait} ms"
        elif function == "relay" and relay_answers + 1_000 > wait:
            yield f"{route}: the relay answers after {relay_answers} ms, and the API waits {wait} ms"
    if functions["refresh"]["Timeout"] < 60:
        yield "refresh: ends before the next tick begins"
    visibility = full["RescueQueue"]["Properties"]["VisibilityTimeout"]
    if visibility <= functions["refresh"]["Timeout"]:
        yield f"rescue queue: visibility {visibility} s is not above the function's time-out"
    if visibility > 120:
        yield f"rescue queue: a delivery that ends without an answer is repeated after {visibility} s only"
    receives = full["RescueQueue"]["Properties"].get("RedrivePolicy", {}).get("maxReceiveCount")
    if receives != 1000:
        yield f"rescue queue: a pair is given up after {receives} deliveries; SQS allows 1000"
    calls = full["Calls"]["Properties"]
    if not 6 * functions["relay"]["Timeout"] <= calls["VisibilityTimeout"] <= 300:
        yield f"queue of calls: visibility {calls['VisibilityTimeout']} s is too short, or a dead process is noticed late"
    if calls.get("RedrivePolicy", {}).get("maxReceiveCount") != 1000:
        yield "queue of calls: a call is given up because it waits; SQS allows 1000 deliveries"
    overflow = full["EventsOverflow"]["Properties"]
    # Lambda's own advice: six times the function's time-out, so that a throttled batch is not delivered twice.
    if not 6 * functions["webhook"]["Timeout"] <= overflow["VisibilityTimeout"] <= 300:
        yield f"overflow queue: visibility {overflow['VisibilityTimeout']} s is too short, or a try comes too late"
    if overflow.get("RedrivePolicy", {}).get("maxReceiveCount") != 1000:
        yield "overflow queue: an event is given up early; SQS allows 1000 deliveries"


def _chosen(template, value, choice=None):
    """The value of a mapping for the choice of its parameter, or for the parameter's default."""
    if isinstance(value, dict) and "Fn::FindInMap" in value:
        mapping, parameter, member = value["Fn::FindInMap"]
        key = template["Parameters"][parameter["Ref"]]["Default"] if choice is None else choice
        return template["Mappings"][mapping].get(str(key), {}).get(member, 0)
    return value


def webhooks_fit_into_their_concurrency(template, full, bare):
    """Requests that the throttle lets through, until each is answered, and the consumers of the overflow queue."""
    (stage,) = of_type(full, "AWS::ApiGatewayV2::Stage").values()
    route = stage["Properties"]["RouteSettings"].get("POST /webhooks/marketplace", {})
    listener = (ROOT / "functions" / "webhook" / "src" / "listener.rs").read_text()
    limit = re.search(r"TIME_LIMIT: Duration = Duration::from_millis\(([\d_]+)\)", listener)
    if not limit or int(limit.group(1).replace("_", "")) > 4_500:
        yield f"webhook: its time limit is {limit and limit.group(1)} ms, and the throttle counts with 5 s"
    consumers = full["WebhookOverflow"]["Properties"].get("ScalingConfig", {}).get("MaximumConcurrency", 1000)
    reserved = _functions(full)["webhook"].get("ReservedConcurrentExecutions")
    if reserved != {"Ref": "WebhookConcurrency"}:
        yield f"webhook: its reserved concurrency is {reserved}"
    for choice in template["Parameters"]["WebhookConcurrency"]["AllowedValues"]:
        rate = _chosen(template, route.get("ThrottlingRateLimit", 0), choice)
        burst = _chosen(template, route.get("ThrottlingBurstLimit", 0), choice)
        if not rate or not burst:
            yield f"WebhookConcurrency {choice}: no throttle"
        # Nothing is reserved for 0. The account has 1000 by default.
        if rate * 5 + burst + consumers > (choice or 1000):
            yield f"WebhookConcurrency {choice}: {rate} a second and {burst} at once need more"


def events_are_kept_and_can_be_replayed(template, full, bare):
    archives = [archive["Properties"] for archive in of_type(full, "AWS::Events::Archive").values()]
    if [archive["EventPattern"] for archive in archives] != [{"source": ["hoopai.platform", "hoopai.relay"]}]:
        yield f"archive: it keeps {[archive['EventPattern'] for archive in archives]}"
    if any(archive.get("RetentionDays") != {"Ref": "EventArchiveDays"} for archive in archives):
        yield "archive: its retention is not the parameter's"


def table_is_the_one_the_tests_use(template, full, bare):
    """`table.json` is a CreateTable request without the name, for whatever makes a table outside AWS."""
    wanted = json.loads((ROOT / "tests" / "template" / "table.json").read_text())
    for member, value in wanted.items():
        found = full["Table"]["Properties"].get(member)
        if found != value:
            yield f"{member}: {found}, in table.json {value}"
    unknown = {"LocalSecondaryIndexes", "StreamSpecification"} & set(full["Table"]["Properties"])
    yield from (f"{member} is not in table.json" for member in sorted(unknown))


def nothing_that_matters_is_lost(template, full, bare):
    table = full["Table"]["Properties"]
    unprotected = expand(template, lambda condition: condition != "IsProtected")["Table"]["Properties"]
    if table.get("DeletionProtectionEnabled") is not True:
        yield "table: can be deleted"
    if unprotected.get("DeletionProtectionEnabled") is not False or template["Parameters"]["ProtectTable"]["Default"] != "false":
        yield "table: the first deployment cannot be rolled back"
    if not table.get("PointInTimeRecoverySpecification", {}).get("PointInTimeRecoveryEnabled"):
        yield "table: cannot be restored"
    if "SSESpecification" in table:
        yield "table: under a key whose uses KMS charges"
    if table.get("TimeToLiveSpecification") != {"AttributeName": "expires_at", "Enabled": True}:
        yield "table: its time to live is not expires_at"
    kept = ("Table", "SealingSecret", "AppSecret", "CallersSecret", "RescueQueue", "RescueFailures")
    on_demand = ("WebhookSecret", "EventsOverflow", "EventsOverflowFailures", "EventArchive", "Calls", "CallFailures", "CallResults")
    for name in kept + on_demand:
        # What a failed first deployment has made is empty, and would be in the way of the next one.
        for policy, wanted in (("DeletionPolicy", "RetainExceptOnCreate"), ("UpdateReplacePolicy", "Retain")):
            if full[name].get(policy) != wanted:
                yield f"{name}: {policy} is not {wanted}"
    for name, mapping in of_type(full, "AWS::Lambda::EventSourceMapping").items():
        if mapping["Properties"].get("FunctionResponseTypes") != ["ReportBatchItemFailures"]:
            yield f"{name}: one failed pair would repeat the whole batch"
    for name in ("RescueQueue", "EventsOverflow", "Calls"):
        if "deadLetterTargetArn" not in full[name]["Properties"].get("RedrivePolicy", {}):
            yield f"{name}: no queue behind it"
    schedules = of_type(full, "AWS::Scheduler::Schedule")
    for name, schedule in schedules.items():
        if "DeadLetterConfig" not in schedule["Properties"]["Target"]:
            yield f"{name}: lost ticks leave no trace"
    if [schedule["Properties"]["ScheduleExpression"] for schedule in schedules.values()] != ["rate(1 minute)"]:
        yield "schedule: not once a minute"


def what_is_optional_comes_only_when_asked_for(template, full, bare):
    boundary = {"Ref": "PermissionsBoundaryArn"}
    for name, role in of_type(full, "AWS::IAM::Role").items():
        if role["Properties"].get("PermissionsBoundary") != boundary:
            yield f"role {name}: outside of the boundary that was asked for"
    for name, role in of_type(bare, "AWS::IAM::Role").items():
        if "PermissionsBoundary" in role["Properties"]:
            yield f"role {name}: in a boundary that nobody asked for"
    reserved = {name: "ReservedConcurrentExecutions" in function for name, function in _functions(full).items()}
    if reserved != {name: name in ("callback", "relay", "webhook") for name in FUNCTIONS}:
        yield f"reserved concurrency: {reserved}"
    if any("ReservedConcurrentExecutions" in function for function in _functions(bare).values()):
        yield "concurrency is reserved that nobody asked for"
    for name, condition in expected.ON_DEMAND.items():
        if full.get(name, {}).get("Condition") != condition:
            yield f"{name}: not only under {condition}"


def the_api_is_bounded_and_logs_no_code(template, full, bare):
    if not template["Parameters"]["CallbackConcurrency"]["Default"]:
        yield "callback: may take the whole account's concurrency unless asked not to"
    group = full["ApiLogs"]["Properties"].get("LogGroupName", {})
    if not group.get("Fn::Sub", "").startswith("/aws/vendedlogs/${AWS::StackName}"):
        yield f"API: its log group {group} takes room in a resource policy, or is that of every stack"
    for stage in of_type(full, "AWS::ApiGatewayV2::Stage").values():
        settings = stage["Properties"].get("DefaultRouteSettings", {})
        if not {"ThrottlingRateLimit", "ThrottlingBurstLimit"} <= set(settings):
            yield "API: not throttled"
        routes = {
            route: tuple(_chosen(template, one.get(member)) for member in ("ThrottlingRateLimit", "ThrottlingBurstLimit"))
            for route, one in stage["Properties"].get("RouteSettings", {}).items()
        }
        yield from _difference("throttled routes", set(expected.THROTTLES.items()), set(routes.items()))
        # A stage cannot be made with settings for a route that the API does not have.
        yield from (f"API: throttles {route}, which is no route" for route in routes if tuple(route.split()) not in expected.ROUTES)
        line = stage["Properties"].get("AccessLogSettings", {}).get("Format", "")
        if "$context.status" not in line:
            yield "API: no access log"
        # A redirect's query holds a code; a path holds who is called for.
        for variable in ("$context.path", "querystring", "$request"):
            if variable in line:
                yield f"API: its access log has {variable}"


def a_failed_tick_is_not_repeated_and_a_lost_one_is_seen(template, full, bare):
    configurations = of_type(full, "AWS::Lambda::EventInvokeConfig").values()
    found = [(name_of(one["Properties"]["FunctionName"]), one["Properties"].get("MaximumRetryAttempts")) for one in configurations]
    if found != [("RefreshFunction", 0)]:
        yield f"asynchronous invocations: {found}, expected RefreshFunction without retries"
    for name, schedule in of_type(full, "AWS::Scheduler::Schedule").items():
        retry = schedule["Properties"]["Target"].get("RetryPolicy", {})
        if not 60 <= retry.get("MaximumEventAgeInSeconds", 86400) <= 120:
            yield f"{name}: a tick may come when it is long stale"


def _dependencies(resources, value):
    """The resources that a value refers to."""
    if isinstance(value, list):
        return set().union(*(_dependencies(resources, member) for member in value), set())
    if not isinstance(value, dict):
        return set()
    found = set()
    for key, member in value.items():
        if key == "Ref":
            found.add(member)
        elif key == "Fn::GetAtt":
            found.add(member[0] if isinstance(member, list) else member.split(".")[0])
        elif key == "Fn::Sub":
            text = member if isinstance(member, str) else member[0]
            found |= set(re.findall(r"\$\{(\w+)(?:\.\w+)?\}", text))
        found |= _dependencies(resources, member)
    return found & set(resources)


def no_resource_depends_on_itself(template, full, bare):
    """An update policy is a dependency, too: CloudFormation makes the deployment group before the alias."""
    needs = {
        name: _dependencies(full, [resource.get("Properties"), resource.get("UpdatePolicy")]) | set(as_list(resource.get("DependsOn", [])))
        for name, resource in full.items()
    }
    while free := {name for name, wanted in needs.items() if not wanted & set(needs)}:
        needs = {name: wanted for name, wanted in needs.items() if name not in free}
    # What is left is on a circle, or needs something that is.
    while last := {name for name in needs if not any(name in wanted for wanted in needs.values())}:
        needs = {name: wanted for name, wanted in needs.items() if name not in last}
    if needs:
        yield f"on a circle: {', '.join(sorted(needs))}"


def a_restored_table_takes_the_place_of_the_stacks_own(template, full, bare):
    restored = expand(template, lambda condition: True)
    for name, resource in restored.items():
        if name != "Table" and re.search(r'"Ref": "Table"|"Table", "Arn"|"Table\.Arn"|\$\{Table\b', json.dumps(resource)):
            yield f"{name}: uses the stack's own table although another was restored"


def a_second_stack_finds_every_name_free(template, full, bare):
    # A domain is the only name that its owner chooses.
    named = ("Name", "QueueName", "TableName", "TopicName", "RoleName", "FunctionName", "LogGroupName", "AlarmName", "DashboardName")
    for name, resource in full.items():
        # The name of an alias is its function's own.
        if resource["Type"] in ("AWS::Route53::RecordSet", "AWS::Lambda::Alias"):
            continue
        for member in named:
            value = resource["Properties"].get(member)
            of_this_stack = isinstance(value, dict) and (value.get("Ref") in full or "AWS::StackName" in json.dumps(value))
            if value is not None and not of_this_stack:
                yield f"{name}: is named {value} in every stack"


def outputs_are_the_documented_ones(template, full, bare):
    outputs = template["Outputs"]
    yield from _difference("outputs", expected.OUTPUTS, set(outputs))
    told = set(re.findall(r"(\w+)=", json.dumps(outputs.get("OperatorEnvironment", {}))))
    crate = ROOT / "tools" / "ops" / "src"
    read = {name for file in crate.rglob("*.rs") for name in re.findall(r'env\.\w+\("(\w+)"\)', file.read_text())}
    required = set(re.findall(r'env\.required\("(\w+)"\)', _configuration("*")))
    if not read or not required:
        yield "tools/ops or shared/src/config: no variables found, so this check reads them wrongly"
    missing = (read | required | {"AWS_REGION", "API_URL", "RESCUE_QUEUE_URL", "EVENT_BUS_NAME", "GATEWAY_ALIAS"}) - told
    yield from (f"OperatorEnvironment: without {name}" for name in sorted(missing))


def parameters_are_grouped_and_explained(template, full, bare):
    groups = [group["Parameters"] for group in template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]]
    grouped = [name for group in groups for name in group]
    if sorted(grouped) != sorted(template["Parameters"]):
        yield f"parameters in no group, or in two: {sorted(set(grouped) ^ set(template['Parameters']))}"
    if groups[0] != expected.TO_DECIDE:
        yield f"the first group is {groups[0]}"
    readme = (ROOT / "README.md").read_text()
    yield from (f"README.md does not say where {name} is found" for name in groups[0] if f"| `{name}` |" not in readme)
    for name, parameter in template["Parameters"].items():
        if "Description" not in parameter:
            yield f"parameter {name}: no description"
        if not set(parameter) & {"AllowedPattern", "AllowedValues", "MinValue"}:
            yield f"parameter {name}: takes anything"


def secrets_have_the_contracts_form(template, full, bare):
    sealing = full["SealingSecret"]["Properties"].get("GenerateSecretString", {})
    if sealing.get("SecretStringTemplate") != '{"current":"k1"}' or sealing.get("GenerateStringKey") != "k1":
        yield "sealing secret: not {\"current\":\"k1\",\"k1\":…}"
    if sealing.get("PasswordLength", 0) < 32:
        yield "sealing secret: shorter than 32 characters"
    if full["CallersSecret"]["Properties"].get("SecretString") != '{"callers":[]}':
        yield "callers secret: does not start empty"
    if full["WebhookSecret"]["Properties"].get("SecretString") != '{"secrets":[]}':
        yield "webhook secret: does not start empty"


ALL = (
    functions_are_the_four_binaries,
    routes_are_the_contracts,
    only_the_api_and_the_schedule_may_invoke,
    only_the_gateways_alias_is_invoked,
    every_change_publishes_a_version,
    an_update_is_tried_before_all_invocations_use_it,
    environment_is_what_the_code_reads,
    defaults_and_ranges_are_the_codes,
    roles_hold_exactly_the_expected_permissions,
    wildcards_only_where_aws_demands_them,
    times_fit_into_each_other,
    webhooks_fit_into_their_concurrency,
    events_are_kept_and_can_be_replayed,
    table_is_the_one_the_tests_use,
    nothing_that_matters_is_lost,
    what_is_optional_comes_only_when_asked_for,
    the_api_is_bounded_and_logs_no_code,
    a_failed_tick_is_not_repeated_and_a_lost_one_is_seen,
    no_resource_depends_on_itself,
    a_restored_table_takes_the_place_of_the_stacks_own,
    a_second_stack_finds_every_name_free,
    outputs_are_the_documented_ones,
    secrets_have_the_contracts_form,
    parameters_are_grouped_and_explained,
    parameters.is_written_from_the_template,
) + monitoring.ALL
