//! The link to the marketplace's authorization page: RFC 6749 section 4.1.1, with the platform's own parameters.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use shared::config::{Authorization, is_loopback};
use url::Url;

/// The time that an admin has on the consent page. The state and the browser's cookie expire after it.
pub const CONSENT_TIME: Duration = Duration::from_mins(30);

/// The white-label host of the marketplace: the same pages without the vendor's brand.
const WHITE_LABEL: &str = "https://marketplace.leadconnectorhq.com";

/// Encodes all but the unreserved characters of RFC 3986. A space becomes `%20`, which every decoder understands, and
/// not `+`.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A host of the marketplace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marketplace {
    /// The configured host.
    Standard,
    /// The white-label host.
    WhiteLabel,
}

impl Marketplace {
    /// The base URL of this host. A configured marketplace on loopback serves as its own white label.
    pub fn url(self, config: &Authorization) -> Url {
        let standard = config.marketplace.clone();
        match self {
            Self::Standard => standard,
            Self::WhiteLabel if is_loopback(&standard) => standard,
            Self::WhiteLabel => Url::parse(WHITE_LABEL).unwrap_or(standard),
        }
    }
}

/// The URL of the consent page. Absent settings add no parameter.
pub fn authorization_url(
    config: &Authorization,
    marketplace: Marketplace,
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
        ("version_id", config.version_of(client_id)),
        ("loginWindowOpenMode", config.login_window.as_deref()),
    ];
    let query: Vec<_> = parameters
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", utf8_percent_encode(value?, VALUE))))
        .collect();
    let mut url = marketplace.url(config);
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
    fn an_absent_setting_adds_no_parameter() {
        let config = config("https://marketplace.gohighlevel.com");
        let url = authorization_url(&config, Marketplace::Standard, "app-v1", "https://x.example/oauth/callback", "s");
        assert_eq!(
            url.as_str(),
            "https://marketplace.gohighlevel.com/oauth/chooselocation?response_type=code\
             &redirect_uri=https%3A%2F%2Fx.example%2Foauth%2Fcallback&client_id=app-v1&state=s"
        );
    }

    #[test]
    fn each_setting_is_one_encoded_parameter() {
        let config = Authorization {
            scopes: Some("contacts.readonly contacts.write&x=1".into()),
            version_id: Some("v 1".into()),
            login_window: Some("self".into()),
            path: "/v2/oauth/chooselocation".into(),
            ..config("https://marketplace.gohighlevel.com")
        };
        let url = authorization_url(&config, Marketplace::Standard, "app", "https://x.example/", "s+/=");
        assert_eq!(url.path(), "/v2/oauth/chooselocation");
        let query = url.query().expect("a query");
        assert!(query.contains("scope=contacts.readonly%20contacts.write%26x%3D1&state=s%2B%2F%3D"), "{query}");
        assert!(query.ends_with("&version_id=v%201&loginWindowOpenMode=self"), "{query}");
    }

    #[test]
    fn the_version_is_the_set_one_or_the_apps_id_on_the_page_of_newer_apps() {
        const NEWER: &str = "/v2/oauth/chooselocation";
        for (path, set, client_id, expected) in [
            ("/oauth/chooselocation", None, "6512ab34-lx3kq9ab", None),
            ("/oauth/chooselocation", Some("v7"), "6512ab34-lx3kq9ab", Some("v7")),
            (NEWER, None, "6512ab34-lx3kq9ab", Some("6512ab34")),
            (NEWER, None, "6512ab34-lx3-kq9ab", Some("6512ab34")),
            (NEWER, Some("v7"), "6512ab34-lx3kq9ab", Some("v7")),
            (NEWER, None, "6512ab34", None),
            (NEWER, None, "-lx3kq9ab", None),
        ] {
            let config = Authorization {
                path: path.into(),
                version_id: set.map(str::to_owned),
                ..config("https://marketplace.gohighlevel.com")
            };
            let url = authorization_url(&config, Marketplace::Standard, client_id, "https://x.example/", "s");
            let version = url.query_pairs().find(|(name, _)| name == "version_id").map(|(_, value)| value.into_owned());
            assert_eq!(version.as_deref(), expected, "{path} {set:?} {client_id}");
        }
    }

    #[test]
    fn the_white_label_is_another_host_unless_the_marketplace_is_local() {
        for (configured, host) in [
            ("https://marketplace.gohighlevel.com", "marketplace.leadconnectorhq.com"),
            ("https://marketplace.example.com", "marketplace.leadconnectorhq.com"),
            ("http://127.0.0.1:9999", "127.0.0.1"),
        ] {
            let url = authorization_url(&config(configured), Marketplace::WhiteLabel, "app", "https://x.example/", "s");
            assert_eq!(url.host_str(), Some(host), "{configured}");
        }
    }
}
