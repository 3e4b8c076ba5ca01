//! The HTTP clients of the product: one pool of connections, for the platform and for AWS.
//!
//! Redirects are answers like any other, and nothing is decoded. No header is added but `Host` and `Content-Length`. A
//! request's target goes out as it is, where clients that read it as a URL change it (`'` in a query becomes `%27`).
//!
//! Reading a machine's root certificates is most of what a process does at its start. So it is done once, when the
//! first of them is made.

mod aws;
pub mod aws_error;
mod connections;
mod within;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::SharedHttpClient;
use http::{HeaderValue, Uri};
use hyper_rustls::{HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::net::TcpStream;
use tower::BoxError;
use tower::timeout::Timeout;
use tower::util::BoxCloneSyncService;

use self::connections::OnServerError;
pub use self::connections::{Connection, Connections, Failure, Limits, Reply};
pub use self::within::within;
use crate::domain::clock::Clock;

/// How long a connection may take, its TLS handshake included.
const CONNECT: Duration = Duration::from_secs(3);
/// The product's name for the platform. The platform's CDN blocks requests without one.
pub const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("hoopai-relay/", env!("CARGO_PKG_VERSION")));

type Connector = BoxCloneSyncService<Uri, MaybeHttpsStream<TokioIo<TcpStream>>, BoxError>;

/// For the platform. `clock` says when an idle connection is too old, and when a permit's time is over.
///
/// # Errors
/// A TLS set-up that cannot work, such as a machine without root certificates.
pub fn platform(clock: Clock) -> Result<Connections, rustls::Error> {
    Ok(trusting(tls()?, clock))
}

/// The same with other root certificates than the machine's.
#[must_use]
pub fn trusting(tls: ClientConfig, clock: Clock) -> Connections {
    Connections::new(connector(tls), clock, OnServerError::Keep)
}

/// For AWS: one for the clients of all its services, made when the first of them sends something.
#[must_use]
pub fn aws() -> SharedHttpClient {
    SharedHttpClient::new(aws::Services::default())
}

fn connector(tls: ClientConfig) -> Connector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(Duration::from_secs(30)));
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
    BoxCloneSyncService::new(Timeout::new(https, CONNECT))
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
