"""Alarms and dashboard against the metrics that the code writes and the runbooks that the documents have."""

import json
import re

import expected
from expand import ROOT, expand, of_type

SOURCES = [path for folder in ("shared", "functions") for path in (ROOT / folder).rglob("*.rs")]


def _code():
    return "\n".join(path.read_text() for path in SOURCES)


def metrics_in_code():
    """Name -> sets of dimensions, from the list in `shared/src/log/metrics.rs`."""
    text = (ROOT / "shared" / "src" / "log" / "metrics.rs").read_text()
    named = {"WITHOUT_DIMENSIONS": "&[&[]]", "BY_OUTCOME": '&[&["outcome"]]'}
    found = {}
    for name, dimensions in re.findall(r'metric\("(\w+)", "\w+", (.+)\),\n', text):
        sets = re.findall(r"&\[([^\[\]]*)\]", named.get(dimensions, dimensions)[2:-1])
        found[name] = {tuple(sorted(re.findall(r'"(\w+)"', one))) for one in sets}
    return found


def _watched(alarm):
    """(namespace, name, {dimension: value}, statistic) of everything that an alarm looks at."""
    if "MetricName" in alarm:
        yield alarm["Namespace"], alarm["MetricName"], alarm.get("Dimensions", []), alarm["Statistic"]
    for query in alarm.get("Metrics", []):
        if "MetricStat" in query:
            metric = query["MetricStat"]["Metric"]
            yield metric["Namespace"], metric["MetricName"], metric.get("Dimensions", []), query["MetricStat"]["Stat"]


def _anchors():
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def alarms_watch_what_exists(template, full, bare):
    ours, code = metrics_in_code(), _code()
    alarms = of_type(full, "AWS::CloudWatch::Alarm")
    for name in sorted(expected.ALARMS - set(alarms)):
        yield f"{name} is missing"
    indexes = {index["IndexName"] for index in full["Table"]["Properties"]["GlobalSecondaryIndexes"]}
    throttled = {
        (dimension["Value"], metric)
        for _, metric, dimensions, _ in _watched(alarms.get("ThrottlesAlarm", {"Properties": {}})["Properties"])
        for dimension in dimensions
        if dimension["Name"] == "GlobalSecondaryIndexName"
    }
    each = {(index, metric) for index in indexes for metric in ("ReadThrottleEvents", "WriteThrottleEvents")}
    yield from (f"ThrottlesAlarm: does not see {metric} of the index {index}" for index, metric in sorted(each - throttled))
    for name, alarm in alarms.items():
        properties = alarm["Properties"]
        if len(list(_watched(properties))) > expected.METRICS_OF_AN_ALARM:
            yield f"{name}: has more than {expected.METRICS_OF_AN_ALARM} metrics"
        for namespace, metric, dimensions, _ in _watched(properties):
            keys = tuple(sorted(dimension["Name"] for dimension in dimensions))
            if namespace == {"Fn::Sub": expected.NAMESPACE}:
                if keys not in ours.get(metric, set()):
                    yield f"{name}: no {metric} by {keys} is written; there is {ours.get(metric)}"
                for dimension in dimensions:
                    if f'"{dimension["Value"]}"' not in code:
                        yield f"{name}: nothing says {dimension['Name']}={dimension['Value']}"
                    if dimension["Name"] == "alarm" and f'alarm = "{dimension["Value"]}"' not in code:
                        yield f"{name}: nothing raises the alarm {dimension['Value']}"
            elif not isinstance(namespace, str) or not namespace.startswith("AWS/"):
                yield f"{name}: its namespace {namespace} is not the stack's own"
            elif keys not in expected.METRICS_OF_AWS.get((namespace, metric), set()):
                yield f"{name}: {namespace} has no {metric} by {keys}"
            else:
                for dimension in dimensions:
                    is_index = dimension["Name"] == "GlobalSecondaryIndexName" and dimension["Value"] in indexes
                    if not isinstance(dimension["Value"], dict) and not is_index:
                        yield f"{name}: {dimension['Name']} is no resource of the stack"
        # A filled metric has no missing data: the newest period says 0 until its lines have arrived.
        filled = any("FILL(" in query.get("Expression", "") for query in properties.get("Metrics", []))
        if filled and properties["EvaluationPeriods"] <= properties.get("DatapointsToAlarm", properties["EvaluationPeriods"]):
            yield f"{name}: looks at periods only whose data may still be on the way"
        missing = "breaching" if name in expected.SILENCE_IS_AN_ALARM else "notBreaching"
        if properties.get("TreatMissingData") != missing:
            yield f"{name}: missing data is {properties.get('TreatMissingData')}, not {missing}"


def each_raised_alarm_is_watched(template, full, bare):
    raised = set(re.findall(r'alarm = "(\w+)"', _code()))
    watched = {
        dimension["Value"]
        for alarm in of_type(full, "AWS::CloudWatch::Alarm").values()
        for _, metric, dimensions, _ in _watched(alarm["Properties"])
        for dimension in dimensions
        if metric == "Alarm"
    }
    for name in sorted(raised - watched - set(expected.ALARMS_SEEN_OTHERWISE)):
        yield f"nobody hears of {name}"


def alarms_lead_to_a_runbook(template, full, bare):
    anchors = _anchors()
    single = expand(template, lambda condition: condition != "HasNoticeEmail")
    pattern = template["Parameters"]["RunbookUrl"]["AllowedPattern"]
    taken = [address for address in ("runbooks.html", "http://example.com/a", "https://example.com/a") if re.fullmatch(pattern, address)]
    if taken != ["https://example.com/a"]:
        yield f"RunbookUrl takes {taken}"
    for name, alarm in of_type(full, "AWS::CloudWatch::Alarm").items():
        said = alarm["Properties"].get("AlarmDescription", {})
        text = said.get("Fn::Sub", "") if isinstance(said, dict) else said
        anchor = re.search(r"\$\{RunbookUrl\}#([\w-]+)$", text)
        if not anchor or anchor.group(1) not in anchors:
            yield f"{name}: leads to no heading of docs/operations.md: {text}"
        topic = "NoticeTopic" if name in expected.CAN_WAIT else "AlarmTopic"
        for kind in ("AlarmActions", "OKActions"):
            if alarm["Properties"].get(kind) != [{"Ref": topic}]:
                yield f"{name}: {kind} do not tell {topic}"
            if single[name]["Properties"].get(kind) != [{"Ref": "AlarmTopic"}]:
                yield f"{name}: {kind} tell nobody where there is one address"
            if kind in bare[name]["Properties"] and bare[name]["Properties"][kind]:
                yield f"{name}: {kind} without an address"
        if alarm.get("Condition") not in (expected.ALL if name in expected.CAN_WAIT else expected.URGENT):
            yield f"{name}: is there under {alarm.get('Condition')}"


def dashboard_shows_what_is_written(template, full, bare):
    ours, shown = metrics_in_code(), set()
    (dashboard,) = of_type(full, "AWS::CloudWatch::Dashboard").values()
    text, _ = dashboard["Properties"]["DashboardBody"]["Fn::Sub"]
    for widget in json.loads(text)["widgets"]:
        for metric in widget["properties"]["metrics"]:
            if isinstance(metric[0], dict):
                search = re.search(r'\{"(.+)",(\w+)\} MetricName="(\w+)"', metric[0]["expression"])
                namespace, by, name = search.groups() if search else ("none", "", "")
                if namespace != expected.NAMESPACE:
                    yield f"{widget['properties']['title']}: searches {namespace}"
                if (by,) not in ours.get(name, set()):
                    yield f"{widget['properties']['title']}: no {name} by {by}"
                shown.add(name)
            elif metric[0] == expected.NAMESPACE:
                if () not in ours.get(metric[1], set()):
                    yield f"{widget['properties']['title']}: no {metric[1]} without dimensions"
                shown.add(metric[1])
            elif metric[0] != "..." and (metric[0], metric[1]) not in expected.METRICS_OF_AWS:
                yield f"{widget['properties']['title']}: {metric[0]} has no {metric[1]}"
    for name in sorted(set(ours) - shown):
        yield f"{name} is written and shown nowhere"


# What CloudWatch and Secrets Manager charge a month, in cents: an alarm's metric, a dashboard, a secret.
_ALARM, _DASHBOARD, _SECRET = 10, 300, 40


def the_idle_cost_is_the_documented_one(template, full, bare):
    """docs/cost.md has a row for each choice, with the number of metrics that the alarms watch, and the sum."""
    page = (ROOT / "docs" / "cost.md").read_text()

    def watched(conditions):
        alarms = of_type(full, "AWS::CloudWatch::Alarm").values()
        return sum(len(list(_watched(alarm["Properties"]))) for alarm in alarms if alarm["Condition"] in conditions)

    row = re.search(r"^\| without monitoring \| .* \| ([\d.]+) \|$", page, re.MULTILINE)
    secrets = [secret for secret in of_type(full, "AWS::SecretsManager::Secret").values() if "Condition" not in secret]
    if f"| secrets | {len(secrets)} × $0.40 | {len(secrets) * _SECRET / 100:.2f} |" not in page:
        yield f"docs/cost.md: {len(secrets)} secrets are not in the idle cost"
    if not row:
        yield "docs/cost.md: no row for a stack without monitoring"
        return
    rest = round(float(row.group(1)) * 100)
    for what, conditions, beside in (
        ("`Monitoring=urgent`", {"IsMonitored"}, 0),
        ("`Monitoring=enabled`, the default", {"IsMonitored", "IsMonitoredFully"}, _DASHBOARD),
    ):
        metrics = watched(conditions)
        sum_of_all = rest + metrics * _ALARM + beside
        wanted = rf"^\| {re.escape(what)} \| .*{metrics} metrics.* \| {sum_of_all / 100:.2f} \|$"
        if not re.search(wanted, page, re.MULTILINE):
            yield f"docs/cost.md: {what} has {metrics} metrics in alarms, together {sum_of_all / 100:.2f}"
    with_bus = watched({"IsMonitoredWithBus"})
    if not re.search(rf"^\| with a bus .*{with_bus} metrics", page, re.MULTILINE):
        yield f"docs/cost.md: a bus has {with_bus} more metrics in alarms"
    with_calls = watched({"IsMonitoredWithCalls"})
    if not re.search(rf"^\| with a queue of calls .*{with_calls} metrics", page, re.MULTILINE):
        yield f"docs/cost.md: a queue of calls has {with_calls} more metrics in alarms"


ALL = (
    the_idle_cost_is_the_documented_one,
    alarms_watch_what_exists,
    each_raised_alarm_is_watched,
    alarms_lead_to_a_runbook,
    dashboard_shows_what_is_written,
)
