//! URLs to which tokens and secrets may be sent.

use url::{Host, Url};

/// Parses a URL to which tokens and secrets may be sent.
///
/// # Errors
/// The fault of the URL, as text to follow the URL's name.
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

/// Returns true if a URL leads to this machine: to a loopback address (RFC 1122 section 3.2.1.3, RFC 4291 section
/// 2.5.3), to `localhost` or to a name below it (RFC 6761 section 6.3).
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_only() {
        for (url, good) in [
            ("http://127.0.0.1:9/", true),
            ("http://127.1.2.3:9/", true),
            ("http://localhost:9", true),
            ("http://LOCALHOST:9", true),
            ("http://app.localhost:9", true),
            ("http://[::1]:9", true),
            ("http://127.0.0.1.example.com", false),
            ("http://notlocalhost", false),
            ("http://localhost.example.com", false),
            ("http://0.0.0.0", false),
            ("http://10.0.0.1", false),
            ("https://10.0.0.1", true),
        ] {
            assert_eq!(parse_url(url).is_ok(), good, "{url}");
        }
    }
}
