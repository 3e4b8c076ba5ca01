//! A pool of HTTP/1.1 connections in which taking a connection and sending on it are two steps.
//!
//! A permit says when a request leaves, and making a connection takes up to three seconds. So a request that needs a
//! permit goes through three steps: [`Connections::connection`], then the permit, then [`Connections::send`], which
//! looks at the connection and at the permit's end again directly before it writes. `hyper_util`'s clients cannot
//! separate the steps.
//!
//! A frozen process does not notice that a server has closed or reset its connections. So a connection is not used
//! before its task has had the chance to read what the server did, nor when it is idle for too long by the wall clock
//! (a monotonic clock does not advance while a machine is frozen). A request that hyper gives back was never written
//! and is sent on another connection; a request whose outcome is unknown is never sent again.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::HOST;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::{TrySendError, http1};
use tokio::task::yield_now;
use tokio::time::{Instant, timeout, timeout_at};
use tower::ServiceExt as _;
use url::Url;

use super::{Connector, within};
use crate::domain::clock::{Clock, Millis};

/// The time for which an unused connection is kept. The platform's servers close theirs after a minute.
const KEPT: Duration = Duration::from_secs(50);
/// Unused connections that are kept for one server: as many as the platform takes requests at once.
const MOST_KEPT: usize = 100;
/// Connections that are tried for one request while the server closes each before the request is written.
const TRIES: usize = 3;
/// Time that a connection may take to become ready again after its answer was read to the end.
const READY_WITHIN: Duration = Duration::from_secs(1);

/// Connections to any number of servers. Cheap to clone.
#[derive(Clone)]
pub struct Connections(Arc<Pool>);

struct Pool {
    connector: Connector,
    clock: Clock,
    on_server_error: OnServerError,
    idle: Mutex<HashMap<Origin, Vec<Link>>>,
}

/// Treatment of a connection after an answer with a status of 500 or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnServerError {
    /// The connection is used again.
    Keep,
    /// The connection is closed, so that the next try may reach another host. The AWS SDK expects that.
    Close,
}

/// The server of a connection.
type Origin = (Scheme, Authority);

/// A connection in hand, on which nothing has been sent. Dropping it gives it back to the pool.
pub struct Connection {
    pool: Connections,
    origin: Origin,
    link: Option<Link>,
}

/// A connection itself.
struct Link {
    sender: http1::SendRequest<Full<Bytes>>,
    /// When it was made, or when its last answer was read.
    used_at: Millis,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            self.pool.keep(&self.origin, link);
        }
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// All its headers.
    pub headers: HeaderMap,
    /// Its body as sent, encoded or not.
    pub body: Bytes,
}

/// Why there is no answer. The texts hold no URL.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No connection: nothing was sent.
    #[error("no connection: {0}")]
    NotSent(String),
    /// The instant by which the request had to leave had passed: nothing was sent.
    #[error("too late to be sent")]
    TooLate,
    /// The connection broke; where the status was there already, it is here.
    #[error("the connection broke: {cause}")]
    Broken {
        /// What the HTTP client says.
        cause: String,
        /// The status, if only the body is missing.
        status: Option<StatusCode>,
    },
    /// Not within the time.
    #[error("no answer in time")]
    TimedOut,
    /// The body is larger than the limit.
    #[error("the answer is too large")]
    TooLarge(StatusCode),
}

/// Limits of one answer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From now to the last byte of the body; making a connection is part of it.
    pub time: Duration,
    /// The largest body in bytes.
    pub body: usize,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connections")
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("server", &self.origin.1).finish_non_exhaustive()
    }
}

impl Connections {
    pub(super) fn new(connector: Connector, clock: Clock, on_server_error: OnServerError) -> Self {
        Self(Arc::new(Pool { connector, clock, on_server_error, idle: Mutex::default() }))
    }

    /// A live connection to the server of `uri`: an unused one, or a new one.
    ///
    /// # Errors
    /// [`Failure::NotSent`].
    pub async fn connection(&self, uri: &Uri) -> Result<Connection, Failure> {
        let origin = origin(uri)?;
        let link = self.link(&origin, uri).await?;
        Ok(Connection { pool: self.clone(), origin, link: Some(link) })
    }

    /// Sends `request` if it can leave by `leave_by`, on `held` or, if that is no longer alive, on another connection.
    ///
    /// # Errors
    /// [`Failure`]; nothing was written in the cases [`Failure::NotSent`] and [`Failure::TooLate`].
    pub async fn send(
        &self,
        held: Option<Connection>,
        mut request: Request<Full<Bytes>>,
        leave_by: Millis,
        limits: Limits,
    ) -> Result<Reply, Failure> {
        let ends = Instant::now() + limits.time;
        let (origin, uri) = (origin(request.uri())?, request.uri().clone());
        to_origin_form(&mut request)?;
        let mut held = held.and_then(|mut held| held.link.take());
        for _ in 0..TRIES {
            let link = match held.take() {
                Some(held) if self.is_live(&held).await => held,
                _ => timeout_at(ends, self.link(&origin, &uri)).await.map_err(|_| no_connection_in_time())??,
            };
            match self.send_on(link, request, leave_by, ends, limits.body).await {
                Ok((reply, link)) => {
                    if self.0.on_server_error == OnServerError::Keep || !reply.status.is_server_error() {
                        self.keep_when_ready(origin, link);
                    }
                    return Ok(reply);
                }
                Err(Unanswered::NotWritten(unsent)) => request = *unsent,
                Err(Unanswered::TooLate(link)) => {
                    self.keep(&origin, link);
                    return Err(Failure::TooLate);
                }
                Err(Unanswered::Failed(failure)) => return Err(failure),
            }
        }
        Err(never_written())
    }

    /// Sends a request that needs no permit.
    ///
    /// # Errors
    /// As [`Connections::send`].
    pub async fn call(&self, request: Request<Full<Bytes>>, limits: Limits) -> Result<Reply, Failure> {
        let leave_by = self.0.clock.now() + limits.time;
        self.send(None, request, leave_by, limits).await
    }

    /// The present instant by the clock that the ends of permits are compared with.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.0.clock.now()
    }

    /// Reads `url` without a token.
    ///
    /// # Errors
    /// As [`Connections::send`].
    pub async fn get(&self, url: &Url, limits: Limits) -> Result<Reply, Failure> {
        let unusable = |error: http::Error| Failure::NotSent(error.to_string());
        let request = Request::get(url.as_str()).header(http::header::USER_AGENT, super::USER_AGENT);
        self.call(request.body(Full::default()).map_err(unusable)?, limits).await
    }

    /// Sends a request on a connection of its own, if it can leave by `leave_by`. The connection is closed afterwards.
    /// Nothing is repeated.
    ///
    /// For the token endpoint: a server may close a kept connection just when a request is written to it, and then
    /// nobody knows if the single-use refresh token in it was spent.
    ///
    /// # Errors
    /// As [`Connections::send`].
    pub async fn call_apart(
        &self,
        mut request: Request<Full<Bytes>>,
        leave_by: Millis,
        limits: Limits,
    ) -> Result<Reply, Failure> {
        let ends = Instant::now() + limits.time;
        let uri = request.uri().clone();
        to_origin_form(&mut request)?;
        let link = timeout_at(ends, Box::pin(self.connect(&uri))).await.map_err(|_| no_connection_in_time())??;
        match self.send_on(link, request, leave_by, ends, limits.body).await {
            Ok((reply, _closed)) => Ok(reply),
            Err(Unanswered::NotWritten(_)) => Err(never_written()),
            Err(Unanswered::TooLate(_)) => Err(Failure::TooLate),
            Err(Unanswered::Failed(failure)) => Err(failure),
        }
    }

    async fn send_on(
        &self,
        mut link: Link,
        request: Request<Full<Bytes>>,
        leave_by: Millis,
        ends: Instant,
        most_bytes: usize,
    ) -> Result<(Reply, Link), Unanswered> {
        if self.0.clock.now() > leave_by {
            return Err(Unanswered::TooLate(link));
        }
        let answering = link.sender.try_send_request(request);
        let receiving = receive(answering, most_bytes);
        match within(ends.saturating_duration_since(Instant::now()), receiving).await {
            Ok(received) => received.map(|reply| (reply, link)),
            Err(_) => Err(Failure::TimedOut.into()),
        }
    }

    /// An unused connection that is alive, or a new one.
    async fn link(&self, origin: &Origin, uri: &Uri) -> Result<Link, Failure> {
        loop {
            let Some(unused) = self.unused(origin) else { return Box::pin(self.connect(uri)).await };
            if self.is_live(&unused).await {
                return Ok(unused);
            }
        }
    }

    /// Makes a connection. Its task is not awaited: what ends it is told to the request that is sent on it.
    async fn connect(&self, uri: &Uri) -> Result<Link, Failure> {
        let stream = self.0.connector.clone().oneshot(uri.clone()).await;
        let stream = stream.map_err(|error| Failure::NotSent(chain(&*error)))?;
        let (sender, task) = http1::handshake(stream).await.map_err(|error| Failure::NotSent(chain(&error)))?;
        tokio::spawn(async move { drop(task.await) });
        Ok(Link { sender, used_at: self.0.clock.now() })
    }

    /// The connection that was used last is the one that the server will close last.
    fn unused(&self, origin: &Origin) -> Option<Link> {
        self.idle().get_mut(origin)?.pop()
    }

    /// Keeps a connection whose answer was read to the end. It is ready for the next request once its task has seen
    /// that, which usually has happened already.
    fn keep_when_ready(&self, origin: Origin, mut link: Link) {
        link.used_at = self.0.clock.now();
        if link.sender.is_ready() {
            self.keep(&origin, link);
        } else if !link.sender.is_closed() {
            let pool = self.clone();
            tokio::spawn(async move {
                if let Ok(Ok(())) = timeout(READY_WITHIN, link.sender.ready()).await {
                    pool.keep(&origin, link);
                }
            });
        }
    }

    fn keep(&self, origin: &Origin, link: Link) {
        let mut idle = self.idle();
        let of_this_server = match idle.get_mut(origin) {
            Some(known) => known,
            None => idle.entry(origin.clone()).or_default(),
        };
        of_this_server.retain(|other| self.is_usable(other));
        if of_this_server.len() < MOST_KEPT && self.is_usable(&link) {
            of_this_server.push(link);
        }
    }

    /// Looks at a connection after its task had the chance to read what the server did. A process that was frozen has
    /// the news of a closed connection in its socket; the first turn wakes the task, and the second one runs it.
    async fn is_live(&self, link: &Link) -> bool {
        yield_now().await;
        yield_now().await;
        self.is_usable(link)
    }

    fn is_usable(&self, link: &Link) -> bool {
        !link.sender.is_closed() && self.0.clock.now().since(link.used_at) <= KEPT
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<Origin, Vec<Link>>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a connection brought no answer.
enum Unanswered {
    /// Nothing was written: here is the request.
    NotWritten(Box<Request<Full<Bytes>>>),
    /// Nothing was written, since it was too late. The connection is as good as before.
    TooLate(Link),
    Failed(Failure),
}

impl From<Failure> for Unanswered {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

type Answering = Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>>;

/// Head and body of an answer.
async fn receive(answering: impl Future<Output = Answering>, most_bytes: usize) -> Result<Reply, Unanswered> {
    let answer = answering.await.map_err(|mut error| match error.take_message() {
        Some(unsent) => Unanswered::NotWritten(Box::new(unsent)),
        None => Failure::Broken { cause: chain(&error.into_error()), status: None }.into(),
    })?;
    let (head, body) = answer.into_parts();
    let body = whole(body, head.status, most_bytes).await?;
    Ok(Reply { status: head.status, headers: head.headers, body })
}

async fn whole(mut body: Incoming, status: StatusCode, most_bytes: usize) -> Result<Bytes, Failure> {
    let too_large = || Failure::TooLarge(status);
    if body.size_hint().lower() > most_bytes as u64 {
        return Err(too_large());
    }
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Failure::Broken { cause: chain(&e), status: Some(status) })?;
        // A frame without data holds trailers, which API Gateway would not carry.
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > most_bytes {
            return Err(too_large());
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

fn origin(uri: &Uri) -> Result<Origin, Failure> {
    let origin = uri.scheme().cloned().zip(uri.authority().cloned());
    origin.ok_or_else(|| Failure::NotSent("the target names no server".to_owned()))
}

/// On the wire a request names its server in `Host` and only path and query in its first line (RFC 9112 section 3.2.1).
fn to_origin_form(request: &mut Request<Full<Bytes>>) -> Result<(), Failure> {
    let unusable = || Failure::NotSent("the target cannot be written".to_owned());
    let uri = request.uri();
    let (host, default_port) =
        (uri.host().ok_or_else(unusable)?, if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 });
    let host = match uri.port_u16() {
        Some(port) if port != default_port => HeaderValue::try_from(format!("{host}:{port}")),
        _ => HeaderValue::try_from(host),
    };
    let host = host.map_err(|_| unusable())?;
    let target = uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
    request.headers_mut().entry(HOST).or_insert(host);
    *request.uri_mut() = target;
    Ok(())
}

fn no_connection_in_time() -> Failure {
    Failure::NotSent("no connection in time".to_owned())
}

fn never_written() -> Failure {
    Failure::NotSent("the server closed the connection before the request was written".to_owned())
}

/// An error and its causes.
fn chain(error: &dyn Error) -> String {
    let sources = std::iter::successors(error.source(), |e| (**e).source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const LIMITS: Limits = Limits { time: Duration::from_secs(10), body: 1_000_000 };
    const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole";

    /// The way in which the peer ends its connections.
    #[derive(Clone, Copy, Debug)]
    enum End {
        Close,
        Reset,
    }

    /// A server on a thread of its own, so that it goes on while the thread of a test stands still, as a server does
    /// while a process is frozen.
    pub(crate) struct Peer {
        pub(crate) address: SocketAddr,
        commands: mpsc::Sender<(End, mpsc::Sender<()>)>,
        connections: Arc<AtomicUsize>,
        requests: Arc<AtomicUsize>,
    }

    impl Peer {
        /// It answers each request with these pieces, each after a pause.
        pub(crate) fn answering(pieces: &'static [(u64, &'static [u8])]) -> Self {
            let (commands, commanded) = mpsc::channel::<(End, mpsc::Sender<()>)>();
            let (told, telling) = mpsc::channel();
            let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let counts = (Arc::clone(&connections), Arc::clone(&requests));
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async move {
                    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                    told.send(listener.local_addr().expect("bound")).expect("told");
                    let mut serving: Vec<tokio::task::JoinHandle<()>> = Vec::new();
                    let streams: Arc<Mutex<Vec<Arc<TcpStream>>>> = Arc::default();
                    loop {
                        let accepted = timeout(Duration::from_millis(2), listener.accept()).await;
                        if let Ok(accepted) = accepted {
                            counts.0.fetch_add(1, Ordering::SeqCst);
                            let stream = Arc::new(accepted.expect("a connection").0);
                            streams.lock().expect("unpoisoned").push(Arc::clone(&stream));
                            serving.push(tokio::spawn(serve(stream, pieces, Arc::clone(&counts.1))));
                        }
                        match commanded.try_recv() {
                            Err(mpsc::TryRecvError::Disconnected) => return,
                            Err(mpsc::TryRecvError::Empty) => {}
                            Ok((end, done)) => {
                                serving.drain(..).for_each(|task| task.abort());
                                yield_now().await;
                                for stream in streams.lock().expect("unpoisoned").drain(..) {
                                    if let End::Reset = end {
                                        stream.set_zero_linger().expect("a socket");
                                    }
                                }
                                done.send(()).expect("told");
                            }
                        }
                    }
                });
            });
            Self { address: telling.recv().expect("it listens"), commands, connections, requests }
        }

        /// Ends all connections. The test's own thread stands still until that has happened.
        fn end_all(&self, end: End) {
            let (done, is_done) = mpsc::channel();
            self.commands.send((end, done)).expect("it listens");
            is_done.recv().expect("it is done");
            std::thread::sleep(Duration::from_millis(5));
        }

        fn post(&self) -> Request<Full<Bytes>> {
            Request::post(format!("http://{}/a?b=c", self.address)).body(Full::from("body")).expect("a request")
        }

        pub(crate) fn seen(&self) -> (usize, usize) {
            (self.connections.load(Ordering::SeqCst), self.requests.load(Ordering::SeqCst))
        }
    }

    impl Peer {
        /// Lets the thread of the test stand still once more than `requests` have arrived.
        pub(crate) async fn stand_still_after(self: Arc<Self>, requests: usize) {
            while self.seen().1 == requests {
                yield_now().await;
            }
            std::thread::sleep(Duration::from_millis(400));
        }
    }

    async fn serve(stream: Arc<TcpStream>, pieces: &'static [(u64, &'static [u8])], requests: Arc<AtomicUsize>) {
        let mut seen = Vec::new();
        loop {
            stream.readable().await.expect("a socket");
            let mut part = [0; 1024];
            match stream.try_read(&mut part) {
                Ok(0) => return,
                Ok(read) => seen.extend_from_slice(&part[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(_) => return,
            }
            if !seen.ends_with(b"\r\n\r\nbody") && !seen.ends_with(b"\r\n\r\n{}") {
                continue;
            }
            seen.clear();
            requests.fetch_add(1, Ordering::SeqCst);
            for (pause, piece) in pieces {
                tokio::time::sleep(Duration::from_millis(*pause)).await;
                stream.writable().await.expect("a socket");
                stream.try_write(piece).expect("written");
            }
        }
    }

    fn connections(clock: &Clock) -> Connections {
        super::super::platform(clock.clone()).expect("connections")
    }

    #[tokio::test]
    async fn requests_follow_each_other_on_one_connection_until_it_is_idle_for_too_long() {
        let (peer, clock) = (Peer::answering(&[(0, WHOLE)]), Clock::manual(Millis(0)));
        let connections = connections(&clock);
        for _ in 0..20 {
            assert_eq!(connections.call(peer.post(), LIMITS).await.expect("an answer").body, "whole");
        }
        assert_eq!(peer.seen(), (1, 20));
        clock.advance(KEPT);
        connections.call(peer.post(), LIMITS).await.expect("an answer");
        assert_eq!(peer.seen(), (1, 21));
        clock.advance(KEPT + Duration::from_millis(1));
        connections.call(peer.post(), LIMITS).await.expect("an answer");
        assert_eq!(peer.seen(), (2, 22));
        for _ in 0..2 {
            connections.call_apart(peer.post(), clock.now(), LIMITS).await.expect("an answer");
        }
        assert_eq!(peer.seen(), (4, 24), "each has a connection of its own");
        let late = connections.call_apart(peer.post(), clock.now() - Duration::from_millis(1), LIMITS).await;
        assert!(matches!(late, Err(Failure::TooLate)), "{late:?}");
        assert_eq!(peer.seen().1, 24);
    }

    /// A process stands still, its connections end meanwhile, and then it sends a POST at once.
    #[tokio::test]
    async fn no_request_is_trusted_to_a_connection_that_ended_while_the_process_stood_still() {
        for end in [End::Close, End::Reset] {
            let (peer, clock) = (Peer::answering(&[(0, WHOLE)]), Clock::system());
            let connections = connections(&clock);
            for round in 1..=20 {
                connections.call(peer.post(), LIMITS).await.unwrap_or_else(|e| panic!("{end:?}, round {round}: {e}"));
                assert_eq!(peer.seen(), (round, round), "{end:?}: each request arrives once");
                peer.end_all(end);
            }
            // The same for a connection that was in hand all the while.
            for round in 21..=40 {
                let held = connections.connection(peer.post().uri()).await.expect("a connection");
                peer.end_all(end);
                let sent = connections.send(Some(held), peer.post(), Millis(i64::MAX), LIMITS).await;
                sent.unwrap_or_else(|error| panic!("{end:?}, round {round}: {error}"));
                assert_eq!(peer.seen().1, round, "{end:?}: each request arrives once");
            }
        }
    }

    #[tokio::test]
    async fn a_connection_that_is_not_used_after_all_is_kept() {
        let (peer, connections) = (Peer::answering(&[(0, WHOLE)]), connections(&Clock::system()));
        for _ in 0..3 {
            drop(connections.connection(peer.post().uri()).await.expect("a connection"));
        }
        connections.call(peer.post(), LIMITS).await.expect("an answer");
        drop(connections.connection(peer.post().uri()).await.expect("a connection"));
        assert_eq!(peer.seen(), (1, 1));
    }

    #[tokio::test]
    async fn nothing_leaves_after_its_time_and_the_connection_is_kept() {
        let (peer, clock) = (Peer::answering(&[(0, WHOLE)]), Clock::manual(Millis(5_000)));
        let connections = connections(&clock);
        let uri = peer.post().uri().clone();
        let held = connections.connection(&uri).await.expect("a connection");
        let late = connections.send(Some(held), peer.post(), Millis(4_999), LIMITS).await;
        assert!(matches!(late, Err(Failure::TooLate)), "{late:?}");
        let held = connections.connection(&uri).await.expect("a connection");
        connections.send(Some(held), peer.post(), Millis(5_000), LIMITS).await.expect("an answer");
        assert_eq!(peer.seen(), (1, 1));
    }

    /// The process stands still for longer than it would wait, and finds the answer in its socket.
    #[tokio::test]
    async fn an_answer_that_has_arrived_is_read_before_the_time_is_over() {
        const PIECES: [&[(u64, &[u8])]; 3] = [
            &[(20, WHOLE)],
            &[(20, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"), (5, b"wh"), (5, b"ole")],
            &[
                (10, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nwh\r\n"),
                (10, b"3\r\nole\r\n0\r\n\r\n"),
            ],
        ];
        for pieces in PIECES {
            let (peer, clock) = (Peer::answering(pieces), Clock::system());
            let (connections, peer) = (connections(&clock), Arc::new(peer));
            for apart in [false, true] {
                let before = peer.seen().1;
                let standing_still = tokio::spawn(peer.clone().stand_still_after(before));
                let limits = Limits { time: Duration::from_millis(200), ..LIMITS };
                let answer = if apart {
                    connections.call_apart(peer.post(), Millis(i64::MAX), limits).await
                } else {
                    connections.call(peer.post(), limits).await
                };
                assert_eq!(answer.expect("it had arrived").body, "whole", "{pieces:?}");
                standing_still.await.expect("no panic");
            }
        }
    }

    #[tokio::test]
    async fn an_answer_that_has_not_arrived_is_a_time_out() {
        const PIECES: [&[(u64, &[u8])]; 2] =
            [&[(400, WHOLE)], &[(0, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwh"), (400, b"ole")]];
        for pieces in PIECES {
            let (peer, clock) = (Peer::answering(pieces), Clock::system());
            let limits = Limits { time: Duration::from_millis(100), ..LIMITS };
            let failure = connections(&clock).call(peer.post(), limits).await.expect_err("it comes too late");
            assert!(matches!(failure, Failure::TimedOut), "{failure:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_closes_every_connection_at_once_is_not_tried_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("bound"));
        let closing = tokio::spawn(async move {
            loop {
                drop(listener.accept().await);
            }
        });
        let request = || Request::get(&url).body(Full::default()).expect("a request");
        let failure = connections(&Clock::system()).call(request(), LIMITS).await.expect_err("no answer");
        assert!(matches!(failure, Failure::NotSent(_) | Failure::Broken { status: None, .. }), "{failure:?}");
        closing.abort();
    }

    #[tokio::test]
    async fn a_target_goes_out_in_origin_form_with_its_host() {
        for (target, line, host) in [
            ("https://example.com/a'b?c=%2F", "/a'b?c=%2F", "example.com"),
            ("https://example.com:443", "/", "example.com"),
            ("https://example.com:444?q", "/?q", "example.com:444"),
            ("http://[::1]:80/", "/", "[::1]"),
            ("http://127.0.0.1:8080/x", "/x", "127.0.0.1:8080"),
        ] {
            let mut request = Request::get(target).body(Full::default()).expect("a request");
            to_origin_form(&mut request).expect("a server");
            assert_eq!(
                (request.uri().to_string().as_str(), &request.headers()[HOST]),
                (line, &HeaderValue::from_static(host))
            );
        }
        assert!(to_origin_form(&mut Request::get("/x").body(Full::default()).expect("a request")).is_err());
    }
}
