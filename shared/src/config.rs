//! What the environment says, read once at start. Every fault is reported at once, by the variable's name.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use url::Url;

use crate::domain::limits::Limits;
use crate::domain::qualifier::{GatewayAlias, names_an_alias};

/// The function that reads its configuration: not all need the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// Receives the redirect.
    Callback,
    /// Renews on a schedule.
    Refresh,
    /// Calls the platform for others.
    Relay,
    /// Hears of installs and uninstalls.
    Webhook,
}

/// Whether an installation may start in the marketplace's own pages, which send no `state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarketplaceInstalls {
    /// A callback without state is accepted.
    Allow,
    /// A callback without state is refused.
    Deny,
}

/// What `GET /oauth/install` does where its query does not say through which of the marketplace's hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallChoice {
    /// Straight to the configured host.
    Direct,
    /// A page that lets the admin choose between that and the white label.
    Ask,
}

/// How the authorization page is reached.
#[derive(Clone, Debug)]
pub struct Authorization {
    /// Host of the consent page.
    pub marketplace: Url,
    /// Path of the consent page.
    pub path: String,
    /// Space-separated scopes, if they are to be named in the link.
    pub scopes: Option<String>,
    /// `version_id` of the app, without which `client_id` alone can fail.
    pub version_id: Option<String>,
    /// `loginWindowOpenMode`.
    pub login_window: Option<String>,
    /// Base of the redirect URI, where it is not the request's own domain and stage.
    pub public_url: Option<Url>,
    /// Installs without state.
    pub marketplace_installs: MarketplaceInstalls,
    /// The start of an installation.
    pub install_choice: InstallChoice,
}

/// A colour of the sRGB space, `#rrggbb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour {
    /// Red, green and blue.
    pub rgb: [u8; 3],
}

impl Colour {
    /// Reads `#rrggbb`, and no other of CSS's many ways: the value ends in a style sheet.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix('#').filter(|rest| rest.len() == 6 && rest.is_ascii())?;
        let channel = |at: usize| {
            let pair = &digits[at..at + 2];
            u8::from_str_radix(pair, 16).ok().filter(|_| pair.bytes().all(|b| b.is_ascii_hexdigit()))
        };
        Some(Self { rgb: [channel(0)?, channel(2)?, channel(4)?] })
    }
}

/// Whose pages they are, for the admin who reads them.
#[derive(Clone, Debug, Default)]
pub struct Brand {
    /// Name above each page.
    pub name: Option<String>,
    /// Colour of the button.
    pub accent: Option<Colour>,
    /// Where help is to be had: an `https:` or a `mailto:` URL.
    pub support: Option<Url>,
}

/// The whole configuration of one function.
#[derive(Clone, Debug)]
pub struct Config {
    /// The one table.
    pub table: String,
    /// Id of the app's client credentials.
    pub app_secret_id: String,
    /// Id of the data keys.
    pub sealing_secret_id: String,
    /// Id of the callers' secret; the relay's only.
    pub callers_secret_id: Option<String>,
    /// The alias that API Gateway and the event sources invoke.
    pub gateway_alias: GatewayAlias,
    /// The platform's API.
    pub api_url: Url,
    /// The authorization page.
    pub authorization: Authorization,
    /// How the pages look.
    pub brand: Brand,
    /// The ceilings of what a resource may be asked.
    pub limits: Limits,
    /// Where a pair goes that could not be stored.
    pub rescue_queue_url: Option<String>,
    /// Where lifecycle events go.
    pub event_bus_name: Option<String>,
    /// Ed25519 keys of the platform's webhooks, 32 bytes each.
    pub webhook_public_keys: Vec<[u8; 32]>,
}

/// Everything that is wrong with the environment.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    /// One sentence for each variable.
    #[must_use]
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

/// Where the AWS SDK takes its endpoints from.
const AWS_ENDPOINTS: [&str; 5] = [
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_DYNAMODB",
    "AWS_ENDPOINT_URL_SECRETS_MANAGER",
    "AWS_ENDPOINT_URL_SQS",
    "AWS_ENDPOINT_URL_EVENTBRIDGE",
];

/// The marketplace's webhook key as the platform publishes it (SPKI, base64).
const PUBLISHED_WEBHOOK_KEY: &str = "MCowBQYDK2VwAyEAi2HR1srL4o18O8BRa7gVJY7G7bupbN3H9AwJrHCDiOg=";

/// DER of a `SubjectPublicKeyInfo` for Ed25519 up to the key's own 32 bytes (RFC 8410 section 4).
const ED25519_SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

impl Config {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// All variables that are missing or malformed.
    pub fn from_env(function: Function) -> Result<Self, ConfigError> {
        let read = Self::read(function, &variable);
        if variable("AWS_LAMBDA_RUNTIME_API").is_some() {
            return read;
        }
        let mut problems = read.err().map(|error| error.0).unwrap_or_default();
        problems.push("AWS_LAMBDA_RUNTIME_API is not set: the function runs under a Lambda Runtime API".into());
        Err(ConfigError(problems))
    }

    /// Reads variables from `lookup`. One that is empty counts as absent: templates set unused parameters to `""`.
    ///
    /// # Errors
    /// All variables that are missing or malformed.
    pub fn read(function: Function, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut env = Reader { lookup, problems: Vec::new() };
        let relay = function == Function::Relay;
        let config = Self {
            table: env.required("TABLE_NAME"),
            app_secret_id: env.required("APP_SECRET_ID"),
            sealing_secret_id: env.required("SEALING_SECRET_ID"),
            callers_secret_id: relay.then(|| env.required("CALLERS_SECRET_ID")),
            gateway_alias: GatewayAlias::new(env.checked(
                "GATEWAY_ALIAS",
                "must be the name of an alias, not a version and not $LATEST",
                |name| names_an_alias(name).then(|| name.to_owned()),
            )),
            api_url: env.url("API_URL", "https://services.leadconnectorhq.com"),
            authorization: Authorization {
                marketplace: env.url("MARKETPLACE_URL", "https://marketplace.gohighlevel.com"),
                path: env.path("AUTHORIZATION_PATH", "/oauth/chooselocation"),
                scopes: env.optional("SCOPES"),
                version_id: env.optional("APP_VERSION_ID"),
                login_window: env.optional("LOGIN_WINDOW"),
                public_url: env.optional_url("PUBLIC_URL"),
                marketplace_installs: env.choice(
                    "MARKETPLACE_INSTALLS",
                    &[("allow", MarketplaceInstalls::Allow), ("deny", MarketplaceInstalls::Deny)],
                ),
                install_choice: env
                    .choice("INSTALL_CHOICE", &[("direct", InstallChoice::Direct), ("ask", InstallChoice::Ask)]),
            },
            brand: Brand {
                name: env.checked("BRAND_NAME", "must be at most 60 characters without control characters", brand_name),
                accent: env.checked("ACCENT_COLOR", "must be a colour of the form #1d4ed8", Colour::parse),
                support: env.checked(
                    "SUPPORT_URL",
                    "must be an https or a mailto URL without credentials",
                    support_url,
                ),
            },
            limits: Limits {
                burst: env.number("BURST_LIMIT", 100, 1..=10_000),
                interval: Duration::from_millis(env.number("BURST_INTERVAL_MS", 10_000, 1_000..=60_000).into()),
                daily: env.number("DAILY_LIMIT", 200_000, 1..=100_000_000),
            },
            rescue_queue_url: env.optional_url("RESCUE_QUEUE_URL").map(String::from),
            event_bus_name: env.optional("EVENT_BUS_NAME"),
            webhook_public_keys: env.webhook_keys(),
        };
        for name in AWS_ENDPOINTS {
            // Used by the AWS SDK; tokens and secrets pass there.
            env.optional_url(name);
        }
        if env.problems.is_empty() { Ok(config) } else { Err(ConfigError(env.problems)) }
    }
}

/// What the Runtime API's client needs beyond `AWS_LAMBDA_RUNTIME_API` and panics without, as it must be set; empty
/// where everything is there. Lambda sets all of it; other Runtime APIs may not.
#[must_use]
pub fn runtime_variables(function: Function, lookup: &dyn Fn(&str) -> Option<String>) -> Vec<(&'static str, String)> {
    let mut wanted = Vec::new();
    let name = format!("{function:?}").to_lowercase();
    for (variable, value) in [
        ("AWS_LAMBDA_FUNCTION_NAME", name.as_str()),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
    ] {
        // The size must be a number, too; a default that is one tells which variable that is.
        let is_number = |text: &str| text.parse::<i32>().is_ok();
        if !lookup(variable).is_some_and(|found| is_number(&found) || !is_number(value)) {
            wanted.push((variable, value.to_owned()));
        }
    }
    if let Some(api) = lookup("AWS_LAMBDA_RUNTIME_API")
        && !api.contains("://")
        && api.contains('/')
    {
        wanted.push(("AWS_LAMBDA_RUNTIME_API", format!("http://{api}")));
    }
    wanted
}

/// Whether Lambda has started this process because a call waits for it, and not in advance.
#[must_use]
pub fn starts_for_a_call() -> bool {
    variable("AWS_LAMBDA_INITIALIZATION_TYPE").is_none_or(|kind| kind == "on-demand")
}

/// How many events Lambda gives this process at once: one, but on Lambda Managed Instances.
#[must_use]
pub fn events_at_once() -> u32 {
    variable("AWS_LAMBDA_MAX_CONCURRENCY").and_then(|number| number.parse().ok()).unwrap_or(1).max(1)
}

/// A variable of the process's environment.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn optional(&self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
    }

    fn required(&mut self, name: &str) -> String {
        self.optional(name).unwrap_or_else(|| {
            self.problems.push(format!("{name} is not set"));
            String::new()
        })
    }

    fn optional_url(&mut self, name: &str) -> Option<Url> {
        let text = self.optional(name)?;
        match parse_url(&text) {
            Ok(url) => Some(url),
            Err(why) => {
                self.problems.push(format!("{name} {why}"));
                None
            }
        }
    }

    fn url(&mut self, name: &str, default: &str) -> Url {
        let text = self.optional(name).unwrap_or_else(|| default.to_owned());
        parse_url(&text).unwrap_or_else(|why| {
            self.problems.push(format!("{name} {why}"));
            // Never used: the problem ends the start. A Url has no empty value.
            Url::from_directory_path("/").expect("an absolute path is a URL")
        })
    }

    fn path(&mut self, name: &str, default: &str) -> String {
        let path = self.optional(name).unwrap_or_else(|| default.to_owned());
        if !path.starts_with('/') || path.starts_with("//") || path.contains(['?', '#', '\\']) {
            self.problems.push(format!("{name} must be an absolute path without query or fragment"));
        }
        path
    }

    fn number(&mut self, name: &str, default: u32, range: std::ops::RangeInclusive<u32>) -> u32 {
        let Some(text) = self.optional(name) else { return default };
        match text.parse() {
            Ok(n) if range.contains(&n) => n,
            _ => {
                self.problems.push(format!("{name} must be a whole number from {} to {}", range.start(), range.end()));
                default
            }
        }
    }

    fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> T {
        let text = self.optional(name).unwrap_or_else(|| choices[0].0.to_owned());
        choices.iter().find(|(word, _)| *word == text).map_or_else(
            || {
                let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
                self.problems.push(format!("{name} must be one of: {}", words.join(", ")));
                choices[0].1
            },
            |(_, value)| *value,
        )
    }

    fn checked<T>(&mut self, name: &str, problem: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let value = read(&self.optional(name)?);
        if value.is_none() {
            self.problems.push(format!("{name} {problem}"));
        }
        value
    }

    fn webhook_keys(&mut self) -> Vec<[u8; 32]> {
        let text = self.optional("WEBHOOK_PUBLIC_KEYS").unwrap_or_else(|| PUBLISHED_WEBHOOK_KEY.to_owned());
        let keys: Option<Vec<_>> = text.split(',').map(|key| ed25519_key(key.trim())).collect();
        keys.unwrap_or_else(|| {
            self.problems.push("WEBHOOK_PUBLIC_KEYS must be comma-separated base64 SPKI Ed25519 keys".into());
            Vec::new()
        })
    }
}

fn ed25519_key(spki: &str) -> Option<[u8; 32]> {
    let der = STANDARD.decode(spki).ok()?;
    der.strip_prefix(&ED25519_SPKI_PREFIX)?.try_into().ok()
}

/// The longest name that stands above a page, in characters.
const LONGEST_BRAND: usize = 60;

fn brand_name(text: &str) -> Option<String> {
    let plain = text.chars().count() <= LONGEST_BRAND && !text.chars().any(char::is_control);
    plain.then(|| text.to_owned())
}

/// A link on a page: no scheme that runs anything, and a host or an address to go to.
fn support_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let good = match url.scheme() {
        "https" => url.username().is_empty() && url.password().is_none(),
        "mailto" => url.path().contains('@'),
        _ => false,
    };
    good.then_some(url)
}

/// A URL that tokens and secrets may pass to.
///
/// # Errors
/// What is wrong with it, to be read after its name.
pub fn parse_url(text: &str) -> Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| "is not a URL")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not carry credentials");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must have no query or fragment");
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        "http" => Err("must be https: http is for loopback hosts only"),
        _ => Err("must be an https URL"),
    }
}

/// Whether a URL leads to this machine.
#[must_use]
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(function: Function, vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::read(function, &|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    const LEAST: [(&str, &str); 4] =
        [("TABLE_NAME", "t"), ("APP_SECRET_ID", "a"), ("SEALING_SECRET_ID", "s"), ("CALLERS_SECRET_ID", "c")];

    #[test]
    fn defaults_are_the_contracts() {
        let config = read(Function::Relay, &LEAST).expect("the least is enough");
        assert_eq!(config.api_url.as_str(), "https://services.leadconnectorhq.com/");
        assert_eq!(config.authorization.path, "/oauth/chooselocation");
        assert_eq!((config.limits.burst, config.limits.daily), (100, 200_000));
        assert_eq!(config.limits.interval, Duration::from_secs(10));
        assert_eq!(config.webhook_public_keys.len(), 1);
        assert_eq!(config.gateway_alias.name(), None);
    }

    #[test]
    fn the_gateway_alias_is_an_alias() {
        let of = |name: &str| {
            let vars: Vec<_> = LEAST.into_iter().chain([("GATEWAY_ALIAS", name)]).collect();
            read(Function::Relay, &vars).map(|config| config.gateway_alias.name().map(str::to_owned))
        };
        assert_eq!(of(" live "), Ok(Some("live".to_owned())));
        assert_eq!(of(""), Ok(None), "an empty variable counts as absent");
        for bad in ["7", "$LATEST", "a b", "relay:live"] {
            assert!(of(bad).is_err_and(|error| error.to_string().contains("GATEWAY_ALIAS")), "{bad}");
        }
    }

    #[test]
    fn all_faults_are_reported_at_once_by_name() {
        let vars = [
            ("TABLE_NAME", " "),
            ("API_URL", "http://example.com"),
            ("MARKETPLACE_URL", "nonsense"),
            ("AUTHORIZATION_PATH", "//evil.example"),
            ("MARKETPLACE_INSTALLS", "maybe"),
            ("BURST_LIMIT", "0"),
            ("BURST_INTERVAL_MS", "ten"),
            ("DAILY_LIMIT", "-1"),
            ("PUBLIC_URL", "https://user:pass@host"),
            ("RESCUE_QUEUE_URL", "ftp://x"),
            ("WEBHOOK_PUBLIC_KEYS", "AAAA"),
            ("GATEWAY_ALIAS", "$LATEST"),
            ("INSTALL_CHOICE", "both"),
            ("BRAND_NAME", "a\u{7}b"),
            ("ACCENT_COLOR", "red"),
            ("SUPPORT_URL", "javascript:alert(1)"),
            ("AWS_ENDPOINT_URL_DYNAMODB", "http://10.0.0.1:8000"),
        ];
        let error = read(Function::Relay, &vars).expect_err("nothing is right").to_string();
        for name in vars.iter().map(|(n, _)| *n).chain(["APP_SECRET_ID", "SEALING_SECRET_ID", "CALLERS_SECRET_ID"]) {
            assert!(error.contains(name), "{name} is missing from: {error}");
        }
        assert!(!error.contains("pass@"), "values are not repeated: {error}");
    }

    #[test]
    fn a_colour_is_six_hexadecimal_digits_and_nothing_that_css_would_go_on_with() {
        assert_eq!(Colour::parse("#1d4eD8"), Some(Colour { rgb: [0x1d, 0x4e, 0xd8] }));
        for odd in ["", "#", "#fff", "1d4ed8", "#1d4ed8 ", "#1d4ed8;", "#+1+2+3", "#1d4ed", "#é1d4e", "red}*{"] {
            assert_eq!(Colour::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_support_link_leads_to_a_page_or_an_address() {
        for (text, good) in [
            ("https://example.com/help?from=install#top", true),
            ("mailto:help@example.com?subject=Install", true),
            ("mailto:", false),
            ("http://example.com", false),
            ("https://user:pass@example.com", false),
            ("javascript:alert(1)", false),
            ("data:text/html,x", false),
            ("/help", false),
        ] {
            assert_eq!(support_url(text).is_some(), good, "{text}");
        }
    }

    #[test]
    fn plain_http_is_for_loopback_only() {
        for (url, good) in [
            ("http://127.0.0.1:9/", true),
            ("http://localhost:9", true),
            ("http://[::1]:9", true),
            ("http://127.0.0.1.example.com", false),
            ("http://10.0.0.1", false),
            ("https://10.0.0.1", true),
        ] {
            assert_eq!(parse_url(url).is_ok(), good, "{url}");
        }
    }

    #[test]
    fn any_runtime_api_will_do() {
        let of = |vars: &[(&str, &str)]| {
            runtime_variables(Function::Relay, &|name| {
                vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
            })
        };
        let api = ("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9/relay");
        let set = of(&[api]);
        assert!(set.contains(&("AWS_LAMBDA_FUNCTION_NAME", "relay".into())), "{set:?}");
        assert!(set.contains(&("AWS_LAMBDA_RUNTIME_API", "http://127.0.0.1:9/relay".into())), "{set:?}");
        let set: Vec<_> = set.iter().map(|(n, v)| (*n, v.as_str())).collect();
        assert_eq!(of(&set), [], "nothing is left to set");
        let lambda = [("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9001"), set[0], set[1], set[2]];
        assert_eq!(of(&lambda), [], "Lambda's own are left alone");
    }

    #[test]
    fn all_need_the_sealing_key_and_only_the_relay_needs_callers() {
        for function in [Function::Callback, Function::Refresh, Function::Webhook] {
            assert!(read(function, &LEAST[..3]).is_ok(), "{function:?}");
            assert!(read(function, &LEAST[..2]).is_err(), "{function:?}");
        }
        assert!(read(Function::Relay, &LEAST[..3]).is_err());
    }
}
