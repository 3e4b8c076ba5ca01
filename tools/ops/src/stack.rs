//! The deployed stack: the parts that the functions use, and the resources that only an operator uses.

use std::error::Error as _;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_dynamodb::config::ProvideCredentials as _;
use aws_sdk_lambda::config::retry::RetryConfig;
use aws_sdk_lambda::config::timeout::TimeoutConfig;
use shared::app::{App, aws_defaults};
use shared::config::{self, AppConfig, Authorization, ConfigError, Reader, ReportedProblem, variable};
use shared::domain::clock::Clock;
use shared::secrets::edit::EditedSecret;

use crate::error::CommandError;
use crate::print::note;

/// The name of the rescue queue in [`Stack::queues`].
pub(crate) const RESCUE_QUEUE: &str = "rescue queue";
/// The name of its dead-letter queue in [`Stack::queues`].
pub(crate) const RESCUE_FAILURES: &str = "dead-letter queue of the rescue queue";
/// Time-out of an invocation. Longer than the time-out of the function.
const INVOCATION: Duration = Duration::from_secs(90);

/// The operator's configuration.
pub(crate) struct OperatorConfig {
    app: AppConfig,
    authorization: Authorization,
    callers_secret_id: String,
    refresh_function: Option<String>,
    relay_function: Option<String>,
    rescue_failures_url: Option<String>,
    webhook_secret_id: Option<String>,
    overflow_queue_url: Option<String>,
    overflow_failures_url: Option<String>,
    event_archive_arn: Option<String>,
    calls: CallQueues,
    log_groups: Option<String>,
}

/// The URLs of the queues of the queue door. None of them is set if the stack has no queue of calls.
#[derive(Clone, Debug)]
pub(crate) struct CallQueues {
    /// The queue of calls.
    pub(crate) calls: Option<String>,
    /// The queue of results.
    pub(crate) results: Option<String>,
    /// The dead-letter queue of the queue of calls.
    pub(crate) failures: Option<String>,
}

impl OperatorConfig {
    /// Reads the configuration from the environment.
    pub(crate) fn from_env() -> Result<Self, ConfigError> {
        config::read(&variable, Self::read)
    }

    fn read(env: &mut Reader<'_>) -> Result<Self, ReportedProblem> {
        let (app, callers_secret_id) = (AppConfig::read(env), env.required("CALLERS_SECRET_ID"));
        let authorization = Authorization::read(env);
        let rescue_failures_url = env.optional_url("RESCUE_FAILURES_URL");
        let overflow_queue_url = env.optional_url("EVENTS_OVERFLOW_QUEUE_URL");
        let overflow_failures_url = env.optional_url("EVENTS_OVERFLOW_FAILURES_URL");
        let calls = ["CALLS_QUEUE_URL", "RESULTS_QUEUE_URL", "CALLS_FAILURES_URL"].map(|name| env.optional_url(name));
        let [calls_url, results_url, failures_url] = calls;
        Ok(Self {
            app: app?,
            authorization: authorization?,
            callers_secret_id: callers_secret_id?,
            refresh_function: env.optional("REFRESH_FUNCTION"),
            relay_function: env.optional("RELAY_FUNCTION"),
            rescue_failures_url: rescue_failures_url?.map(String::from),
            webhook_secret_id: env.optional("WEBHOOK_SECRET_ID"),
            overflow_queue_url: overflow_queue_url?.map(String::from),
            overflow_failures_url: overflow_failures_url?.map(String::from),
            event_archive_arn: env.optional("EVENT_ARCHIVE_ARN"),
            calls: CallQueues {
                calls: calls_url?.map(String::from),
                results: results_url?.map(String::from),
                failures: failures_url?.map(String::from),
            },
            log_groups: env.optional("LOG_GROUPS"),
        })
    }
}

/// The deployed system.
pub(crate) struct Stack {
    /// The parts that the functions use.
    pub(crate) app: App,
    /// The link to the authorization page.
    pub(crate) authorization: Authorization,
    callers_secret_id: String,
    /// Name or ARN of the function `refresh`.
    pub(crate) refresh_function: Option<String>,
    /// Name or ARN of the function `relay`.
    pub(crate) relay_function: Option<String>,
    /// The queues that hold sealed token pairs, by purpose.
    pub(crate) queues: Vec<(&'static str, String)>,
    /// Id of the secret that webhooks are signed with.
    pub(crate) webhook_secret_id: Option<String>,
    /// The queue for events that the bus did not take.
    pub(crate) overflow_queue_url: Option<String>,
    /// The dead-letter queue of the overflow queue.
    pub(crate) overflow_failures_url: Option<String>,
    /// The archive of the events on the bus.
    pub(crate) event_archive_arn: Option<String>,
    /// The queues of the queue door.
    pub(crate) calls: CallQueues,
    /// The log groups of the functions.
    pub(crate) log_groups: Vec<String>,
}

impl Stack {
    /// The stack that the environment names.
    pub(crate) async fn from_env() -> Result<Self, CommandError> {
        Self::of(OperatorConfig::from_env()?).await
    }

    /// The stack of a configuration, with the region and the credentials that the environment names.
    pub(crate) async fn of(config: OperatorConfig) -> Result<Self, CommandError> {
        let aws = &aws_defaults().load().await;
        if aws.region().is_none() {
            return Err(CommandError::Environment("set AWS_REGION to the region of the stack".into()));
        }
        check_credentials(aws).await?;
        let rescue = config.app.rescue_queue_url.clone();
        let queues = [(RESCUE_QUEUE, rescue), (RESCUE_FAILURES, config.rescue_failures_url)];
        let app =
            App::build(config.app, aws, Clock::system()).map_err(|error| CommandError::NotDone(error.to_string()))?;
        Ok(Self {
            app,
            authorization: config.authorization,
            callers_secret_id: config.callers_secret_id,
            refresh_function: config.refresh_function,
            relay_function: config.relay_function,
            queues: queues.into_iter().filter_map(|(what, url)| Some((what, url?))).collect(),
            webhook_secret_id: config.webhook_secret_id,
            overflow_queue_url: config.overflow_queue_url,
            overflow_failures_url: config.overflow_failures_url,
            event_archive_arn: config.event_archive_arn,
            calls: config.calls,
            log_groups: config.log_groups.iter().flat_map(|names| names.split(',')).map(str::to_owned).collect(),
        })
    }

    /// A secret that commands edit.
    pub(crate) fn secret(&self, id: &str) -> EditedSecret {
        EditedSecret::new(aws_sdk_secretsmanager::Client::new(&self.app.aws), id.to_owned())
    }

    /// The secret with the callers.
    pub(crate) fn callers(&self) -> EditedSecret {
        self.secret(&self.callers_secret_id)
    }

    /// The secret with the sealing keys.
    pub(crate) fn sealing(&self) -> EditedSecret {
        self.secret(&self.app.config.sealing_secret_id)
    }

    /// A client of Lambda with a long time-out and without retries, because a renewal must not be repeated blindly.
    pub(crate) fn lambda(&self) -> aws_sdk_lambda::Client {
        let timeouts = TimeoutConfig::builder().read_timeout(INVOCATION);
        let config = aws_sdk_lambda::config::Builder::from(&self.app.aws);
        let config = config.timeout_config(timeouts.build()).retry_config(RetryConfig::disabled());
        aws_sdk_lambda::Client::from_conf(config.build())
    }

    /// The names of all aliases of a function.
    pub(crate) async fn aliases(&self, function: &str) -> Result<Vec<String>, CommandError> {
        let client = aws_sdk_lambda::Client::new(&self.app.aws);
        let mut pages = client.list_aliases().function_name(function).into_paginator().items().send();
        let mut names = Vec::new();
        while let Some(alias) = pages.next().await {
            let alias =
                alias.map_err(|error| CommandError::NotDone(shared::http_client::aws_error::describe(&error)))?;
            names.extend(alias.name);
        }
        Ok(names)
    }

    /// A client of SQS.
    pub(crate) fn sqs(&self) -> aws_sdk_sqs::Client {
        aws_sdk_sqs::Client::new(&self.app.aws)
    }

    /// Refuses unless the queues that hold sealed pairs are empty. `why` says why their pairs matter.
    pub(crate) async fn expect_empty_queues(&self, why: &str) -> Result<(), CommandError> {
        for (what, url) in &self.queues {
            let depth = self.depth(url).await?;
            if depth > 0 {
                return Err(CommandError::Refused(format!(
                    "the {what} holds {depth} messages, {why}: empty the queue first"
                )));
            }
        }
        if !self.queues.iter().any(|(what, _)| *what == RESCUE_FAILURES) {
            note("RESCUE_FAILURES_URL is not set: the dead-letter queue of the rescue queue was not checked");
        }
        Ok(())
    }

    /// The approximate number of messages in a queue, including those in flight and delayed.
    pub(crate) async fn depth(&self, url: &str) -> Result<u64, CommandError> {
        shared::token::rescue::queue_depth(&self.sqs(), url).await.map_err(CommandError::NotDone)
    }
}

/// Looks for credentials, because without any each request would fail, and none would tell how to repair that.
async fn check_credentials(aws: &SdkConfig) -> Result<(), CommandError> {
    let Some(provider) = aws.credentials_provider() else { return Ok(()) };
    let Err(error) = provider.provide_credentials().await else { return Ok(()) };
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        reason = format!("{reason}: {error}");
        source = error.source();
    }
    Err(CommandError::Environment(format!(
        "no AWS credentials could be loaded: {reason}\nSet AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. \
         Those of IAM Identity Center need the AWS CLI 2 (docs/operations.md, \"Commands\")"
    )))
}
