//! The link to the marketplace's authorization page (RFC 6749 section 4.1.1, with the platform's own parameters).

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use shared::config::{Authorization, is_loopback};
use url::Url;

/// The time that an admin may take over the consent page. The state and the browser's cookie last so long.
pub const CONSENT_TIME: Duration = Duration::from_mins(30);

/// The white label of the marketplace: the same pages under a host without the vendor's brand.
const WHITE_LABEL: &str = "https://marketplace.leadconnectorhq.com";

/// Everything but RFC 3986's unreserved characters. A space becomes `%20` and not `+`: every decoder knows that one.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Which of the marketplace's hosts an admin comes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// The configured one.
    Standard,
    /// The white label.
    WhiteLabel,
}

/// The marketplace's address at an entrance. A marketplace on this machine is its own white label.
#[must_use]
pub fn marketplace(config: &Authorization, entrance: Entrance) -> Url {
    let standard = config.marketplace.clone();
    match entrance {
        Entrance::Standard => standard,
        Entrance::WhiteLabel if is_loopback(&standard) => standard,
        Entrance::WhiteLabel => Url::parse(WHITE_LABEL).unwrap_or(standard),
    }
}

/// Where the browser is sent to give consent.
#[must_use]
pub fn authorization_url(
    config: &Authorization,
    entrance: Entrance,
    client_id: &str,
    redirect_uri: &str,
    state: &str,
) -> Url {
    let parameters = [
        ("response_type", Some("code")),
        ("redirect_uri", Some(redirect_uri)),
        ("client_id", Some(client_id)),
        ("scope", config.scopes.as_deref()),
        ("state", Some(state)),
        ("version_id", config.version_id.as_deref()),
        ("loginWindowOpenMode", config.login_window.as_deref()),
    ];
    let query: Vec<_> = parameters
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", utf8_percent_encode(value?, VALUE))))
        .collect();
    let mut url = marketplace(config, entrance);
    url.set_path(&config.path);
    url.set_query(Some(&query.join("&")));
    url
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use shared::config::{InstallChoice, MarketplaceInstalls};

    pub(crate) fn config(marketplace: &str) -> Authorization {
        Authorization {
            marketplace: Url::parse(marketplace).expect("a URL"),
            path: "/oauth/chooselocation".into(),
            scopes: None,
            version_id: None,
            login_window: None,
            public_url: None,
            marketplace_installs: MarketplaceInstalls::Allow,
            install_choice: InstallChoice::Direct,
        }
    }

    #[test]
    fn what_is_not_set_is_not_in_the_link() {
        let config = config("https://marketplace.gohighlevel.com");
        let url = authorization_url(&config, Entrance::Standard, "app-v1", "https://x.example/oauth/callback", "s");
        assert_eq!(
            url.as_str(),
            "https://marketplace.gohighlevel.com/oauth/chooselocation?response_type=code\
             &redirect_uri=https%3A%2F%2Fx.example%2Foauth%2Fcallback&client_id=app-v1&state=s"
        );
    }

    #[test]
    fn all_that_is_set_is_in_the_link_and_stays_one_value() {
        let config = Authorization {
            scopes: Some("contacts.readonly contacts.write&x=1".into()),
            version_id: Some("v 1".into()),
            login_window: Some("self".into()),
            path: "/v2/oauth/chooselocation".into(),
            ..config("https://marketplace.gohighlevel.com")
        };
        let url = authorization_url(&config, Entrance::Standard, "app", "https://x.example/", "s+/=");
        assert_eq!(url.path(), "/v2/oauth/chooselocation");
        let query = url.query().expect("a query");
        assert!(query.contains("scope=contacts.readonly%20contacts.write%26x%3D1&state=s%2B%2F%3D"), "{query}");
        assert!(query.ends_with("&version_id=v%201&loginWindowOpenMode=self"), "{query}");
    }

    #[test]
    fn the_white_label_is_another_host_unless_the_marketplace_is_local() {
        for (configured, host) in [
            ("https://marketplace.gohighlevel.com", "marketplace.leadconnectorhq.com"),
            ("https://marketplace.example.com", "marketplace.leadconnectorhq.com"),
            ("http://127.0.0.1:9999", "127.0.0.1"),
        ] {
            let url = authorization_url(&config(configured), Entrance::WhiteLabel, "app", "https://x.example/", "s");
            assert_eq!(url.host_str(), Some(host), "{configured}");
        }
    }
}
