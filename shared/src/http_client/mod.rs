//! The HTTP clients of the product, and why they differ.
//!
//! Reading a machine's root certificates is most of what a process does at its start. So it is done once, when the
//! first of them is made.

mod aws;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::SharedHttpClient;
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
pub type Relayed = Kept;

/// A client that keeps its connections.
type Kept = legacy::Client<Connector, Full<Bytes>>;

type Connector = BoxCloneSyncService<Uri, MaybeHttpsStream<TokioIo<TcpStream>>, BoxError>;

/// For relayed calls: connections are kept, redirects are answers like any other, nothing is retried or decoded, no
/// header is added but `Host` and `Content-Length`. It takes a request's target as it is, where clients that read it as
/// a URL change it (`'` in a query becomes `%27`).
///
/// # Errors
/// A TLS set-up that cannot work, such as a machine without root certificates.
pub fn relayed() -> Result<Relayed, rustls::Error> {
    kept(CONNECT, KEPT)
}

/// A client that keeps connections for `idle` and gives up one that takes longer than `connect` to be made.
#[expect(clippy::disallowed_methods, reason = "the one place that makes HTTP clients")]
fn kept(connect: Duration, idle: Duration) -> Result<Kept, rustls::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(Duration::from_secs(30)));
    let https = HttpsConnectorBuilder::new().with_tls_config(tls()?).https_or_http().enable_http1().wrap_connector(tcp);
    let connector = BoxCloneSyncService::new(Timeout::new(https, connect));
    Ok(legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(idle)
        .build(connector))
}

/// The machine's roots and the one cryptography, read once a process.
fn tls() -> Result<ClientConfig, rustls::Error> {
    static TLS: OnceLock<ClientConfig> = OnceLock::new();
    if let Some(tls) = TLS.get() {
        return Ok(tls.clone());
    }
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?
        .with_no_client_auth();
    Ok(TLS.get_or_init(|| tls).clone())
}

/// For AWS: one for the clients of all its services, made when the first of them sends something.
#[must_use]
pub fn aws() -> SharedHttpClient {
    SharedHttpClient::new(aws::Services::default())
}

/// For the token endpoint: each call has a connection of its own. A kept connection that died while idle fails only
/// after the request was written, and then nobody knows whether a single-use refresh token was spent.
///
/// # Errors
/// As [`relayed`].
#[expect(clippy::disallowed_methods, reason = "the one place that makes HTTP clients")]
pub fn token_endpoint() -> Result<reqwest::Client, reqwest::Error> {
    let client = reqwest::Client::builder();
    // Where the roots cannot be read, let it say so itself.
    let client = match tls() {
        Ok(tls) => client.tls_backend_preconfigured(tls),
        Err(_) => client,
    };
    client
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT)
        .user_agent(concat!("hoopai-relay/", env!("CARGO_PKG_VERSION")))
        .pool_max_idle_per_host(0)
        .build()
}
