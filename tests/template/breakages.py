"""Templates broken on purpose: the check that must notice, what is wrong, and the edit."""

import checks
import monitoring
import parameters


def _function(template, name):
    return template["Resources"][f"{name}Function"]["Properties"]


def _role(template, name):
    return template["Resources"][f"{name}Role"]["Properties"]


def _statement(template, role, sid):
    statements = _role(template, role)["Policies"][0]["PolicyDocument"]["Statement"]
    return next(statement for statement in statements if statement.get("Sid") == sid)


def _resource(template, name):
    return template["Resources"][name]["Properties"]


def _dashboard(template, old, new):
    text, values = _resource(template, "Dashboard")["DashboardBody"]["Fn::Sub"]
    return {"Fn::Sub": [text.replace(old, new), values]}


BREAKAGES = [
    (
        checks.functions_are_the_four_binaries,
        "relay is built from another binary",
        lambda t: t["Resources"]["RelayFunction"]["Metadata"]["BuildProperties"].update(Binary="refresh"),
    ),
    (
        checks.functions_are_the_four_binaries,
        "a log group without retention",
        lambda t: t["Resources"].update(RelayLogs={"Type": "AWS::Logs::LogGroup", "Properties": {}}),
    ),
    (
        checks.routes_are_the_contracts,
        "a route is gone",
        lambda t: _function(t, "Callback")["Events"].pop("Done"),
    ),
    (
        checks.routes_are_the_contracts,
        "a route too many",
        lambda t: _function(t, "Relay")["Events"]["DropIn"]["Properties"].update(Path="/{path+}"),
    ),
    (
        checks.routes_are_the_contracts,
        "an IAM route without its authorizer",
        lambda t: _function(t, "Relay")["Events"]["IamCompany"]["Properties"].pop("Auth"),
    ),
    (
        checks.routes_are_the_contracts,
        "payload 1.0",
        lambda t: _function(t, "Relay")["Events"]["Location"]["Properties"].update(PayloadFormatVersion="1.0"),
    ),
    (
        checks.only_the_api_and_the_schedule_may_invoke,
        "anyone may invoke the relay",
        lambda t: t["Resources"].update(
            Open={
                "Type": "AWS::Lambda::Permission",
                "Properties": {
                    "Action": "lambda:InvokeFunction",
                    "FunctionName": {"Ref": "RelayFunction"},
                    "Principal": "*",
                },
            }
        ),
    ),
    (
        checks.only_the_gateways_alias_is_invoked,
        "no alias",
        lambda t: [t["Globals"]["Function"].pop(member) for member in ("AutoPublishAlias", "DeploymentPreference")],
    ),
    (
        checks.only_the_gateways_alias_is_invoked,
        "another alias than the functions expect",
        lambda t: _function(t, "Relay").update(AutoPublishAlias="prod"),
    ),
    (
        checks.only_the_gateways_alias_is_invoked,
        "functions that expect another alias",
        lambda t: t["Globals"]["Function"]["Environment"]["Variables"].update(GATEWAY_ALIAS="prod"),
    ),
    (
        checks.only_the_gateways_alias_is_invoked,
        "a permission on the whole function",
        lambda t: t["Resources"].update(
            Open={
                "Type": "AWS::Lambda::Permission",
                "Properties": {
                    "Action": "lambda:InvokeFunction",
                    "FunctionName": {"Ref": "RelayFunction"},
                    "Principal": "apigateway.amazonaws.com",
                    "SourceArn": "arn",
                },
            }
        ),
    ),
    (
        checks.only_the_gateways_alias_is_invoked,
        "a queue that invokes the function itself",
        lambda t: t["Resources"].update(
            Unqualified={
                "Type": "AWS::Lambda::EventSourceMapping",
                "Properties": {"FunctionName": {"Ref": "RefreshFunction"}},
            }
        ),
    ),
    (
        checks.every_change_publishes_a_version,
        "only the code counts",
        lambda t: _function(t, "Refresh").pop("AutoPublishAliasAllProperties"),
    ),
    (
        checks.every_change_publishes_a_version,
        "a parameter that publishes nothing",
        lambda t: _resource(t, "Settings")["Content"].update(
            {"Fn::Sub": _resource(t, "Settings")["Content"]["Fn::Sub"].replace("LogLevel=${LogLevel}\n", "")}
        ),
    ),
    (
        checks.every_change_publishes_a_version,
        "a parameter of a condition that publishes nothing",
        lambda t: _resource(t, "Settings")["Content"].update(
            {"Fn::Sub": _resource(t, "Settings")["Content"]["Fn::Sub"].replace("DomainName=${DomainName}\n", "")}
        ),
    ),
    (
        checks.every_change_publishes_a_version,
        "a version that does not change with the settings",
        lambda t: _function(t, "Webhook").pop("VersionDescription"),
    ),
    (
        checks.an_update_is_tried_before_all_invocations_use_it,
        "an update that no alarm rolls back",
        lambda t: t["Globals"]["Function"]["DeploymentPreference"].pop("Alarms"),
    ),
    (
        checks.an_update_is_tried_before_all_invocations_use_it,
        "a function whose update is not tried",
        lambda t: _function(t, "Relay").update(DeploymentPreference={"Enabled": False}),
    ),
    (
        checks.an_update_is_tried_before_all_invocations_use_it,
        "SAM makes CodeDeploy's role",
        lambda t: t["Globals"]["Function"]["DeploymentPreference"].pop("Role"),
    ),
    (
        checks.an_update_is_tried_before_all_invocations_use_it,
        "an alarm that keeps its own repair out",
        lambda t: t["Conditions"].update(HasRollbackAlarms={"Condition": "IsMonitored"}),
    ),
    (
        checks.an_update_is_tried_before_all_invocations_use_it,
        "alarms that do not exist without monitoring",
        lambda t: t["Globals"]["Function"]["DeploymentPreference"].update(Alarms=[{"Ref": "RelayErrorsAlarm"}]),
    ),
    (
        checks.environment_is_what_the_code_reads,
        "a misspelt variable",
        lambda t: _function(t, "Relay")["Environment"]["Variables"].update(DAYLY_LIMIT="1"),
    ),
    (
        checks.environment_is_what_the_code_reads,
        "a variable of another function",
        lambda t: _function(t, "Relay")["Environment"]["Variables"].update(PUBLIC_URL="https://connect.example.com"),
    ),
    (
        checks.environment_is_what_the_code_reads,
        "a variable that the code needs is gone",
        lambda t: t["Globals"]["Function"]["Environment"]["Variables"].pop("TABLE_NAME"),
    ),
    (
        checks.environment_is_what_the_code_reads,
        "all stacks have one namespace of metrics",
        lambda t: t["Globals"]["Function"]["Environment"]["Variables"].update(METRICS_NAMESPACE="HoopaiRelay"),
    ),
    (
        checks.defaults_and_ranges_are_the_codes,
        "another host of the platform",
        lambda t: t["Parameters"]["ApiUrl"].update(Default="https://example.com"),
    ),
    (
        checks.defaults_and_ranges_are_the_codes,
        "a limit that the code refuses at start",
        lambda t: t["Parameters"]["BurstIntervalMs"].update(AllowedPattern="^([1-9][0-9]{3,5})?$"),
    ),
    (
        checks.roles_hold_exactly_the_expected_permissions,
        "one action too many",
        lambda t: _statement(t, "Webhook", "Items")["Action"].append("dynamodb:DeleteItem"),
    ),
    (
        checks.roles_hold_exactly_the_expected_permissions,
        "one action too few",
        lambda t: _statement(t, "Refresh", "RescuePairs")["Action"].remove("sqs:DeleteMessage"),
    ),
    (
        checks.roles_hold_exactly_the_expected_permissions,
        "the callback may write quotas",
        lambda t: _statement(t, "Callback", "Items")["Condition"]["ForAllValues:StringLike"].update(
            {"dynamodb:LeadingKeys": ["installation#*", "quota#*"]}
        ),
    ),
    (
        checks.roles_hold_exactly_the_expected_permissions,
        "the webhook reads the callers",
        lambda t: _statement(t, "Webhook", "Secrets").update(
            Resource=[{"Ref": "AppSecret"}, {"Ref": "SealingSecret"}, {"Ref": "CallersSecret"}]
        ),
    ),
    (
        checks.roles_hold_exactly_the_expected_permissions,
        "the relay reads everything that is due",
        lambda t: _statement(t, "Relay", "Companies").pop("Condition"),
    ),
    (
        checks.roles_hold_exactly_the_expected_permissions,
        "SAM makes the role, with managed policies",
        lambda t: _role(t, "Relay").update(
            ManagedPolicyArns=["arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"]
        ),
    ),
    (
        checks.roles_hold_exactly_the_expected_permissions,
        "events without a bus",
        lambda t: _role(t, "Relay")["Policies"][0]["PolicyDocument"]["Statement"].append(
            {"Effect": "Allow", "Action": "events:PutEvents", "Resource": {"Ref": "EventBusName"}}
        ),
    ),
    (
        checks.roles_hold_exactly_the_expected_permissions,
        "a request without a key passes",
        lambda t: _statement(t, "Webhook", "Items")["Condition"].pop("Null"),
    ),
    (
        checks.roles_hold_exactly_the_expected_permissions,
        "SAM makes the schedule's role",
        lambda t: _function(t, "Refresh")["Events"]["EveryMinute"]["Properties"].pop("RoleArn"),
    ),
    (
        checks.roles_hold_exactly_the_expected_permissions,
        "a schedule of another account uses the role",
        lambda t: _role(t, "Schedule")["AssumeRolePolicyDocument"]["Statement"][0].pop("Condition"),
    ),
    (
        checks.wildcards_only_where_aws_demands_them,
        "all tables",
        lambda t: _statement(t, "Refresh", "Lists").update(Resource="*"),
    ),
    (
        checks.wildcards_only_where_aws_demands_them,
        "all items",
        lambda t: _statement(t, "Relay", "Items").pop("Condition"),
    ),
    (
        checks.times_fit_into_each_other,
        "a route with a time-out that nobody has written",
        lambda t: _function(t, "Relay")["Events"]["DropIn"]["Properties"].pop("TimeoutInMillis"),
    ),
    (
        checks.times_fit_into_each_other,
        "a route whose caller never gets the relay's own 504",
        lambda t: _function(t, "Relay")["Events"]["IamLocation"]["Properties"].update(TimeoutInMillis=28_000),
    ),
    (
        checks.times_fit_into_each_other,
        "the API gives up before the relay",
        lambda t: _function(t, "Relay").update(Timeout=30),
    ),
    (
        checks.times_fit_into_each_other,
        "a rescued pair comes back while it is being stored",
        lambda t: _resource(t, "RescueQueue").update(VisibilityTimeout=75),
    ),
    (
        checks.times_fit_into_each_other,
        "a rescued pair waits for minutes after a crash",
        lambda t: _resource(t, "RescueQueue").update(VisibilityTimeout=450),
    ),
    (
        checks.times_fit_into_each_other,
        "a rescued pair is given up within hours",
        lambda t: _resource(t, "RescueQueue")["RedrivePolicy"].update(maxReceiveCount=48),
    ),
    (
        checks.times_fit_into_each_other,
        "an event is delivered again while it is being published",
        lambda t: _resource(t, "EventsOverflow").update(VisibilityTimeout=30),
    ),
    (
        checks.webhooks_fit_into_their_concurrency,
        "more webhooks at once than there is concurrency for",
        lambda t: t["Mappings"]["WebhookThrottle"]["250"].update(Burst=200),
    ),
    (
        checks.webhooks_fit_into_their_concurrency,
        "a choice without a throttle",
        lambda t: t["Parameters"]["WebhookConcurrency"]["AllowedValues"].append(2000),
    ),
    (
        checks.webhooks_fit_into_their_concurrency,
        "the overflow queue takes all concurrency",
        lambda t: _resource(t, "WebhookOverflow").pop("ScalingConfig"),
    ),
    (
        checks.events_are_kept_and_can_be_replayed,
        "an archive without the platform's events",
        lambda t: _resource(t, "EventArchive").update(EventPattern={"source": ["hoopai.relay"]}),
    ),
    (
        checks.nothing_that_matters_is_lost,
        "the overflow queue goes with the bus",
        lambda t: t["Resources"]["EventsOverflow"].pop("DeletionPolicy"),
    ),
    (
        checks.roles_hold_exactly_the_expected_permissions,
        "a secret of webhooks that nobody asked for",
        lambda t: _statement(t, "Webhook", "Secrets")["Resource"].append({"Ref": "WebhookSecret"}),
    ),
    (
        checks.table_is_the_one_the_tests_use,
        "an index without an attribute that its reader needs",
        lambda t: _resource(t, "Table")["GlobalSecondaryIndexes"][0]["Projection"]["NonKeyAttributes"].remove("status"),
    ),
    (
        checks.table_is_the_one_the_tests_use,
        "a number as text",
        lambda t: _resource(t, "Table")["AttributeDefinitions"][2].update(AttributeType="S"),
    ),
    (
        checks.nothing_that_matters_is_lost,
        "the table goes with the stack",
        lambda t: t["Resources"]["Table"].pop("DeletionPolicy"),
    ),
    (
        checks.nothing_that_matters_is_lost,
        "a table that nobody can protect",
        lambda t: _resource(t, "Table").update(DeletionProtectionEnabled=False),
    ),
    (
        checks.nothing_that_matters_is_lost,
        "a table that a failed first deployment leaves behind",
        lambda t: _resource(t, "Table").update(DeletionProtectionEnabled=True),
    ),
    (
        checks.nothing_that_matters_is_lost,
        "secrets that a failed first deployment leaves behind",
        lambda t: t["Resources"]["SealingSecret"].update(DeletionPolicy="Retain"),
    ),
    (
        checks.nothing_that_matters_is_lost,
        "a table whose key is charged for each use",
        lambda t: _resource(t, "Table").update(SSESpecification={"SSEEnabled": True}),
    ),
    (
        checks.nothing_that_matters_is_lost,
        "no point-in-time recovery",
        lambda t: _resource(t, "Table").pop("PointInTimeRecoverySpecification"),
    ),
    (
        checks.nothing_that_matters_is_lost,
        "whole batches are repeated",
        lambda t: _function(t, "Refresh")["Events"]["Rescue"]["Properties"].pop("FunctionResponseTypes"),
    ),
    (
        checks.nothing_that_matters_is_lost,
        "a schedule every five minutes",
        lambda t: _function(t, "Refresh")["Events"]["EveryMinute"]["Properties"].update(ScheduleExpression="rate(5 minutes)"),
    ),
    (
        checks.what_is_optional_comes_only_when_asked_for,
        "a role escapes the boundary",
        lambda t: _role(t, "Refresh").pop("PermissionsBoundary"),
    ),
    (
        checks.what_is_optional_comes_only_when_asked_for,
        "the schedule's role escapes the boundary",
        lambda t: _role(t, "Schedule").pop("PermissionsBoundary"),
    ),
    (
        checks.what_is_optional_comes_only_when_asked_for,
        "concurrency is always reserved",
        lambda t: _function(t, "Refresh").update(ReservedConcurrentExecutions=10),
    ),
    (
        checks.what_is_optional_comes_only_when_asked_for,
        "the callback reserves no concurrency",
        lambda t: _function(t, "Callback").pop("ReservedConcurrentExecutions"),
    ),
    (
        checks.what_is_optional_comes_only_when_asked_for,
        "a record without a zone",
        lambda t: t["Resources"]["DomainRecord"].update(Condition="HasDomain"),
    ),
    (
        checks.the_api_is_bounded_and_logs_no_code,
        "no throttling",
        lambda t: _resource(t, "Api").pop("DefaultRouteSettings"),
    ),
    (
        checks.the_api_is_bounded_and_logs_no_code,
        "a redirect without a throttle of its own",
        lambda t: _resource(t, "Api")["RouteSettings"].pop("GET /oauth/callback/{any}"),
    ),
    (
        checks.the_api_is_bounded_and_logs_no_code,
        "a throttle that lets everything through",
        lambda t: _resource(t, "Api")["RouteSettings"].update({"GET /oauth/callback": {"ThrottlingRateLimit": 1000, "ThrottlingBurstLimit": 1000}}),
    ),
    (
        checks.the_api_is_bounded_and_logs_no_code,
        "a callback that may take all concurrency",
        lambda t: t["Parameters"]["CallbackConcurrency"].update(Default=0),
    ),
    (
        checks.the_api_is_bounded_and_logs_no_code,
        "an access log that fills the resource policy",
        lambda t: _resource(t, "ApiLogs").pop("LogGroupName"),
    ),
    (
        checks.the_api_is_bounded_and_logs_no_code,
        "the path is logged",
        lambda t: _resource(t, "Api")["AccessLogSettings"].update(Format="$context.status $context.path"),
    ),
    (
        checks.a_failed_tick_is_not_repeated_and_a_lost_one_is_seen,
        "Lambda repeats a failed tick",
        lambda t: _function(t, "Refresh")["EventInvokeConfig"].update(MaximumRetryAttempts=2),
    ),
    (
        checks.a_failed_tick_is_not_repeated_and_a_lost_one_is_seen,
        "a tick of yesterday",
        lambda t: _function(t, "Refresh")["Events"]["EveryMinute"]["Properties"].pop("RetryPolicy"),
    ),
    (
        checks.a_second_stack_finds_every_name_free,
        "SAM names the schedule",
        lambda t: _function(t, "Refresh")["Events"]["EveryMinute"]["Properties"].pop("OmitName"),
    ),
    (
        checks.no_resource_depends_on_itself,
        "a rollback by an alarm that needs the API",
        lambda t: t["Globals"]["Function"]["DeploymentPreference"]["Alarms"]["Fn::If"][1].append({"Ref": "ApiErrorsAlarm"}),
    ),
    (
        checks.no_resource_depends_on_itself,
        "two roles that name each other",
        lambda t: [_role(t, one).update(Description={"Ref": f"{other}Role"}) for one, other in (("Relay", "Webhook"), ("Webhook", "Relay"))],
    ),
    (
        checks.a_second_stack_finds_every_name_free,
        "a log group that a second stack would have, too",
        lambda t: _resource(t, "ApiLogs").update(LogGroupName={"Fn::Sub": "/aws/vendedlogs/${AWS::Region}/api"}),
    ),
    (
        checks.outputs_are_the_documented_ones,
        "an output is gone",
        lambda t: t["Outputs"].pop("RelayUrl"),
    ),
    (
        checks.outputs_are_the_documented_ones,
        "operators are not told a queue",
        lambda t: t["Outputs"].update(
            OperatorEnvironment={"Value": t["Outputs"]["OperatorEnvironment"]["Value"]["Fn::Sub"][0].replace("RESCUE_FAILURES_URL", "X")}
        ),
    ),
    (
        checks.secrets_have_the_contracts_form,
        "a short sealing key",
        lambda t: _resource(t, "SealingSecret")["GenerateSecretString"].update(PasswordLength=16),
    ),
    (
        checks.parameters_are_grouped_and_explained,
        "a parameter in no group",
        lambda t: t["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"][1]["Parameters"].remove("Scopes"),
    ),
    (
        parameters.is_written_from_the_template,
        "a default that the page does not have",
        lambda t: t["Parameters"]["LogRetentionDays"].update(Default=90),
    ),
    (
        checks.parameters_are_grouped_and_explained,
        "what decides is hidden",
        lambda t: t["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"].reverse(),
    ),
    (
        checks.parameters_are_grouped_and_explained,
        "a parameter that takes anything",
        lambda t: t["Parameters"]["ClientId"].pop("AllowedPattern"),
    ),
    (
        monitoring.alarms_watch_what_exists,
        "an alarm for a metric that nobody writes",
        lambda t: _resource(t, "OldestDueAlarm").update(MetricName="OldestAge"),
    ),
    (
        monitoring.alarms_watch_what_exists,
        "an alarm that another stack's metrics keep quiet",
        lambda t: _resource(t, "RefreshNotRunAlarm").update(Namespace="HoopaiRelay"),
    ),
    (
        monitoring.alarms_watch_what_exists,
        "an alarm by a dimension that the metric does not have",
        lambda t: _resource(t, "BreakerOpenAlarm").update(Dimensions=[{"Name": "outcome", "Value": "open"}]),
    ),
    (
        monitoring.alarms_watch_what_exists,
        "an alarm for an outcome that nothing has",
        lambda t: _resource(t, "NeedsReauthorizationAlarm")["Dimensions"][0].update(Value="NeedsReauth"),
    ),
    (
        monitoring.alarms_watch_what_exists,
        "an alarm for a queue of that name only",
        lambda t: _resource(t, "RescueFailuresAlarm")["Dimensions"][0].update(Value="RescueFailures"),
    ),
    (
        monitoring.alarms_watch_what_exists,
        "a schedule that stands still is fine",
        lambda t: _resource(t, "RefreshNotRunAlarm").update(TreatMissingData="notBreaching"),
    ),
    (
        monitoring.alarms_watch_what_exists,
        "an alarm that is over before its lines arrive",
        lambda t: _resource(t, "PairAtRiskAlarm").update(EvaluationPeriods=1),
    ),
    (
        monitoring.alarms_watch_what_exists,
        "an alarm is gone",
        lambda t: t["Resources"].pop("ThrottlesAlarm"),
    ),
    (
        monitoring.each_raised_alarm_is_watched,
        "an alarm that nobody hears of",
        lambda t: t["Resources"].pop("UnsealAlarm"),
    ),
    (
        monitoring.alarms_lead_to_a_runbook,
        "a runbook that does not exist",
        lambda t: _resource(t, "UnsealAlarm").update(AlarmDescription={"Fn::Sub": "Look. ${RunbookUrl}#nothing"}),
    ),
    (
        monitoring.alarms_watch_what_exists,
        "an index whose throttles nobody sees",
        lambda t: _resource(t, "ThrottlesAlarm")["Metrics"].pop(),
    ),
    (
        monitoring.alarms_watch_what_exists,
        "an index that the table does not have",
        lambda t: _resource(t, "ThrottlesAlarm")["Metrics"][-1]["MetricStat"]["Metric"]["Dimensions"][1].update(Value="companies"),
    ),
    (
        monitoring.alarms_lead_to_a_runbook,
        "an odd answer wakes somebody",
        lambda t: _resource(t, "OddAnswersAlarm").update(AlarmActions=_resource(t, "UnsealAlarm")["AlarmActions"]),
    ),
    (
        monitoring.alarms_lead_to_a_runbook,
        "a notice that nobody gets without an address of its own",
        lambda t: _resource(t, "OddAnswersAlarm").update(AlarmActions={"Fn::If": ["HasNoticeEmail", [{"Ref": "NoticeTopic"}], []]}),
    ),
    (
        monitoring.alarms_lead_to_a_runbook,
        "an urgent alarm that Monitoring=urgent leaves out",
        lambda t: t["Resources"]["UnsealAlarm"].update(Condition="IsMonitoredFully"),
    ),
    (
        monitoring.the_idle_cost_is_the_documented_one,
        "an alarm that costs more than documented",
        lambda t: _resource(t, "RelayErrorsAlarm")["Metrics"].append(_resource(t, "RelayErrorsAlarm")["Metrics"][1]),
    ),
    (
        monitoring.the_idle_cost_is_the_documented_one,
        "a secret that is not in the sum",
        lambda t: t["Resources"]["WebhookSecret"].pop("Condition"),
    ),
    (
        monitoring.alarms_lead_to_a_runbook,
        "a runbook of a relative path",
        lambda t: t["Parameters"]["RunbookUrl"].update(AllowedPattern="^[a-z/.:]+$"),
    ),
    (
        monitoring.alarms_lead_to_a_runbook,
        "an alarm that tells nobody",
        lambda t: _resource(t, "UnsealAlarm").pop("AlarmActions"),
    ),
    (
        monitoring.dashboard_shows_what_is_written,
        "a widget of nothing",
        lambda t: _resource(t, "Dashboard").update(
            DashboardBody=_dashboard(t, "OldestDueAge", "OldestAge")
        ),
    ),
    (
        checks.a_restored_table_takes_the_place_of_the_stacks_own,
        "a dashboard of the table that was lost",
        lambda t: _resource(t, "Dashboard").update(
            DashboardBody=_dashboard(t, "${TableName}", "${Table}")
        ),
    ),
    (
        monitoring.dashboard_shows_what_is_written,
        "a widget that searches the metrics of all stacks",
        lambda t: _resource(t, "Dashboard").update(
            DashboardBody=_dashboard(t, '\\"HoopaiRelay/${AWS::StackName}\\"', "HoopaiRelay")
        ),
    ),
    (
        checks.a_restored_table_takes_the_place_of_the_stacks_own,
        "a role that may use only the stack's own table",
        lambda t: _statement(t, "Refresh", "Items").update(Resource={"Fn::GetAtt": "Table.Arn"}),
    ),
]
