//! The HTTP clients of the product: a connection pool for the platform, and one for AWS.
//!
//! Redirects are not followed, and bodies are not decoded. No header is added but `Host` and `Content-Length`. The target
//! of a request goes out byte for byte; clients that parse it as a URL change it (`'` in a query becomes `%27`).
//!
//! Reading the machine's root certificates is most of the work of a process at its start. The first pool reads them, and
//! all pools of the process share them.

mod aws;
pub mod aws_error;
mod connections;
mod exchange;
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
pub use self::connections::{Connection, Connections, NewConnection};
pub use self::exchange::{Reply, ResponseLimits, SendError};
pub use self::within::within;
use crate::domain::clock::Clock;

/// The most time that making a connection may take, its TLS handshake included.
const CONNECT: Duration = Duration::from_secs(3);
/// The `User-Agent` of the product. The platform's CDN blocks requests without one.
pub const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("hoopai-relay/", env!("CARGO_PKG_VERSION")));

type Connector = BoxCloneSyncService<Uri, MaybeHttpsStream<TokioIo<TcpStream>>, BoxError>;

/// The connection pool for the platform. `clock` decides when an idle connection is too old, and when a permit has ended.
///
/// # Errors
/// The TLS configuration is unusable, for example on a machine without root certificates.
pub fn platform(clock: Clock) -> Result<Connections, rustls::Error> {
    Ok(trusting(tls()?, clock))
}

/// A connection pool that trusts the root certificates of `tls` instead of the machine's.
pub fn trusting(tls: ClientConfig, clock: Clock) -> Connections {
    Connections::new(connector(tls), clock, OnServerError::Keep)
}

/// The HTTP client for all AWS services. Its pool is made when the first service sends a request.
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

/// The TLS configuration: the machine's root certificates and the cryptography of aws-lc-rs. Read once a process.
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
