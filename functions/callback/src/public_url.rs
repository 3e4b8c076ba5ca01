//! The public URL of this function: the base of the redirect URI and of every link on a page.
//!
//! The URL is configured, or comes from the request context that API Gateway writes. The `Host` header is not used: a
//! client controls it, and could direct a code or a stored reinstall link to a foreign address.

use std::fmt;

use shared::config::is_loopback;
use shared::lambda::gateway::below;
use url::Url;

/// An absolute URL without a trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl {
    base: String,
    secure: bool,
}

/// The public URL is not configured, and the request context does not give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PUBLIC_URL is not set and the request names no domain of the API")]
pub struct Unknown;

impl PublicUrl {
    /// Returns `configured` if it is set. Otherwise builds the URL from the domain and stage of a request for `raw_path`.
    ///
    /// The stage is part of the URL if the path begins with it, and always on the API's default domain. A custom domain
    /// hides the stage.
    pub fn of(
        configured: Option<&Url>,
        domain: Option<&str>,
        stage: Option<&str>,
        raw_path: &str,
    ) -> Result<Self, Unknown> {
        if let Some(url) = configured {
            return Ok(Self { base: url.as_str().trim_end_matches('/').to_owned(), secure: url.scheme() == "https" });
        }
        let domain = domain.filter(|d| !d.is_empty()).ok_or(Unknown)?;
        let mut url = Url::parse(&format!("https://{domain}/")).map_err(|_| Unknown)?;
        // API Gateway writes a host and a port only.
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() || domain.contains(['@', '/', '\\']) {
            return Err(Unknown);
        }
        if is_loopback(&url) {
            url.set_scheme("http").map_err(|()| Unknown)?;
        }
        let secure = url.scheme() == "https";
        let mut base = url.as_str().trim_end_matches('/').to_owned();
        if let Some(stage) = stage.filter(|stage| is_in_urls(stage))
            && (domain.contains(".execute-api.") || below(raw_path, stage).is_some())
        {
            base = format!("{base}/{stage}");
        }
        Ok(Self { base, secure })
    }

    /// The URL of a path that begins with a slash.
    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// The URL, without a trailing slash.
    pub fn as_str(&self) -> &str {
        &self.base
    }

    /// Returns true if browsers connect by TLS. Without TLS, the host is a loopback address.
    pub fn is_secure(&self) -> bool {
        self.secure
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)
    }
}

/// Returns true for a stage whose name is part of URLs, which `$default` is not. API Gateway allows these characters.
fn is_in_urls(stage: &str) -> bool {
    !stage.is_empty() && stage.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let public = PublicUrl::of(None, Some(domain), Some(stage), path).expect("a domain");
            assert_eq!(public.as_str(), format!("https://{domain}{base}"), "{domain} {stage} {path}");
            assert!(public.is_secure());
        }
    }

    #[test]
    fn a_configured_url_wins() {
        let configured = Url::parse("https://connect.example.com/relay/").expect("a URL");
        let domain = Some("a1.execute-api.eu-west-1.amazonaws.com");
        let public = PublicUrl::of(Some(&configured), domain, Some("prod"), "/prod/oauth/install").expect("configured");
        assert_eq!(public.at("/oauth/done"), "https://connect.example.com/relay/oauth/done");
    }

    #[test]
    fn plain_http_is_for_loopback_only() {
        let at = |domain| PublicUrl::of(None, Some(domain), Some("$default"), "/").expect("a domain");
        let local = at("127.0.0.1:8123");
        assert_eq!((local.as_str(), local.is_secure()), ("http://127.0.0.1:8123", false));
        assert!(at("10.0.0.1:8123").is_secure());
    }

    #[test]
    fn malformed_domains_are_refused() {
        for odd in ["", "a/b", "a?b", "a#b", "user@host", "a b", "[", "a\\b", "x:99999"] {
            assert_eq!(PublicUrl::of(None, Some(odd), Some("$default"), "/"), Err(Unknown), "{odd}");
        }
    }
}
