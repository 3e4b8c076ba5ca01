"""The expected form of the deployed system from outside, and the permissions of each role.

These tables are written down a second time on purpose: a change of the template that nobody meant shows up as a
difference to them. An intended change is made in both, and the reviewer sees the permission in plain words.
"""

# (method, path) -> (function, who lets the caller in). "open" means that the function itself decides.
ROUTES = {
    ("GET", "/oauth/install"): ("callback", "open"),
    ("GET", "/oauth/callback"): ("callback", "open"),
    ("GET", "/oauth/callback/{any}"): ("callback", "open"),
    ("GET", "/oauth/done"): ("callback", "open"),
    ("POST", "/webhooks/marketplace"): ("webhook", "open"),
    ("ANY", "/relay/locations/{id}/{path+}"): ("relay", "open"),
    ("ANY", "/relay/companies/{id}/{path+}"): ("relay", "open"),
    ("GET", "/relay/locations/{id}"): ("relay", "open"),
    ("GET", "/relay/companies/{id}"): ("relay", "open"),
    ("ANY", "/api/{path+}"): ("relay", "open"),
    ("ANY", "/iam/relay/locations/{id}/{path+}"): ("relay", "AWS_IAM"),
    ("ANY", "/iam/relay/companies/{id}/{path+}"): ("relay", "AWS_IAM"),
    ("GET", "/iam/relay/locations/{id}"): ("relay", "AWS_IAM"),
    ("GET", "/iam/relay/companies/{id}"): ("relay", "AWS_IAM"),
}

# The alias that API Gateway and the event sources invoke.
GATEWAY_ALIAS = "live"

# Routes that a browser calls, on which anybody can make the callback work: requests a second, and at once.
THROTTLES = {route: (50, 100) for route in ("GET /oauth/install", "GET /oauth/callback", "GET /oauth/callback/{any}", "GET /oauth/done")}
# A throttled webhook is answered 429 and sent again. WebhookConcurrency changes these two.
THROTTLES["POST /webhooks/marketplace"] = (100, 400)

_EVERYWHERE = {"RUST_LOG", "TABLE_NAME", "APP_SECRET_ID", "GATEWAY_ALIAS", "METRICS_NAMESPACE", "SEALING_CONTEXT"}

# The namespace of the stack's own metrics. A second stack in the account has another one.
NAMESPACE = "HoopaiRelay/${AWS::StackName}"

# Environment of each function. An empty parameter counts as absent.
ENVIRONMENT = {
    "callback": _EVERYWHERE
    | {
        "SEALING_SECRET_ID",
        "API_URL",
        "PLATFORM_API",
        "TOKEN_REQUESTS_PER_MINUTE",
        "MARKETPLACE_URL",
        "AUTHORIZATION_PATH",
        "SCOPES",
        "APP_VERSION_ID",
        "LOGIN_WINDOW",
        "PUBLIC_URL",
        "MARKETPLACE_INSTALLS",
        "INSTALL_CHOICE",
        "BRAND_NAME",
        "ACCENT_COLOR",
        "SUPPORT_URL",
        "RESCUE_QUEUE_URL",
        "EVENT_BUS_NAME",
    },
    "relay": _EVERYWHERE
    | {
        "SEALING_SECRET_ID",
        "CALLERS_SECRET_ID",
        "API_URL",
        "PLATFORM_API",
        "TOKEN_REQUESTS_PER_MINUTE",
        "BURST_LIMIT",
        "BURST_LIMIT_MAX",
        "BURST_INTERVAL_MS",
        "DAILY_LIMIT",
        "DAILY_LIMIT_MAX",
        "RESCUE_QUEUE_URL",
        "CALLS_QUEUE_URL",
        "RESULTS_QUEUE_URL",
        "QUEUE_RESERVE",
        "EVENT_BUS_NAME",
    },
    "refresh": _EVERYWHERE
    | {
        "SEALING_SECRET_ID",
        "API_URL",
        "PLATFORM_API",
        "TOKEN_REQUESTS_PER_MINUTE",
        "BURST_LIMIT",
        "BURST_LIMIT_MAX",
        "BURST_INTERVAL_MS",
        "DAILY_LIMIT",
        "DAILY_LIMIT_MAX",
        "RESCUE_QUEUE_URL",
        "EVENT_BUS_NAME",
    },
    "webhook": _EVERYWHERE
    | {
        "SEALING_SECRET_ID",
        "API_URL",
        "PLATFORM_API",
        "BURST_LIMIT",
        "BURST_LIMIT_MAX",
        "BURST_INTERVAL_MS",
        "DAILY_LIMIT",
        "DAILY_LIMIT_MAX",
        "WEBHOOK_PUBLIC_KEYS",
        "WEBHOOK_SECRET_ID",
        "WEBHOOK_DEDUPE",
        "EVENT_BUS_NAME",
        "EVENTS_OVERFLOW_QUEUE_URL",
    },
}


def _logs_and_traces(group):
    return {
        ("logs:CreateLogStream", group, None),
        ("logs:PutLogEvents", group, None),
        ("xray:PutTraceSegments", "*", None),
        ("xray:PutTelemetryRecords", "*", None),
    }


def _read_and_write(*prefixes):
    return {(action, "Table", prefixes) for action in ("dynamodb:GetItem", "dynamodb:UpdateItem")}


def _write(*prefixes):
    return {("dynamodb:UpdateItem", "Table", prefixes)}


def _secrets(*secrets):
    return {("secretsmanager:GetSecretValue", secret, None) for secret in secrets}


# The list of companies, a partition of the index of what is due.
_COMPANIES = {("dynamodb:Query", "Table/index/due", ("companies",))}

# One row a permission: action, resource, and for items the prefixes of their keys.
PERMISSIONS = {
    "callback": _read_and_write("app#api", "app#breaker", "installation#*", "redirect#*")
    | _write("app#company#*", "exchanges#*")
    | _secrets("AppSecret", "SealingSecret")
    | {("sqs:SendMessage", "RescueQueue", None)}
    | _logs_and_traces("CallbackLogs"),
    "relay": _read_and_write("app#*", "call#*", "installation#*", "quota#*")
    | _write("caller-quota#*", "minter-quota#*", "turns#*")
    | _COMPANIES
    | _secrets("AppSecret", "SealingSecret", "CallersSecret")
    | {("sqs:SendMessage", "RescueQueue", None), ("sqs:GetQueueAttributes", "RescueQueue", None)}
    | _logs_and_traces("RelayLogs"),
    "refresh": _read_and_write("app#*", "installation#*", "quota#*")
    | _write("minter-quota#*")
    | {("dynamodb:BatchGetItem", "Table", ("quota#*",))}
    | {("dynamodb:Query", "Table/index/due", None), ("dynamodb:Query", "Table/index/company", None)}
    | _secrets("AppSecret", "SealingSecret")
    | {
        ("sqs:SendMessage", "RescueQueue", None),
        ("sqs:ReceiveMessage", "RescueQueue", None),
        ("sqs:ChangeMessageVisibility", "RescueQueue", None),
        ("sqs:DeleteMessage", "RescueQueue", None),
        ("sqs:GetQueueAttributes", "RescueQueue", None),
    }
    | _logs_and_traces("RefreshLogs"),
    "webhook": _read_and_write("app#api", "installation#*", "quota#*")
    | _write("app#company#*", "minter-quota#*", "webhook#*")
    | _COMPANIES
    | _secrets("AppSecret", "SealingSecret")
    | _logs_and_traces("WebhookLogs"),
}

# On top of these, and only where there is a bus.
_PUT_EVENTS = {("events:PutEvents", "event-bus/EventBusName", None)}
PERMISSIONS_OF_A_BUS = {
    "callback": _PUT_EVENTS,
    "relay": _PUT_EVENTS,
    "refresh": _PUT_EVENTS | {("dynamodb:Query", "Table/index/outbox", None)},
    "webhook": _PUT_EVENTS
    | {
        ("sqs:SendMessage", "EventsOverflow", None),
        ("sqs:ReceiveMessage", "EventsOverflow", None),
        ("sqs:DeleteMessage", "EventsOverflow", None),
        ("sqs:GetQueueAttributes", "EventsOverflow", None),
    },
}

# On top of these, and only where there is a queue of calls.
PERMISSIONS_OF_CALLS = {
    "relay": {
        ("sqs:ReceiveMessage", "Calls", None),
        ("sqs:DeleteMessage", "Calls", None),
        ("sqs:GetQueueAttributes", "Calls", None),
        ("sqs:ChangeMessageVisibility", "Calls", None),
        ("sqs:SendMessage", "Calls", None),
        ("sqs:SendMessage", "CallResults", None),
        ("sqs:GetQueueUrl", "CallFailures", None),
        ("sqs:SendMessage", "CallFailures", None),
    }
}

# On top of these, and only where webhooks may be signed with a shared secret.
PERMISSIONS_OF_HMAC = {"webhook": _secrets("WebhookSecret")}

# The role of the schedule.
SCHEDULE_PERMISSIONS = {
    ("lambda:InvokeFunction", f"RefreshFunctionAlias{GATEWAY_ALIAS}", None),
    ("sqs:SendMessage", "ScheduleFailures", None),
}

# Roles that have a policy of AWS, and nothing else.
MANAGED_POLICIES = {
    "RolloutRole": ["arn:${AWS::Partition}:iam::aws:policy/service-role/AWSCodeDeployRoleForLambdaLimited"],
}

# An update is rolled back if one of these is raised while it is tried.
ROLLBACK_ALARMS = {"FunctionErrorsAlarm", "RelayErrorsAlarm", "InstallFailuresAlarm", "PairAtRiskAlarm"}

# Actions that know no resources, so that AWS demands the wildcard.
MAY_BE_WILDCARD = {"xray:PutTraceSegments", "xray:PutTelemetryRecords"}

# Resources that are there only under a condition.
ON_DEMAND = {
    "Domain": "HasDomain",
    "DomainMapping": "HasDomain",
    "DomainRecord": "HasHostedZone",
    "WebhookSecret": "HasWebhookHmac",
    "RelayCalls": "HasCalls",
    "Calls": "HasCalls",
    "CallFailures": "HasCalls",
    "CallResults": "HasCalls",
    "WebhookOverflow": "HasEventBus",
    "EventsOverflow": "HasEventBus",
    "EventsOverflowFailures": "HasEventBus",
    "EventArchive": "HasEventArchive",
}

# The parameters that every deployment decides. README.md says where each value is found.
TO_DECIDE = ["ClientId", "AuthorizationPath", "AppVersionId", "PublicUrl"]

# The outputs of a deployment; README and docs name them.
OUTPUTS = {
    "ApiUrl",
    "InstallUrl",
    "CallbackUrl",
    "WebhookUrl",
    "RelayUrl",
    "DropInUrl",
    "DomainTarget",
    "PutClientSecret",
    "PutWebhookSecret",
    "OperatorEnvironment",
    "CallbackFunctionArn",
    "RelayFunctionArn",
    "RefreshFunctionArn",
    "WebhookFunctionArn",
    "AppSecretArn",
    "CallersSecretArn",
    "SealingSecretArn",
    "TableName",
    "CallsQueueUrl",
    "CallResultsUrl",
    "CallFailuresUrl",
    "RescueQueueUrl",
    "RescueFailuresUrl",
    "ApiLogGroup",
    "AlarmTopicArn",
    "NoticeTopicArn",
}

# All alarms; the runbook of each is in docs/operations.md.
ALARMS = {
    "RescueQueueAlarm",
    "PairAtRiskAlarm",
    "RescueFailuresAlarm",
    "ScheduleFailuresAlarm",
    "RefreshNotRunAlarm",
    "OldestDueAlarm",
    "TokenPaceAlarm",
    "BreakerOpenAlarm",
    "MassRefusalAlarm",
    "NeedsReauthorizationAlarm",
    "RelayErrorsAlarm",
    "InstallFailuresAlarm",
    "InstallRefusalsAlarm",
    "WebhookFailuresAlarm",
    "UnsealAlarm",
    "ConfigurationAlarm",
    "OddAnswersAlarm",
    "EventsAlarm",
    "EventsOverflowAlarm",
    "EventsOverflowFailuresAlarm",
    "CallFailuresAlarm",
    "CallsHeldUpAlarm",
    "CallsUnknownAlarm",
    "EventTruncatedAlarm",
    "ApiErrorsAlarm",
    "FunctionErrorsAlarm",
    "ThrottlesAlarm",
}

# The alarms that can wait until morning. All others wake somebody.
CAN_WAIT = {
    "ScheduleFailuresAlarm",
    "InstallRefusalsAlarm",
    "OddAnswersAlarm",
    "EventsAlarm",
    "EventsOverflowAlarm",
    "EventsOverflowFailuresAlarm",
    "CallFailuresAlarm",
    "CallsHeldUpAlarm",
    "CallsUnknownAlarm",
    "EventTruncatedAlarm",
    "ThrottlesAlarm",
    "TokenPaceAlarm",
}

# The conditions of alarms: Monitoring=urgent makes only those that wake somebody.
URGENT, ALL = {"IsMonitored"}, {"IsMonitoredFully", "IsMonitoredWithBus", "IsMonitoredWithCalls"}

# For these no news is bad news; for all others no data means that nothing happened.
SILENCE_IS_AN_ALARM = {"RefreshNotRunAlarm"}

# Raised in the code and heard of by another metric: a pair on the queue is in its depth.
ALARMS_SEEN_OTHERWISE = {"rescued", "rescue"}

# Metrics that AWS itself writes, and what tells them apart: sets of dimensions.
_OF_THE_TABLE = {("TableName",), ("GlobalSecondaryIndexName", "TableName")}
METRICS_OF_AWS = {
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible"): {("QueueName",)},
    ("AWS/SQS", "ApproximateNumberOfMessagesNotVisible"): {("QueueName",)},
    ("AWS/SQS", "ApproximateAgeOfOldestMessage"): {("QueueName",)},
    ("AWS/ApiGateway", "5xx"): {("ApiId",)},
    ("AWS/Lambda", "Errors"): {("FunctionName",)},
    ("AWS/Lambda", "Throttles"): {("FunctionName",)},
    ("AWS/Lambda", "Duration"): {("FunctionName",)},
    ("AWS/DynamoDB", "ReadThrottleEvents"): _OF_THE_TABLE,
    ("AWS/DynamoDB", "WriteThrottleEvents"): _OF_THE_TABLE,
}

# The most metrics that one alarm takes (CloudWatch User Guide, "Create a CloudWatch alarm based on a metric math expression").
METRICS_OF_AN_ALARM = 10
