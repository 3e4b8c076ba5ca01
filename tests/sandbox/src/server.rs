//! A loopback HTTP server that ends when its handle is dropped. Unlike HTTP frameworks, it can close a connection
//! without an answer.

use std::{convert::Infallible, io, net::SocketAddr};

use axum::{
    Router,
    body::{Body, Bytes},
    response::Response,
};
use http::{HeaderMap, Request};
use hyper::{body::Incoming, server::conn::http1, service::Service as _};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// The reason for which a part of the sandbox could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port is in use, or this process may not use it.
    #[error(
        "port {port} on 127.0.0.1 cannot be used ({source}); choose another with --port, --platform-port or --console-port, \
         0 for a free one"
    )]
    Port {
        /// The requested port.
        port: u16,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The embedded database did not open.
    #[error("the database does not open: {0}")]
    Database(String),
    /// The table could not be created.
    #[error("the table cannot be created: {0}")]
    Table(String),
    /// A file beside the data file cannot be read, or has unexpected content.
    #[error("{path}: {problem}")]
    File {
        /// Path of the file.
        path: String,
        /// The problem with the file.
        problem: String,
    },
    /// An option of the command line has a value that cannot work.
    #[error("{0}")]
    Option(String),
    /// A function did not start.
    #[error("the function {function} does not start: {problem}")]
    Function {
        /// Name of the function.
        function: &'static str,
        /// The error that the function reported.
        problem: String,
    },
    /// The sandbox cannot find its own binary, or cannot get random numbers.
    #[error("the system refused: {0}")]
    System(String),
}

/// The treatment of a request whose client has disconnected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenClientLeaves {
    /// The request is processed to its end, as by a real server: a time-out of the client does not undo work on the
    /// server.
    Finish,
    /// The request is dropped. For long polls, because no job may be given to a dead worker.
    Cancel,
}

/// An extension of an answer. With it, the server closes the connection instead of answering.
#[derive(Debug, Clone, Copy)]
struct HangUp;

/// Returns an "answer" that makes the server close the connection.
pub fn hang_up() -> Response {
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(HangUp);
    response
}

/// Returns true if the answer is [`hang_up`].
pub fn is_hang_up(response: &Response) -> bool {
    response.extensions().get::<HangUp>().is_some()
}

/// Forwards a request to `url` and returns the answer. Returns [`hang_up`] if there is no answer.
pub async fn pass_on(http: &reqwest::Client, url: &str, mut headers: HeaderMap, body: Bytes) -> Response {
    for hop in ["host", "connection", "content-length", "transfer-encoding"] {
        headers.remove(hop);
    }
    let Ok(answer) = http.post(url).headers(headers).body(body).send().await else { return hang_up() };
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    let Ok(body) = answer.bytes().await else { return hang_up() };
    for hop in ["connection", "content-length", "transfer-encoding"] {
        headers.remove(hop);
    }
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Address of the client, added to each request as an extension.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// A running server. Dropping the handle closes the listener and every connection.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Serves `router` on 127.0.0.1; port 0 selects a free port.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn start(port: u16, router: Router, leaving: WhenClientLeaves) -> Result<Self, StartError> {
        let refused = |source| StartError::Port { port, source };
        let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let accepting = tokio::spawn(accept(listener, router, leaving));
        Ok(Self { address, accepting })
    }

    /// Returns `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the address on which the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, router: Router, leaving: WhenClientLeaves) {
    // Aborting this task drops the `JoinSet`, and with it every connection.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, peer)) = accepted {
                connections.spawn(serve(stream, peer, router.clone(), leaving));
            },
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, router: Router, leaving: WhenClientLeaves) {
    let _slower_then = stream.set_nodelay(true);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        let handled = TowerToHyperService::new(router.clone()).call(request);
        async move {
            let answered: Result<Result<Response, Infallible>, _> = match leaving {
                WhenClientLeaves::Finish => tokio::spawn(handled).await,
                WhenClientLeaves::Cancel => Ok(handled.await),
            };
            match answered {
                Ok(Ok(response)) if !is_hang_up(&response) => Ok(response),
                Ok(Ok(_) | Err(_)) | Err(_) => Err(io::Error::other("hung up")),
            }
        }
    });
    // An error here means that the client disconnected, or that a test requested the hang-up.
    let _ended = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;

    #[tokio::test]
    async fn hangs_up_without_an_answer_and_stops_on_drop() {
        let router = Router::new().route("/", get(|| async { "hello" })).route("/gone", get(|| async { hang_up() }));
        let server = Server::start(0, router, WhenClientLeaves::Finish).await.expect("a free port");
        let url = server.url();
        assert_eq!(reqwest::get(&url).await.expect("an answer").status(), 200);
        let error = reqwest::get(format!("{url}/gone")).await.expect_err("no answer");
        assert!(error.is_request() && !error.is_connect(), "connected, then closed: {error:?}");
        drop(server);
        tokio::task::yield_now().await;
        let refused = loop {
            // The listener closes when the aborted task is next polled.
            match reqwest::get(&url).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(error) if error.is_connect() => break true,
                Err(_) => {}
            }
        };
        assert!(refused);
    }
}
