//! One relayed call, from its token to its response. [`super::retry`] decides each next step; this module does it.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{StatusCode, Uri, header};
use http_body_util::Full;

use super::Relay;
use super::refused::Refused;
use super::retry::{AttemptOutcome, Execution, History, Next, Unauthorized, next};
use super::upstream::{self, LARGEST_BODY};
use super::{headers, token_class};
use crate::caller::Caller;
use crate::domain::access::Access;
use crate::domain::clock::Millis;
use crate::http_client::{Connection, Reply, ResponseLimits, SendError};
use crate::idempotency::{Begun, Claim, Ending, FOR_THE_OUTCOME, Found, Recordable};
use crate::limiter::{Background, LimiterError, Permit, ShareOwner, Usage};
use crate::platform::error_response::ErrorResponse;
use crate::request::Request;
use crate::request::mcp;
use crate::request::path::target_uri;
use crate::token::TokenError;

/// The time that a wait for a permit leaves for the platform's response.
const FOR_THE_ANSWER: Duration = Duration::from_secs(2);
/// The most permits that may come too late to be used. Each of them counts against the limits.
const LATE_PERMITS: usize = 3;
/// The longest time that an answer waits for a write that takes permits ahead of need. Usually the platform takes longer than
/// the write, so no answer waits. If the write takes still longer, its permits are lost.
const FOR_PERMITS_AHEAD: Duration = Duration::from_millis(20);
/// The time after which a token is read again directly before it is sent. A token in memory is up to 8 s old, and an
/// uninstall must be noticed within 10 s.
const TOKEN_RECHECK: Duration = Duration::from_secs(1);

/// The kind of permits that a call takes.
#[derive(Clone, Copy)]
pub(super) enum Pacing<'a> {
    /// Those of a caller that waits for its answer. The request says for how long the caller waits for a permit.
    Caller,
    /// Those of the queue, until this instant.
    Background(&'a Background, Millis),
}

/// The state of a call.
pub(super) struct Call<'a> {
    relay: &'a Relay,
    caller: &'a Caller,
    request: &'a Request,
    deadline: Millis,
    pacing: Pacing<'a>,
    /// The request as it is recorded, if it is sent once.
    recordable: Option<&'a Recordable>,
    /// The lease of its record, if the last attempt may have been executed.
    pub(super) claim: Option<Claim>,
    wait_until: Option<Millis>,
    history: History,
    token_read_at: Millis,
    /// The state of the limits, from the last permit or refusal.
    pub(super) usage: Option<Usage>,
    /// The execution by the last attempt. An attempt that may have been executed is the last one, except for requests
    /// that only read.
    pub(super) execution: Execution,
    pub(super) timings: Timings,
}

/// Timings and counts of a call, for its line in the log. Times in milliseconds.
#[derive(Debug, Default)]
pub(super) struct Timings {
    /// The requests that were sent. One for which there was no connection was not.
    pub(super) attempts: u32,
    pub(super) generation: Option<u64>,
    pub(super) token_ms: u64,
    pub(super) permit_ms: u64,
    pub(super) platform_ms: u64,
}

/// A response, or the reason why there is none. The retry policy decides what follows either.
type Sent<T> = std::result::Result<T, SendError>;

/// A value, or the refusal that ends the call.
type Result<T, E = Refused> = std::result::Result<T, E>;

/// The reason why a call ends without a response.
pub(super) enum Stop {
    /// The relay refuses the request.
    Refused(Refused),
    /// An equal request has a record.
    Found(Found),
}

impl<E: Into<Refused>> From<E> for Stop {
    fn from(reason: E) -> Self {
        Self::Refused(reason.into())
    }
}

impl<'a> Call<'a> {
    pub(super) fn new(
        relay: &'a Relay,
        caller: &'a Caller,
        request: &'a Request,
        deadline: Millis,
        pacing: Pacing<'a>,
        recordable: Option<&'a Recordable>,
    ) -> Self {
        let now = relay.now();
        let latest = deadline - FOR_THE_ANSWER;
        let wait_until = match pacing {
            Pacing::Caller if request.wait.is_zero() => None,
            Pacing::Caller => Some((now + request.wait).min(latest)),
            Pacing::Background(_, until) => Some(until.min(latest)),
        };
        let wait_until = wait_until.filter(|at| *at > now);
        let (history, timings) = (History::default(), Timings::default());
        let execution = Execution::No;
        Self {
            relay,
            caller,
            request,
            deadline,
            pacing,
            recordable,
            claim: None,
            wait_until,
            history,
            token_read_at: now,
            usage: None,
            execution,
            timings,
        }
    }

    pub(super) async fn run(&mut self) -> Result<Reply, Stop> {
        mcp::check_offered(&self.request.method, &self.request.path)?;
        token_class::check(self.request)?;
        let mut access = self.access().await?;
        // The response that the caller gets if there is no permit or no time for another attempt.
        let mut fallback: Option<Reply> = None;
        // True if the token was renewed because of a 401 with an unknown text.
        let mut doubted = false;
        loop {
            let result = match (self.attempt(&mut access).await, fallback.take()) {
                (Ok(result), _) => result,
                (Err(Stop::Refused(_)), Some(reply)) => return Ok(reply),
                (Err(stop), _) => return Err(stop),
            };
            self.execution = Execution::after(&result);
            let outcome = outcome(&result);
            self.learn_of_token(&access, outcome, doubted, result.as_ref().ok()).await;
            let next = next(&self.request.method, outcome, self.history);
            if self.execution == Execution::No && next != Next::PassOn {
                self.release().await?;
            }
            match (next, result) {
                (Next::Renew, Ok(reply)) => {
                    doubted = matches!(outcome, AttemptOutcome::Answered(_, Some(Unauthorized::Unknown)));
                    match self.renew(&access, doubted).await? {
                        Some(renewed) => access = renewed,
                        None => return Ok(reply),
                    }
                }
                (Next::AskUncompressed, Ok(_)) => self.history.asked_uncompressed = true,
                (Next::Wait, Ok(reply)) => {
                    self.history.waits += 1;
                    if self.wait_until.is_none() {
                        return Ok(reply);
                    }
                    fallback = Some(reply);
                }
                (Next::Repeat(within), result) => {
                    self.history.repeats += 1;
                    let pause = within.mul_f64(fastrand::f64());
                    if self.left() <= pause {
                        return result.map_err(|failure| Refused::by_platform(&failure).into());
                    }
                    tokio::time::sleep(pause).await;
                    fallback = result.ok();
                }
                (_, result) => return result.map_err(|failure| Refused::by_platform(&failure).into()),
            }
        }
    }

    fn left(&self) -> Duration {
        self.deadline.since(self.relay.now())
    }

    async fn access(&mut self) -> Result<Access> {
        let started = self.relay.now();
        let access = self.relay.app.tokens.access(&self.request.resource, self.deadline).await;
        self.record_token(started, access.as_ref().ok());
        access.map_err(|error| Refused::by_token(&error, self.relay.now()))
    }

    /// Renews the token. `None` if the caller gets the platform's 401. `doubted` is true if the text of the 401 is unknown.
    async fn renew(&mut self, used: &Access, doubted: bool) -> Result<Option<Access>> {
        self.history.renewed = true;
        let (tokens, resource, started) = (&self.relay.app.tokens, &self.request.resource, self.relay.now());
        let access = if doubted {
            tokens.renew_doubted(resource, used, self.deadline).await
        } else {
            tokens.renew(resource, used, self.deadline).await
        };
        self.record_token(started, access.as_ref().ok());
        match access {
            Ok(access) => Ok(Some(access)),
            Err(TokenError::RecentlyForced) => Ok(None),
            // The token may be valid. The caller gets the platform's 401 rather than our failure to renew the token.
            Err(error)
                if doubted && !matches!(error, TokenError::Revoked | TokenError::ReauthorizationRequired { .. }) =>
            {
                Ok(None)
            }
            Err(error) => Err(Refused::by_token(&error, self.relay.now())),
        }
    }

    /// Learns from an outcome if the token is valid. `renewed_in_doubt` is true if the token came from a renewal because of
    /// a 401 with an unknown text.
    async fn learn_of_token(
        &self,
        used: &Access,
        outcome: AttemptOutcome,
        renewed_in_doubt: bool,
        reply: Option<&Reply>,
    ) {
        let (app, resource) = (&self.relay.app, &self.request.resource);
        match outcome {
            AttemptOutcome::Answered(status, _) if status.is_success() => {
                app.tokens.worked(resource, used);
                if renewed_in_doubt {
                    app.tokens.renewal_helped(resource, used).await;
                }
            }
            // The renewal was useless. An operator should see the text, so that it can be classified.
            AttemptOutcome::Answered(status, Some(Unauthorized::Unknown)) if renewed_in_doubt => {
                let said = reply.map(|reply| ErrorResponse::read(status, &reply.body).sample).unwrap_or_default();
                app.alarms.unclassified(resource, status, &said).await;
            }
            _ => {}
        }
    }

    fn record_token(&mut self, started: Millis, access: Option<&Access>) {
        self.timings.token_ms += self.since(started);
        self.token_read_at = self.relay.now();
        self.timings.generation = access.map(|a| a.generation).or(self.timings.generation);
    }

    fn since(&self, started: Millis) -> u64 {
        u64::try_from(self.relay.now().since(started).as_millis()).unwrap_or(u64::MAX)
    }

    /// One attempt: takes a connection and a permit, reads the token again if the wait for them was long, records the intent,
    /// and sends the request if it can leave before the permit ends. Refused if there is no permit or no token.
    ///
    /// The intent is the last step. So a process that dies while it waits leaves no record, and the outcome of a request is
    /// unknown only if it may have been sent.
    async fn attempt(&mut self, access: &mut Access) -> Result<Sent<Reply>, Stop> {
        let uri = match target_uri(&self.relay.app.config.api_url, &self.request.path, &self.request.query) {
            Ok(uri) => uri,
            Err(reason) => return Ok(Err(SendError::NotSent(reason.to_string()))),
        };
        for _ in 0..LATE_PERMITS {
            let connection = match self.connection(&uri).await? {
                Ok(connection) => connection,
                Err(failure) => return Ok(Err(failure)),
            };
            // All slow steps come before the permit, which ends after some hundred milliseconds.
            self.recheck_token(access).await?;
            let mut request = self.request(&uri, access);
            let permit = self.permit().await?;
            let permitted_at = self.relay.now();
            let last_steps = self.last_steps(access).await;
            if let Pacing::Background(permits, _) = self.pacing {
                permits.note_intent(&self.request.resource, self.relay.now().since(permitted_at));
            }
            match last_steps {
                Ok(true) => request = self.request(&uri, access),
                Ok(false) => {}
                Err(stop) => {
                    self.relay.limiter.hand_on(&self.request.resource, permit);
                    return Err(stop);
                }
            }
            match self.send(connection, request, &permit).await {
                Err(SendError::TooLate) => self.release().await?,
                result => {
                    self.timings.attempts += u32::from(!matches!(result, Err(SendError::NotSent(_))));
                    if let Ok(reply) = &result {
                        self.observe(reply).await;
                    }
                    return Ok(result);
                }
            }
        }
        Err(Refused::by_deadline().into())
    }

    /// The steps between the permit and the request. Returns true if the token was read again.
    async fn last_steps(&mut self, access: &mut Access) -> Result<bool, Stop> {
        let is_other_token = self.recheck_token(access).await?;
        if let Some(recordable) = self.recordable.filter(|_| self.claim.is_none()) {
            match Box::pin(self.relay.recorder.begin(recordable, self.deadline)).await {
                Ok(Begun::Claimed(claim)) => self.claim = Some(claim),
                Ok(Begun::Found(found)) => return Err(Stop::Found(found)),
                Err(error) => return Err(Refused::by_record(&error, self.relay.now()).into()),
            }
        }
        Ok(is_other_token)
    }

    /// Ends the record of a request that was certainly not executed, before a further attempt. That one records the intent
    /// again. If the table does not take the end, there is no further attempt, which would meet the intent of this one. The
    /// claim stays, and whoever performs the call tries once more to end it.
    async fn release(&mut self) -> Result<()> {
        if let Some(claim) = self.claim.take()
            && let Err(error) = self.relay.recorder.end(&claim, Ending::NotExecuted, FOR_THE_OUTCOME).await
        {
            self.claim = Some(claim);
            return Err(Refused::by_record(&error, self.relay.now()));
        }
        Ok(())
    }

    /// Reads the token again if it was last read some time ago. Returns true if it did.
    async fn recheck_token(&mut self, access: &mut Access) -> Result<bool> {
        let is_due = self.relay.now().since(self.token_read_at) >= TOKEN_RECHECK;
        if is_due {
            *access = self.access().await?;
        }
        Ok(is_due)
    }

    /// Takes a connection for the request. `None` if the limits, checked locally, will refuse the request.
    async fn connection(&mut self, uri: &Uri) -> Result<Sent<Option<Connection>>> {
        let now = self.relay.now();
        let available_at = self.relay.limiter.next_available_at(self.request.endpoint());
        if available_at.is_some_and(|at| at > self.wait_until.unwrap_or(now)) {
            return Ok(Ok(None));
        }
        let connecting = tokio::time::timeout(self.left(), self.relay.app.connections.connection(uri)).await;
        self.timings.platform_ms += self.since(now);
        connecting.map(|connected| connected.map(Some)).map_err(|_| Refused::by_deadline())
    }

    async fn permit(&mut self) -> Result<Permit> {
        let started = self.relay.now();
        let permit = match tokio::time::timeout(self.left(), self.take()).await {
            Ok(permit) => permit.map_err(|error| Refused::by_limiter(error, self.relay.now())),
            Err(_) => Err(Refused::by_deadline()),
        };
        self.timings.permit_ms += self.since(started);
        self.usage = match &permit {
            Ok(permit) => Some(permit.usage),
            // A refusal by the caller's share does not contain the resource's limits. The limiter may remember them.
            Err(refused) => refused
                .usage
                .or(self.usage.take())
                .or_else(|| self.relay.limiter.remembered_usage(&self.request.resource)),
        };
        permit
    }

    async fn take(&self) -> std::result::Result<Permit, LimiterError> {
        let Relay { limiter, .. } = self.relay;
        let endpoint = self.request.endpoint();
        if let Pacing::Background(permits, until) = self.pacing {
            let share = self.caller.requests_per_10s().map(|share| (self.caller.id(), share));
            return Box::pin(permits.take(endpoint, share, until)).await;
        }
        if let Some(share) = self.caller.requests_per_10s() {
            let owner = ShareOwner::Caller(self.caller.id());
            return Box::pin(limiter.take_within_share(owner, endpoint, share, self.wait_until)).await;
        }
        limiter.take(endpoint, self.wait_until).await
    }

    fn request(&self, uri: &Uri, access: &Access) -> Sent<http::Request<Full<Bytes>>> {
        let request = self.request;
        let mut headers = headers::to_platform(&request.headers, &request.method, &request.path);
        if self.history.asked_uncompressed {
            headers.remove(header::ACCEPT_ENCODING);
        }
        let (method, uri, body, token) = (&request.method, uri.clone(), request.body.clone(), &access.token);
        upstream::request(method, uri, headers, body, token)
    }

    async fn send(
        &mut self,
        connection: Option<Connection>,
        request: Sent<http::Request<Full<Bytes>>>,
        permit: &Permit,
    ) -> Sent<Reply> {
        let started = self.relay.now();
        let limits = ResponseLimits { time: self.left(), body: LARGEST_BODY };
        let request = request?;
        let (result, took) = {
            let sending = pin!(async {
                let result = self.relay.app.connections.send(connection, request, permit.send_by, limits).await;
                (result, self.since(started))
            });
            match self.pacing {
                Pacing::Background(..) => sending.await,
                Pacing::Caller => {
                    let next_permits = pin!(self.relay.limiter.take_ahead(&self.request.resource));
                    let patience = || FOR_PERMITS_AHEAD.min(self.left());
                    first_and_beside(sending, next_permits, patience).await
                }
            }
        };
        self.timings.platform_ms += took;
        result
    }

    /// Passes the response's rate-limit headers to the limiter. If that fails, the caller still gets the response.
    async fn observe(&mut self, reply: &Reply) {
        let limiter = &self.relay.limiter;
        let resource = &self.request.resource;
        let learn = async {
            limiter.observe(self.request.endpoint(), reply.sent_at, reply.status, &reply.headers).await?;
            if reply.status == StatusCode::TOO_MANY_REQUESTS {
                return Box::pin(limiter.usage(resource)).await.map(Some);
            }
            Ok(None)
        };
        match tokio::time::timeout(self.left(), learn).await {
            Ok(Ok(usage)) => self.usage = usage.or(self.usage.take()),
            Ok(Err(error)) => tracing::warn!(%resource, %error, "the platform's rate-limit headers were not stored"),
            Err(_) => tracing::warn!(%resource, "no time was left to store the platform's rate-limit headers"),
        }
    }
}

/// Runs `first`, and meanwhile `beside`, which has `patience` left when `first` has ended. After that it is dropped.
async fn first_and_beside<T>(
    first: impl Future<Output = T> + Unpin,
    beside: impl Future<Output = ()> + Unpin,
    patience: impl FnOnce() -> Duration,
) -> T {
    match select(first, beside).await {
        Either::Left((result, beside)) => {
            let _ = tokio::time::timeout(patience(), beside).await;
            result
        }
        Either::Right(((), first)) => first.await,
    }
}

fn outcome(result: &Sent<Reply>) -> AttemptOutcome {
    match result {
        Ok(reply) => {
            let encoding = reply.headers.get(header::CONTENT_ENCODING).map(|v| v.to_str().unwrap_or("unreadable"));
            let reason = (reply.status == StatusCode::UNAUTHORIZED).then(|| Unauthorized::of(encoding, &reply.body));
            AttemptOutcome::Answered(reply.status, reason)
        }
        Err(SendError::NotSent(_) | SendError::TooLate) => AttemptOutcome::NotSent,
        Err(SendError::Broken { .. }) => AttemptOutcome::Broken,
        Err(SendError::TimedOut) => AttemptOutcome::TimedOut,
        // The platform responded, but the body exceeds our limit. A retry would be as large.
        Err(SendError::TooLarge(status)) => AttemptOutcome::Answered(*status, None),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};

    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn an_answer_waits_a_little_for_permits_ahead_and_no_longer() {
        let long = || Duration::from_hours(1);
        let done = Cell::new(0);
        let mut slower = pin!(async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            done.set(done.get() + 1);
        });
        assert_eq!(first_and_beside(ready(7), &mut slower, long).await, 7);
        let mut faster = pin!(async { done.set(done.get() + 1) });
        let answer = pin!(async {
            yield_now().await;
            8
        });
        assert_eq!(first_and_beside(answer, &mut faster, long).await, 8);
        assert_eq!(first_and_beside(ready(9), pending(), || Duration::from_millis(1)).await, 9);
        assert_eq!(done.get(), 2);
    }
}
