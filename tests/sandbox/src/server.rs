//! A loopback HTTP server that ends when its handle is dropped, and that can do what frameworks prevent:
//! hang up without an answer.

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

/// Why a part of the sandbox could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port is in use, or not ours to take.
    #[error(
        "port {port} on 127.0.0.1 cannot be used ({source}); choose another with --port, --platform-port or --console-port, \
         0 for a free one"
    )]
    Port {
        /// The port that was asked for.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// The embedded database did not open.
    #[error("the database does not open: {0}")]
    Database(String),
    /// The table could not be made.
    #[error("the table cannot be created: {0}")]
    Table(String),
    /// A file beside the data file is not readable, or not what it should be.
    #[error("{path}: {problem}")]
    File {
        /// Which file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The sandbox does not find its own binary, or no random numbers.
    #[error("the system refused: {0}")]
    System(String),
}

/// What becomes of a request whose client has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenClientLeaves {
    /// It is worked on to the end, as a real server does: a time-out on one side undoes nothing on the other.
    Finish,
    /// It is dropped. For long polls: nothing must be handed to a worker that is dead.
    Cancel,
}

/// Put into an answer's extensions, it makes the server close the connection instead of answering.
#[derive(Debug, Clone, Copy)]
struct HangUp;

/// An "answer" that closes the connection.
#[must_use]
pub fn hang_up() -> Response {
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(HangUp);
    response
}

/// Whether an answer is [`hang_up`].
#[must_use]
pub fn is_hang_up(response: &Response) -> bool {
    response.extensions().get::<HangUp>().is_some()
}

/// Sends a request on to `url`, and answers what is answered there; [`hang_up`] where nothing is.
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

/// Who is on the other side, as an extension of each request.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// A running server; dropping it closes the listener and every connection.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Serves `router` on 127.0.0.1; port 0 takes a free one.
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

    /// `http://127.0.0.1:<port>`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Address it listens on.
    #[must_use]
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
    // Aborting this task drops the set, and with it every connection.
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
    // An error here is a client that left, or a hang-up that was asked for.
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
