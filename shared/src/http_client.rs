//! The two HTTP clients of the product, and why they differ.

use std::time::Duration;

use reqwest::{Client, redirect};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(3);

/// For relayed calls: connections are kept, redirects are answers like any other, nothing is retried or decoded.
///
/// # Errors
/// A TLS set-up that cannot work, such as a machine without root certificates.
pub fn relayed() -> Result<Client, reqwest::Error> {
    builder().pool_idle_timeout(Duration::from_secs(50)).tcp_keepalive(Duration::from_secs(30)).build()
}

/// For the token endpoint: each call has a connection of its own. A kept connection that died while idle fails only
/// after the request was written, and then nobody knows whether a single-use refresh token was spent.
///
/// # Errors
/// As [`relayed`].
pub fn token_endpoint() -> Result<Client, reqwest::Error> {
    builder().pool_max_idle_per_host(0).build()
}

#[expect(clippy::disallowed_methods, reason = "the one place that makes HTTP clients")]
fn builder() -> reqwest::ClientBuilder {
    Client::builder()
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT)
        .user_agent(concat!("hoopai-relay/", env!("CARGO_PKG_VERSION")))
}
