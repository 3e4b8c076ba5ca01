//! The environment of a function, read once at start. All problems are reported at once, each with the variable's name.
//!
//! [`AppConfig`] holds the settings that all functions have, and is all that `refresh` reads. [`CallbackConfig`],
//! [`RelayConfig`] and [`WebhookConfig`] add the settings that only one function has. A new variable is a member of one
//! of these types and a line of its `read`.

mod callback;
mod reader;
mod relay;
mod runtime;
mod secure_url;
mod webhook;

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use url::Url;

pub use self::callback::{Authorization, Brand, CallbackConfig, Colour, InstallChoice, MarketplaceInstalls};
pub use self::reader::{Reader, ReportedProblem};
pub use self::relay::{QueueConfig, RelayConfig};
pub use self::runtime::{events_at_once, runtime_variables};
pub use self::secure_url::{is_loopback, parse_url};
pub use self::webhook::{Dedupe, WebhookConfig, WebhookSettings};
use crate::domain::api_version::{ApiVersion, PlatformApi};
use crate::domain::limits::{LimitPolicy, Limits};
use crate::domain::pace::HIGHEST;
use crate::domain::qualifier::{GatewayAlias, names_an_alias};

/// The configuration that every function has: all that [`crate::app::App`] is built from.
#[derive(Clone, Debug)]
pub struct AppConfig {
    /// The name of the one table.
    pub table: String,
    /// Id of the app's client credentials.
    pub app_secret_id: String,
    /// Id of the data keys.
    pub sealing_secret_id: String,
    /// Sealed values are bound to this constant of the stack.
    pub sealing_context: String,
    /// The alias that API Gateway and the event sources invoke.
    pub gateway_alias: GatewayAlias,
    /// The base URL of the platform's API.
    pub api_url: Url,
    /// The version of the platform's API for the system's own calls.
    pub platform_api: PlatformApi,
    /// The configured limits of a resource.
    pub limits: LimitPolicy,
    /// The ceiling of all requests to the token endpoint, in requests a minute.
    pub token_requests_per_minute: Option<u32>,
    /// The queue for token pairs that could not be stored.
    pub rescue_queue_url: Option<String>,
    /// The bus for lifecycle events.
    pub event_bus_name: Option<String>,
}

/// The variables from which the AWS SDK takes its endpoints.
const AWS_ENDPOINTS: [&str; 5] = [
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_DYNAMODB",
    "AWS_ENDPOINT_URL_SECRETS_MANAGER",
    "AWS_ENDPOINT_URL_SQS",
    "AWS_ENDPOINT_URL_EVENTBRIDGE",
];

impl AppConfig {
    /// Reads the variables that every function has.
    ///
    /// # Errors
    /// A variable is missing or malformed.
    pub fn read(env: &mut Reader<'_>) -> Result<Self, ReportedProblem> {
        let table = env.required("TABLE_NAME");
        let app_secret_id = env.required("APP_SECRET_ID");
        let sealing_secret_id = env.required("SEALING_SECRET_ID");
        let sealing_context = env.optional("SEALING_CONTEXT");
        let alias_form = "must be the name of an alias, not a version and not $LATEST";
        let is_alias = |name: &str| names_an_alias(name).then(|| name.to_owned());
        let gateway_alias = env.parsed("GATEWAY_ALIAS", alias_form, is_alias);
        let api_url = env.url("API_URL", "https://services.leadconnectorhq.com");
        let versions = [
            ("auto", PlatformApi::Auto),
            ("v2", PlatformApi::Only(ApiVersion::V2)),
            ("v3", PlatformApi::Only(ApiVersion::V3)),
        ];
        let platform_api = env.choice("PLATFORM_API", versions);
        let limits = read_limits(env);
        let pace_form = "must be a whole number from 1 to 6000";
        let is_pace = |text: &str| text.parse().ok().filter(|pace| (1..=HIGHEST).contains(pace));
        let token_requests_per_minute = env.parsed("TOKEN_REQUESTS_PER_MINUTE", pace_form, is_pace);
        // The log reads this variable itself, because it starts before the configuration is read.
        let metrics_namespace =
            env.parsed("METRICS_NAMESPACE", NAMESPACE_FORM, |name| is_namespace(name).then_some(()));
        let rescue_queue_url = env.optional_url("RESCUE_QUEUE_URL");
        for name in AWS_ENDPOINTS {
            // The AWS SDK itself reads these variables, and sends tokens and secrets to these URLs. A problem prevents
            // the start.
            let _checked = env.optional_url(name);
        }
        metrics_namespace?;
        let table = table?;
        Ok(Self {
            sealing_context: sealing_context.unwrap_or_else(|| table.clone()),
            table,
            app_secret_id: app_secret_id?,
            sealing_secret_id: sealing_secret_id?,
            gateway_alias: GatewayAlias::new(gateway_alias?),
            api_url: api_url?,
            platform_api: platform_api?,
            limits: limits?,
            token_requests_per_minute: token_requests_per_minute?,
            rescue_queue_url: rescue_queue_url?.map(String::from),
            event_bus_name: env.optional("EVENT_BUS_NAME"),
        })
    }
}

const NAMESPACE_FORM: &str = "must be 1 to 255 letters, digits and .-_/#, and not begin with AWS/";

/// Says if CloudWatch takes the name as a namespace of a customer's metrics (CloudWatch API Reference, `PutMetricData`).
fn is_namespace(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || ".-_/#".contains(c);
    (1..=255).contains(&name.len()) && name.chars().all(is_allowed) && !name.starts_with("AWS/")
}

/// Reads the limits of a resource. A limit that is set is a bound, too, unless the variable of its bound is set.
fn read_limits(env: &mut Reader<'_>) -> Result<LimitPolicy, ReportedProblem> {
    const BURST: RangeInclusive<u32> = 1..=10_000;
    const DAILY: RangeInclusive<u32> = 1..=100_000_000;
    /// The shortest interval that the platform's headers can set.
    const SHORTEST_INTERVAL_MS: u32 = 1_000;
    let mut limit = |name: &str, bound_name: &str, default: u32, bound: u32, range: RangeInclusive<u32>| {
        let is_set = env.optional(name).is_some();
        let limit = env.number(name, default, range.clone());
        let bound = if is_set { limit.unwrap_or(bound) } else { bound };
        let bound = env.number(bound_name, bound, range);
        let (limit, bound) = (limit?, bound?);
        Ok((limit.min(bound), bound))
    };
    let burst = limit("BURST_LIMIT", "BURST_LIMIT_MAX", 100, 1_000, BURST);
    let daily = limit("DAILY_LIMIT", "DAILY_LIMIT_MAX", 200_000, 10_000_000, DAILY);
    let shortest = env.optional("BURST_INTERVAL_MS").is_none().then_some(SHORTEST_INTERVAL_MS);
    let interval = env.number("BURST_INTERVAL_MS", 10_000, 1_000..=60_000);
    let ((burst, burst_bound), (daily, daily_bound), interval) = (burst?, daily?, interval?);
    let limits = |burst, interval_ms: u32, daily| {
        let interval = Duration::from_millis(interval_ms.into());
        Limits { burst, interval, daily }
    };
    Ok(LimitPolicy {
        default: limits(burst, interval, daily),
        bounds: limits(burst_bound, shortest.unwrap_or(interval), daily_bound),
    })
}

/// All problems of an environment.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    /// The problems, one sentence for each variable.
    pub fn problems(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "configuration: {}", self.0.join("; "))
    }
}

impl std::error::Error for ConfigError {}

/// Reads a configuration from the variables in `lookup`: `read(&variable, RelayConfig::read)`.
///
/// # Errors
/// All variables that are missing or malformed.
pub fn read<C>(
    lookup: &dyn Fn(&str) -> Option<String>,
    config: impl FnOnce(&mut Reader<'_>) -> Result<C, ReportedProblem>,
) -> Result<C, ConfigError> {
    let mut env = Reader::new(lookup);
    let config = config(&mut env);
    env.finish(config)
}

/// Reads the configuration of a function that runs in this process.
///
/// # Errors
/// All variables that are missing or malformed; `AWS_LAMBDA_RUNTIME_API` is one that must be set.
pub fn from_env<C>(config: impl FnOnce(&mut Reader<'_>) -> Result<C, ReportedProblem>) -> Result<C, ConfigError> {
    let config = read(&variable, config);
    if variable("AWS_LAMBDA_RUNTIME_API").is_some() {
        return config;
    }
    let mut problems = config.err().map(|error| error.0).unwrap_or_default();
    problems.push("AWS_LAMBDA_RUNTIME_API is not set: the function runs under a Lambda Runtime API".into());
    Err(ConfigError(problems))
}

/// A variable of the process's environment.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from<C>(
        vars: &[(&str, &str)],
        config: impl FnOnce(&mut Reader<'_>) -> Result<C, ReportedProblem>,
    ) -> Result<C, ConfigError> {
        read(&|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()), config)
    }

    const LEAST: [(&str, &str); 4] =
        [("TABLE_NAME", "t"), ("APP_SECRET_ID", "a"), ("SEALING_SECRET_ID", "s"), ("CALLERS_SECRET_ID", "c")];

    #[test]
    fn defaults_are_the_contracts() {
        let app = from(&LEAST, AppConfig::read).expect("the least is enough");
        assert_eq!(app.api_url.as_str(), "https://services.leadconnectorhq.com/");
        assert_eq!(app.platform_api, PlatformApi::Auto);
        let LimitPolicy { default, bounds } = app.limits;
        assert_eq!((default.burst, default.daily), (100, 200_000));
        assert_eq!((default.interval, bounds.interval), (Duration::from_secs(10), Duration::from_secs(1)));
        assert_eq!((bounds.burst, bounds.daily), (1_000, 10_000_000));
        assert_eq!(app.sealing_context, "t", "the table's name");
        assert_eq!(app.gateway_alias.name(), None);
        assert_eq!((app.rescue_queue_url, app.event_bus_name), (None, None));
        assert_eq!(app.token_requests_per_minute, None);
        let callback = from(&LEAST, CallbackConfig::read).expect("the least is enough");
        let authorization = callback.authorization;
        assert_eq!(authorization.marketplace.as_str(), "https://marketplace.gohighlevel.com/");
        assert_eq!(authorization.path, "/oauth/chooselocation");
        assert_eq!(authorization.marketplace_installs, MarketplaceInstalls::Allow);
        assert_eq!(authorization.install_choice, InstallChoice::Direct);
        let webhook = from(&LEAST, WebhookConfig::read).expect("the least is enough");
        assert_eq!((webhook.settings.public_keys.len(), webhook.settings.secret_id), (1, None));
    }

    #[test]
    fn at_least_one_kind_of_signature_is_accepted() {
        let of = |own: &[(&str, &str)]| {
            let config = from(&[&LEAST[..3], own].concat(), WebhookConfig::read);
            config.map(|config| (config.settings.public_keys.len(), config.settings.secret_id))
        };
        let (none, secret) = (("WEBHOOK_PUBLIC_KEYS", "none"), ("WEBHOOK_SECRET_ID", "s"));
        assert_eq!(of(&[secret]), Ok((1, Some("s".to_owned()))));
        assert_eq!(of(&[none, secret]), Ok((0, Some("s".to_owned()))));
        for neither in [&[none][..], &[none, ("WEBHOOK_SECRET_ID", "")]] {
            let error = of(neither).expect_err("no webhook would be accepted");
            assert_eq!(error.problems(), ["WEBHOOK_SECRET_ID is not set"]);
        }
    }

    #[test]
    fn the_gateway_alias_is_an_alias() {
        let of = |name: &str| {
            let vars: Vec<_> = LEAST.into_iter().chain([("GATEWAY_ALIAS", name)]).collect();
            from(&vars, AppConfig::read).map(|config| config.gateway_alias.name().map(str::to_owned))
        };
        assert_eq!(of(" live "), Ok(Some("live".to_owned())));
        assert_eq!(of(""), Ok(None), "an empty variable counts as absent");
        for bad in ["7", "$LATEST", "a b", "relay:live"] {
            assert!(of(bad).is_err_and(|error| error.to_string().contains("GATEWAY_ALIAS")), "{bad}");
        }
    }

    #[test]
    fn the_namespace_of_metrics_is_one_that_cloudwatch_takes() {
        let longest = "n".repeat(255);
        for good in ["HoopaiRelay", "HoopaiRelay/hoopai-relay-staging", "a.b_c#1", &longest] {
            assert!(is_namespace(good), "{good}");
        }
        for bad in ["", "AWS/Lambda", "a b", "Relais/é", &format!("{longest}n")] {
            assert!(!is_namespace(bad), "{bad}");
        }
    }

    #[test]
    fn a_limit_that_is_set_is_a_bound() {
        let of = |variables: &[(&'static str, &'static str)]| {
            let LimitPolicy { default, bounds } = from(&[&LEAST, variables].concat(), AppConfig::read)?.limits;
            Ok((default.burst, bounds.burst, default.daily, bounds.daily, bounds.interval.as_millis()))
        };
        let cases: [(&[_], _); 6] = [
            (&[("BURST_LIMIT", "60")], (60, 60, 200_000, 10_000_000, 1_000)),
            (&[("BURST_LIMIT", "60"), ("BURST_LIMIT_MAX", "300")], (60, 300, 200_000, 10_000_000, 1_000)),
            (&[("BURST_LIMIT_MAX", "50")], (50, 50, 200_000, 10_000_000, 1_000)),
            (&[("DAILY_LIMIT", "200000"), ("BURST_LIMIT", "")], (100, 1_000, 200_000, 200_000, 1_000)),
            (&[("DAILY_LIMIT_MAX", "90")], (100, 1_000, 90, 90, 1_000)),
            (&[("BURST_INTERVAL_MS", "10000")], (100, 1_000, 200_000, 10_000_000, 10_000)),
        ];
        for (variables, expected) in cases {
            assert_eq!(of(variables), Ok::<_, ConfigError>(expected), "{variables:?}");
        }
    }

    /// Malformed variables of every function.
    const MALFORMED: [(&str, &str); 14] = [
        ("TABLE_NAME", " "),
        ("API_URL", "http://example.com"),
        ("PLATFORM_API", "v1"),
        ("BURST_LIMIT", "0"),
        ("BURST_INTERVAL_MS", "ten"),
        ("DAILY_LIMIT", "-1"),
        ("BURST_LIMIT_MAX", "10001"),
        ("DAILY_LIMIT_MAX", "all"),
        ("TOKEN_REQUESTS_PER_MINUTE", "0"),
        ("RESCUE_QUEUE_URL", "ftp://x"),
        ("GATEWAY_ALIAS", "$LATEST"),
        ("METRICS_NAMESPACE", "AWS/Lambda"),
        ("AWS_ENDPOINT_URL_DYNAMODB", "http://10.0.0.1:8000"),
        ("AWS_ENDPOINT_URL_SQS", "https://user:pass@host"),
    ];
    const MISSING: [&str; 2] = ["APP_SECRET_ID", "SEALING_SECRET_ID"];

    /// Checks that the one error names each of the variables, and no other variable.
    fn all_are_reported<C: fmt::Debug>(
        malformed: &[(&str, &str)],
        missing: &[&str],
        config: impl FnOnce(&mut Reader<'_>) -> Result<C, ReportedProblem>,
    ) {
        let vars = [&MALFORMED, malformed].concat();
        let error = from(&vars, config).expect_err("nothing is right");
        let mut named: Vec<_> = error.problems().iter().filter_map(|problem| problem.split(' ').next()).collect();
        let mut expected: Vec<_> =
            vars.iter().map(|(name, _)| *name).chain(MISSING).chain(missing.iter().copied()).collect();
        named.sort_unstable();
        expected.sort_unstable();
        assert_eq!(named, expected);
        assert!(!error.to_string().contains("pass@"), "values are not repeated: {error}");
    }

    #[test]
    fn all_problems_are_reported_at_once_by_name() {
        let callback = [
            ("MARKETPLACE_URL", "nonsense"),
            ("AUTHORIZATION_PATH", "//evil.example"),
            ("MARKETPLACE_INSTALLS", "maybe"),
            ("PUBLIC_URL", "https://user:pass@host"),
            ("INSTALL_CHOICE", "both"),
            ("BRAND_NAME", "a\u{7}b"),
            ("ACCENT_COLOR", "red"),
            ("SUPPORT_URL", "javascript:alert(1)"),
        ];
        all_are_reported(&callback, &[], CallbackConfig::read);
        let webhook = [
            ("WEBHOOK_PUBLIC_KEYS", "AAAA"),
            ("EVENTS_OVERFLOW_QUEUE_URL", "ftp://x"),
            ("WEBHOOK_DEDUPE", "sometimes"),
        ];
        all_are_reported(&webhook, &[], WebhookConfig::read);
        let relay = [("CALLS_QUEUE_URL", "ftp://x"), ("RESULTS_QUEUE_URL", "nonsense"), ("QUEUE_RESERVE", "1.5")];
        all_are_reported(&relay, &["CALLERS_SECRET_ID"], RelayConfig::read);
        all_are_reported(&[], &[], AppConfig::read);
    }

    #[test]
    fn no_function_reads_the_settings_of_another() {
        let others = [("CALLERS_SECRET_ID", ""), ("MARKETPLACE_URL", "nonsense"), ("WEBHOOK_PUBLIC_KEYS", "AAAA")];
        let vars = [&LEAST[..3], &others].concat();
        assert!(from(&vars, AppConfig::read).is_ok());
        assert!(from(&vars, CallbackConfig::read).is_err_and(|error| error.problems().len() == 1));
        assert!(from(&vars, WebhookConfig::read).is_err_and(|error| error.problems().len() == 1));
        assert!(from(&vars, RelayConfig::read).is_err_and(|error| error.problems().len() == 1));
    }
}
