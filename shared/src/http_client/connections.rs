//! A connection pool for HTTP/1.1 in which a request takes a connection first and sends on it later.
//!
//! A permit is good for some hundred milliseconds, and making a connection takes up to three seconds. So a request that
//! needs a permit goes through three steps: [`Connections::connection`], then the permit, then [`Connections::send`].
//! Directly before it writes, `send` checks the connection and the permit's end again. The clients of `hyper_util`
//! cannot separate these steps.
//!
//! A frozen process does not notice that a server has closed or reset its connections. Two checks stand against that.
//! Before a connection is used, its task runs and reads what the server did. A connection that has been idle for too
//! long is closed; idle time is measured by the wall clock, because a monotonic clock does not advance while a machine
//! is frozen.
//!
//! A request that hyper gives back was never written, and is sent on another connection. A request whose outcome is
//! unknown is never sent again.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Request, Uri};
use http_body_util::Full;
use hyper::client::conn::http1;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout, timeout_at};
use tower::ServiceExt as _;
use url::Url;

use super::exchange::{ReceiveError, Reply, ResponseLimits, SendError, error_chain, receive, to_origin_form};
use super::{Connector, within};
use crate::domain::clock::{Clock, Millis};

/// Longest time that an unused connection is kept. The platform's servers close theirs after a minute.
const MAX_IDLE: Duration = Duration::from_secs(50);
/// The most unused connections for one server: as many as the platform takes requests at once.
const MAX_IDLE_CONNECTIONS: usize = 100;
/// The most connections for one request, if the server closes each of them before the request is written.
const TRIES: usize = 3;
/// The most time that a connection may take to become ready again after its response was read to the end.
const READY_WITHIN: Duration = Duration::from_secs(1);

/// A connection pool for any number of servers. Cheap to clone.
#[derive(Clone)]
pub struct Connections(Arc<Pool>);

struct Pool {
    connector: Connector,
    clock: Clock,
    on_server_error: OnServerError,
    idle: Mutex<HashMap<Origin, Vec<Pooled>>>,
}

/// Treatment of a connection after a response with a status of 500 or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnServerError {
    /// The connection is used again.
    Keep,
    /// The connection is closed, so that the next try may reach another host. The AWS SDK expects that.
    Close,
}

/// The server of a connection.
type Origin = (Scheme, Authority);

/// A connection that was taken from the pool. Nothing has been sent on it since. Dropping it gives it back to the pool.
pub struct Connection {
    pool: Connections,
    origin: Origin,
    pooled: Option<Pooled>,
}

/// A connection that was made for one request. It never goes to the pool.
pub struct NewConnection(Pooled);

/// An open connection, as the pool keeps it.
struct Pooled {
    sender: http1::SendRequest<Full<Bytes>>,
    /// The time when the connection was made, or when its last response was read.
    used_at: Millis,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(pooled) = self.pooled.take() {
            self.pool.keep(&self.origin, pooled);
        }
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connections")
    }
}

impl fmt::Debug for NewConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewConnection")
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

    /// Takes a live connection to the server of `uri`: an unused one, or a new one.
    ///
    /// # Errors
    /// [`SendError::NotSent`].
    pub async fn connection(&self, uri: &Uri) -> Result<Connection, SendError> {
        let origin = origin(uri)?;
        let pooled = self.take(&origin, uri).await?;
        Ok(Connection { pool: self.clone(), origin, pooled: Some(pooled) })
    }

    /// Sends `request` if it can leave by `leave_by`. It goes out on `connection`, or on another one if that is closed.
    ///
    /// # Errors
    /// Nothing was written in the cases [`SendError::NotSent`] and [`SendError::TooLate`].
    pub async fn send(
        &self,
        connection: Option<Connection>,
        mut request: Request<Full<Bytes>>,
        leave_by: Millis,
        limits: ResponseLimits,
    ) -> Result<Reply, SendError> {
        let ends = Instant::now() + limits.time;
        let (origin, uri) = (origin(request.uri())?, request.uri().clone());
        to_origin_form(&mut request)?;
        let mut taken = connection.and_then(|mut connection| connection.pooled.take());
        for _ in 0..TRIES {
            let pooled = match taken.take() {
                Some(taken) if self.is_live(&taken).await => taken,
                _ => timeout_at(ends, self.take(&origin, &uri)).await.map_err(|_| no_connection_in_time())??,
            };
            let sent_at = self.now();
            if sent_at > leave_by {
                self.keep(&origin, pooled);
                return Err(SendError::TooLate);
            }
            match exchange(pooled, request, sent_at, ends, limits.body).await {
                Ok((reply, pooled)) => {
                    if self.0.on_server_error == OnServerError::Keep || !reply.status.is_server_error() {
                        self.keep_when_ready(origin, pooled);
                    }
                    return Ok(reply);
                }
                Err(ReceiveError::NotWritten(unsent)) => request = *unsent,
                Err(ReceiveError::Failed(error)) => return Err(error),
            }
        }
        Err(never_written())
    }

    /// Sends a request that needs no permit. Its errors are those of [`Connections::send`].
    pub async fn call(&self, request: Request<Full<Bytes>>, limits: ResponseLimits) -> Result<Reply, SendError> {
        let leave_by = self.now() + limits.time;
        self.send(None, request, leave_by, limits).await
    }

    /// The present instant by the clock that `leave_by` is compared with.
    pub fn now(&self) -> Millis {
        self.0.clock.now()
    }

    /// Sends a GET without a token. Its errors are those of [`Connections::send`].
    pub async fn get(&self, url: &Url, limits: ResponseLimits) -> Result<Reply, SendError> {
        let unusable = |error: http::Error| SendError::NotSent(error.to_string());
        let request = Request::get(url.as_str()).header(http::header::USER_AGENT, super::USER_AGENT);
        self.call(request.body(Full::default()).map_err(unusable)?, limits).await
    }

    /// Makes a connection for one request to the server of `uri`.
    ///
    /// The token endpoint is called in this way. A server may close a kept connection just when a request is written to
    /// it. Then it is unknown if the server has used up the single-use refresh token in that request.
    ///
    /// # Errors
    /// [`SendError::NotSent`].
    pub async fn new_connection(&self, uri: &Uri, time: Duration) -> Result<NewConnection, SendError> {
        let made = timeout(time, Box::pin(self.connect(uri))).await;
        made.map_err(|_elapsed| no_connection_in_time())?.map(NewConnection)
    }

    /// Sends a request on a new connection, if it can leave by `leave_by`, and closes the connection afterwards. Nothing
    /// is repeated. Its errors are those of [`Connections::send`].
    pub async fn call_on_new_connection(
        &self,
        NewConnection(pooled): NewConnection,
        mut request: Request<Full<Bytes>>,
        leave_by: Millis,
        limits: ResponseLimits,
    ) -> Result<Reply, SendError> {
        let ends = Instant::now() + limits.time;
        to_origin_form(&mut request)?;
        let sent_at = self.now();
        if sent_at > leave_by {
            return Err(SendError::TooLate);
        }
        match exchange(pooled, request, sent_at, ends, limits.body).await {
            Ok((reply, _closed)) => Ok(reply),
            Err(ReceiveError::NotWritten(_)) => Err(never_written()),
            Err(ReceiveError::Failed(error)) => Err(error),
        }
    }

    /// Takes an unused connection that is alive, or makes a new one.
    async fn take(&self, origin: &Origin, uri: &Uri) -> Result<Pooled, SendError> {
        loop {
            let Some(unused) = self.unused(origin) else { return Box::pin(self.connect(uri)).await };
            if self.is_live(&unused).await {
                return Ok(unused);
            }
        }
    }

    /// Makes a connection. Its task is not awaited: an error of the task reaches the request that is sent on it.
    async fn connect(&self, uri: &Uri) -> Result<Pooled, SendError> {
        let stream = self.0.connector.clone().oneshot(uri.clone()).await;
        let stream = stream.map_err(|error| SendError::NotSent(error_chain(&*error)))?;
        let (sender, task) = http1::handshake(stream).await.map_err(|error| SendError::NotSent(error_chain(&error)))?;
        tokio::spawn(async move { drop(task.await) });
        Ok(Pooled { sender, used_at: self.now() })
    }

    /// The connection that was used last. The server will close it last.
    fn unused(&self, origin: &Origin) -> Option<Pooled> {
        self.idle().get_mut(origin)?.pop()
    }

    /// Keeps a connection whose response was read to the end. The connection is ready for the next request as soon as
    /// its task has seen the end of the response, which usually has happened already.
    fn keep_when_ready(&self, origin: Origin, mut pooled: Pooled) {
        pooled.used_at = self.now();
        if pooled.sender.is_ready() {
            self.keep(&origin, pooled);
        } else if !pooled.sender.is_closed() {
            let pool = self.clone();
            tokio::spawn(async move {
                if let Ok(Ok(())) = timeout(READY_WITHIN, pooled.sender.ready()).await {
                    pool.keep(&origin, pooled);
                }
            });
        }
    }

    fn keep(&self, origin: &Origin, pooled: Pooled) {
        let mut idle = self.idle();
        let of_this_server = match idle.get_mut(origin) {
            Some(known) => known,
            None => idle.entry(origin.clone()).or_default(),
        };
        of_this_server.retain(|other| self.is_usable(other));
        if of_this_server.len() < MAX_IDLE_CONNECTIONS && self.is_usable(&pooled) {
            of_this_server.push(pooled);
        }
    }

    /// Checks a connection after its task had the chance to read what the server did. A process that was frozen has the
    /// news of a closed connection in its socket: the first turn of the scheduler wakes the task, the second runs it.
    async fn is_live(&self, pooled: &Pooled) -> bool {
        yield_now().await;
        yield_now().await;
        self.is_usable(pooled)
    }

    fn is_usable(&self, pooled: &Pooled) -> bool {
        !pooled.sender.is_closed() && self.now().since(pooled.used_at) <= MAX_IDLE
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<Origin, Vec<Pooled>>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the request and reads the response, until `ends`.
async fn exchange(
    mut pooled: Pooled,
    request: Request<Full<Bytes>>,
    sent_at: Millis,
    ends: Instant,
    most_bytes: usize,
) -> Result<(Reply, Pooled), ReceiveError> {
    let receiving = receive(pooled.sender.try_send_request(request), sent_at, most_bytes);
    match within(ends.saturating_duration_since(Instant::now()), receiving).await {
        Ok(received) => received.map(|reply| (reply, pooled)),
        Err(_) => Err(SendError::TimedOut.into()),
    }
}

fn origin(uri: &Uri) -> Result<Origin, SendError> {
    let origin = uri.scheme().cloned().zip(uri.authority().cloned());
    origin.ok_or_else(|| SendError::NotSent("the target names no server".to_owned()))
}

fn no_connection_in_time() -> SendError {
    SendError::NotSent("no connection in time".to_owned())
}

fn never_written() -> SendError {
    SendError::NotSent("the server closed the connection before the request was written".to_owned())
}

#[cfg(test)]
pub(super) mod tests;
