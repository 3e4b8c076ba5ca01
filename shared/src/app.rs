//! The parts of a function, built once at start from its configuration.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, SdkConfig};
use aws_smithy_types::retry::ReconnectMode;

use crate::config::{self, AppConfig, ConfigError, Reader, ReportedProblem, runtime_variables, variable};
use crate::domain::clock::Clock;
use crate::events::Events;
use crate::http_client::{self, Connections};
use crate::install::Installations;
use crate::limiter::Limiter;
use crate::platform::api_versions::ApiVersions;
use crate::platform::token_endpoint::TokenEndpoint;
use crate::seal::vault::Vault;
use crate::seal::{Binding, DataKeys};
use crate::secrets::{AppCredentials, Secret};
use crate::table::Table;
use crate::table::clock_check::ClockCheck;
use crate::token::alarm::AppAlarms;
use crate::token::breaker::Breaker;
use crate::token::exchange::CodeExchange;
use crate::token::mint::Minter;
use crate::token::pace::Pacer;
use crate::token::parts::TokenParts;
use crate::token::refresh::Refresher;
use crate::token::rescue::RescueQueue;
use crate::token::tokens::Tokens;

/// The time limit of one try of a call to an AWS service, from connecting to the last byte of the answer. Three tries
/// and the pauses between them take less than 7 s, which fits twice into a lease.
const AWS_ATTEMPT: Duration = Duration::from_secs(2);

/// All parts that a function works with.
pub struct App {
    /// The configuration.
    pub config: AppConfig,
    /// The clock.
    pub clock: Clock,
    /// The table.
    pub table: Table,
    /// The app's client credentials.
    pub app_secret: Arc<Secret<AppCredentials>>,
    /// The sealer of stored values.
    pub vault: Arc<Vault>,
    /// Connections to the platform.
    pub connections: Connections,
    /// The token endpoint.
    pub endpoint: TokenEndpoint,
    /// Exchanges codes.
    pub codes: CodeExchange,
    /// Installs and uninstalls.
    pub installations: Installations,
    /// The rescue queue, if configured.
    pub rescue: Option<RescueQueue>,
    /// Lifecycle events.
    pub events: Events,
    /// Alarms of the whole app.
    pub alarms: Arc<AppAlarms>,
    /// The pace of the token endpoint.
    pub pace: Arc<Pacer>,
    /// The limits of all resources.
    pub limiter: Limiter,
    /// The only path for refreshes.
    pub refresher: Arc<Refresher>,
    /// Access tokens for readers.
    pub tokens: Tokens,
    /// The SDK's configuration, for clients that only one function has.
    pub aws: SdkConfig,
}

/// The reason why a function cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The environment is incomplete or malformed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The HTTP client's TLS set-up failed.
    #[error("the HTTP client cannot be built: {0}")]
    Tls(#[from] rustls::Error),
    /// The process could not be started again with a complete environment.
    #[error("the process cannot be started again with {0}")]
    Environment(String),
}

impl App {
    /// The first half of a start, which takes almost no time: sets up logging and reads the configuration of the
    /// function `function`.
    pub fn configure<C>(
        function: &str,
        config: impl FnOnce(&mut Reader<'_>) -> Result<C, ReportedProblem>,
    ) -> Result<C, StartError> {
        crate::log::start();
        let config = config::from_env(config)?;
        complete_environment(function)?;
        Ok(config)
    }

    /// The second half of a start: builds the clients without connecting to any service. Reading the machine's root
    /// certificates takes most of the time.
    pub async fn of(config: AppConfig) -> Result<Self, StartError> {
        Self::build(config, &aws_defaults().load().await, Clock::system())
    }

    /// Reads all secrets at the same time, before they are needed. A secret that cannot be read now is read again when
    /// needed.
    pub async fn fetch_secrets(&self) {
        let (app, keys) = tokio::join!(self.app_secret.get(), self.vault.sealer());
        for error in [app.err(), keys.err()].into_iter().flatten() {
            tracing::warn!(%error, "a secret could not be read at the start; it is read again when it is needed");
        }
    }

    /// Opens a connection to the table, by a read, and one to the platform, at the same time.
    ///
    /// # Errors
    /// The cause, if one of them cannot be opened.
    pub async fn open_connections(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let api: http::Uri = self.config.api_url.as_str().parse()?;
        let (table, platform) = tokio::join!(self.table.breaker(), self.connections.connection(&api));
        table?;
        platform?;
        Ok(())
    }

    /// Builds all parts from a configuration and the SDK's configuration.
    ///
    /// # Errors
    /// The TLS set-up failed.
    pub fn build(config: AppConfig, aws: &SdkConfig, clock: Clock) -> Result<Self, StartError> {
        let connections = http_client::platform(clock.clone())?;
        let dynamodb = aws_sdk_dynamodb::config::Builder::from(aws).interceptor(ClockCheck::new(clock.clone())).build();
        let table = Table { client: aws_sdk_dynamodb::Client::from_conf(dynamodb), name: config.table.as_str().into() };
        let secrets = aws_sdk_secretsmanager::Client::new(aws);
        let app_secret =
            Arc::new(Secret::new(secrets.clone(), &config.app_secret_id, clock.clone(), AppCredentials::parse));
        let keys = Secret::new(secrets, &config.sealing_secret_id, clock.clone(), |text| {
            DataKeys::parse(text).map_err(|error| error.to_string())
        });
        let vault = Arc::new(Vault::new(keys, Binding::new(&config.sealing_context, &config.table)));
        let rescue = config.rescue_queue_url.clone().map(|url| RescueQueue::new(aws_sdk_sqs::Client::new(aws), url));
        let versions = Arc::new(ApiVersions::new(config.platform_api, Some(Arc::new(table.clone()))));
        let endpoint = TokenEndpoint::new(connections.clone(), &config.api_url, app_secret.clone(), versions);
        let bus = config.event_bus_name.clone().map(|name| (aws_sdk_eventbridge::Client::new(aws), name));
        let events = Events::new(bus, table.clone(), clock.clone());
        let alarms = Arc::new(AppAlarms::new(table.clone(), clock.clone()));
        let limiter = Limiter::new(table.clone(), clock.clone(), config.limits);
        let breaker = Arc::new(Breaker::new(table.clone(), clock.clone()));
        let ceiling = config.token_requests_per_minute;
        let pace = Arc::new(Pacer::new(table.clone(), clock.clone(), breaker.clone(), ceiling));
        let parts = TokenParts {
            table: table.clone(),
            vault: vault.clone(),
            endpoint: endpoint.clone(),
            breaker,
            pace: pace.clone(),
            events: events.clone(),
            alarms: alarms.clone(),
            clock: clock.clone(),
        };
        let minter = Arc::new(Minter::new(parts.clone(), limiter.clone()));
        let refresher = Arc::new(Refresher::new(parts, rescue.clone(), minter.clone()));
        Ok(Self {
            connections,
            installations: Installations::new(
                table.clone(),
                vault.clone(),
                rescue.clone(),
                events.clone(),
                clock.clone(),
            ),
            codes: CodeExchange::new(endpoint.clone(), pace.clone(), clock.clone()),
            rescue,
            events,
            alarms,
            pace,
            limiter,
            tokens: Tokens::new(table.clone(), vault.clone(), refresher.clone(), minter, clock.clone()),
            refresher,
            vault,
            endpoint,
            app_secret,
            table,
            clock,
            config,
            aws: aws.clone(),
        })
    }
}

/// Starts the process again if a variable is missing without which the Runtime API's client would panic. The
/// environment cannot be changed safely in a running process (`std::env::set_var` is unsafe for that reason).
fn complete_environment(function: &str) -> Result<(), StartError> {
    let wanted = runtime_variables(function, &variable);
    if wanted.is_empty() {
        return Ok(());
    }
    let names = wanted.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let failed = |error: std::io::Error| StartError::Environment(format!("{names}: {error}"));
    let program = std::env::current_exe().map_err(failed)?;
    let arguments = std::env::args_os().skip(1);
    Err(failed(Command::new(program).args(arguments).envs(wanted).exec()))
}

/// The common settings of all clients of AWS services: short time-outs and few retries, so that a call fits into a
/// lease.
pub fn aws_defaults() -> ConfigLoader {
    // The SDK's other time-outs would discard an answer that is already in the socket of a process that was stopped for
    // a while.
    let timeouts = TimeoutConfig::builder().read_timeout(AWS_ATTEMPT).build();
    aws_config::defaults(BehaviorVersion::latest())
        .http_client(http_client::aws())
        // This protection ends transfers without progress for 5 s, and no try lasts that long.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .timeout_config(timeouts)
        .retry_config(
            RetryConfig::standard()
                .with_max_attempts(3)
                .with_initial_backoff(Duration::from_millis(50))
                // Our HTTP client ends a failed connection itself. Without this mode the SDK logs an error for each retry,
                // because it does not know the connection.
                .with_reconnect_mode(ReconnectMode::ReuseAllConnections),
        )
}
