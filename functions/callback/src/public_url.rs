//! Where browsers reach this function: the base of the redirect URI and of every link on a page.
//!
//! It is configured, or comes from what API Gateway itself says of the request. The `Host` header has no part in it:
//! whoever sends that could have a code exchanged for, or a reinstall link kept to, an address of their own.

use std::fmt;

use shared::config::is_loopback;
use url::Url;

use crate::event::RequestContext;

/// An absolute URL without a trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl {
    base: String,
    secure: bool,
}

/// Neither configured nor to be had from the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PUBLIC_URL is not set and the request names no domain of the API")]
pub struct Unknown;

impl PublicUrl {
    /// `configured`, or the request's domain and stage.
    ///
    /// A stage is part of the URL where the path carries it, and always on the API's default domain; a custom domain
    /// hides it.
    ///
    /// # Errors
    /// [`Unknown`].
    pub fn of(configured: Option<&Url>, context: &RequestContext, raw_path: &str) -> Result<Self, Unknown> {
        if let Some(url) = configured {
            return Ok(Self { base: url.as_str().trim_end_matches('/').to_owned(), secure: url.scheme() == "https" });
        }
        let domain = context.domain_name.as_deref().filter(|d| !d.is_empty()).ok_or(Unknown)?;
        let mut url = Url::parse(&format!("https://{domain}/")).map_err(|_| Unknown)?;
        // A domain that is more than host and port was not written by API Gateway.
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() || domain.contains(['@', '/', '\\']) {
            return Err(Unknown);
        }
        if is_loopback(&url) {
            url.set_scheme("http").map_err(|()| Unknown)?;
        }
        let secure = url.scheme() == "https";
        let mut base = url.as_str().trim_end_matches('/').to_owned();
        if let Some(stage) = named_stage(context)
            && (domain.contains(".execute-api.") || below(raw_path, stage).is_some())
        {
            base = format!("{base}/{stage}");
        }
        Ok(Self { base, secure })
    }

    /// The URL of a path that begins with a slash.
    #[must_use]
    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Without a trailing slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.base
    }

    /// Whether browsers come by TLS. Where they do not, the host is a loopback one.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.secure
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)
    }
}

/// The path below the stage, or below the path of the configured URL, where it has such a prefix.
#[must_use]
pub fn path_below<'a>(configured: Option<&Url>, context: &RequestContext, raw_path: &'a str) -> &'a str {
    let stripped = named_stage(context).and_then(|stage| below(raw_path, stage)).unwrap_or(raw_path);
    let prefix = configured.map(|url| url.path().trim_matches('/')).unwrap_or_default();
    if prefix.is_empty() { stripped } else { below(stripped, prefix).unwrap_or(stripped) }
}

/// A stage that shows in URLs. API Gateway's names have only these characters.
fn named_stage(context: &RequestContext) -> Option<&str> {
    let plain =
        |stage: &&str| !stage.is_empty() && stage.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    context.stage.as_deref().filter(plain)
}

fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix('/')?.strip_prefix(prefix).filter(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::RequestLine;

    fn context(domain: &str, stage: &str) -> RequestContext {
        RequestContext {
            domain_name: Some(domain.to_owned()),
            stage: Some(stage.to_owned()),
            http: RequestLine { method: "GET".into() },
            authorizer: None,
        }
    }

    #[test]
    fn the_base_is_the_url_that_the_browser_shows() {
        for (domain, stage, path, base) in [
            ("a1.execute-api.eu-west-1.amazonaws.com", "$default", "/oauth/install", ""),
            ("a1.execute-api.eu-west-1.amazonaws.com", "prod", "/prod/oauth/install", "/prod"),
            ("a1.execute-api.eu-west-1.amazonaws.com", "prod", "/oauth/install", "/prod"),
            ("connect.example.com", "prod", "/oauth/install", ""),
            ("connect.example.com", "prod", "/prod/oauth/install", "/prod"),
            ("connect.example.com", "../x", "/../x/oauth/install", ""),
        ] {
            let context = context(domain, stage);
            let public = PublicUrl::of(None, &context, path).expect("a domain");
            assert_eq!(public.as_str(), format!("https://{domain}{base}"), "{domain} {stage} {path}");
            assert!(public.is_secure());
        }
        assert_eq!(path_below(None, &context("x", "prod"), "/prod/oauth/done"), "/oauth/done");
        assert_eq!(path_below(None, &context("x", "prod"), "/production/oauth/done"), "/production/oauth/done");
    }

    #[test]
    fn what_is_configured_wins_and_its_path_is_stripped() {
        let configured = Url::parse("https://connect.example.com/relay/").expect("a URL");
        let context = context("a1.execute-api.eu-west-1.amazonaws.com", "prod");
        let public = PublicUrl::of(Some(&configured), &context, "/prod/oauth/install").expect("configured");
        assert_eq!(public.at("/oauth/done"), "https://connect.example.com/relay/oauth/done");
        assert_eq!(path_below(Some(&configured), &context, "/relay/oauth/done"), "/oauth/done");
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        let local = PublicUrl::of(None, &context("127.0.0.1:8123", "$default"), "/").expect("a domain");
        assert_eq!((local.as_str(), local.is_secure()), ("http://127.0.0.1:8123", false));
        assert!(PublicUrl::of(None, &context("10.0.0.1:8123", "$default"), "/").expect("a domain").is_secure());
    }

    #[test]
    fn a_domain_that_is_none_is_refused() {
        for odd in ["", "a/b", "a?b", "a#b", "user@host", "a b", "[", "a\\b", "x:99999"] {
            assert_eq!(PublicUrl::of(None, &context(odd, "$default"), "/"), Err(Unknown), "{odd}");
        }
    }
}
