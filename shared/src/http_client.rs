//! The two HTTP clients of the product, and why they differ.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::Full;
use hyper_rustls::{HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::net::TcpStream;
use tower::BoxError;
use tower::timeout::Timeout;
use tower::util::BoxCloneSyncService;

/// How long a connection may take, its TLS handshake included.
const CONNECT: Duration = Duration::from_secs(3);
/// How long an unused connection is kept. The platform's servers close theirs after a minute.
const KEPT: Duration = Duration::from_secs(50);

/// The client of relayed calls.
pub type Relayed = legacy::Client<Connector, Full<Bytes>>;

type Connector = BoxCloneSyncService<Uri, MaybeHttpsStream<TokioIo<TcpStream>>, BoxError>;

/// For relayed calls: connections are kept, redirects are answers like any other, nothing is retried or decoded, no
/// header is added but `Host` and `Content-Length`. It takes a request's target as it is, where clients that read it as
/// a URL change it (`'` in a query becomes `%27`).
///
/// # Errors
/// A TLS set-up that cannot work, such as a machine without root certificates.
#[expect(clippy::disallowed_methods, reason = "the one place that makes HTTP clients")]
pub fn relayed() -> Result<Relayed, rustls::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(Duration::from_secs(30)));
    // The cryptography and the roots that the other client has.
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?
        .with_no_client_auth();
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
    let connector = BoxCloneSyncService::new(Timeout::new(https, CONNECT));
    Ok(legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(KEPT)
        .build(connector))
}

/// For the token endpoint: each call has a connection of its own. A kept connection that died while idle fails only
/// after the request was written, and then nobody knows whether a single-use refresh token was spent.
///
/// # Errors
/// As [`relayed`].
#[expect(clippy::disallowed_methods, reason = "the one place that makes HTTP clients")]
pub fn token_endpoint() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT)
        .user_agent(concat!("hoopai-relay/", env!("CARGO_PKG_VERSION")))
        .pool_max_idle_per_host(0)
        .build()
}
