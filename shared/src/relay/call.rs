//! One relayed request from its token to its answer: what [`super::retry`] decides, done.

use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, Uri, header};
use http_body_util::Full;

use super::Relay;
use super::headers;
use super::refused::Refused;
use super::retry::{History, Next, Outcome, Unauthorized, next};
use super::token_class;
use super::upstream::{Attempt, Failure, LARGEST_BODY, Reply};
use crate::caller::{Authorized, Caller};
use crate::domain::access::Access;
use crate::domain::clock::Millis;
use crate::http_client::{Connection, Limits};
use crate::limiter::{LimiterError, Permit, ShareOwner, Usage};
use crate::platform::refusal::Refusal;
use crate::request::Request;
use crate::request::mcp;
use crate::request::path::target;
use crate::token::TokenError;

/// Time that a wait for a permit leaves for the platform's answer.
const FOR_THE_ANSWER: Duration = Duration::from_secs(2);
/// How often a permit may come too late to be used. Each was paid for from the budget.
const LATE_PERMITS: usize = 3;
/// A token is looked at again directly before it is sent if it was last looked at so long ago. A token in memory is up
/// to 8 s old, and an uninstall must be noticed within 10 s.
const TOKEN_LOOKED_AT: Duration = Duration::from_secs(1);

/// Where a call stands.
pub(super) struct Call<'a> {
    relay: &'a Relay,
    caller: &'a Caller,
    request: &'a Request,
    deadline: Millis,
    wait_until: Option<Millis>,
    history: History,
    token_looked_at: Millis,
    /// What is known of the limits, from the last permit or refusal.
    pub(super) usage: Option<Usage>,
    pub(super) course: Course,
}

/// What the log is told of a call's course. Times in milliseconds.
#[derive(Debug, Default)]
pub(super) struct Course {
    pub(super) attempts: u32,
    pub(super) generation: Option<u64>,
    pub(super) token_ms: u64,
    pub(super) permit_ms: u64,
    pub(super) platform_ms: u64,
}

/// The answer to a request, or the reason why there is none.
type Sent<T> = std::result::Result<T, Failure>;

/// What the platform made of an attempt that may be followed by another.
type Result<T, E = Refused> = std::result::Result<T, E>;

impl<'a> Call<'a> {
    pub(super) fn new(relay: &'a Relay, authorized: &'a Authorized, deadline: Millis) -> Self {
        let (caller, request) = (authorized.caller(), authorized.request());
        let now = relay.now();
        let latest = deadline - FOR_THE_ANSWER;
        let wait_until = (!request.wait.is_zero()).then(|| (now + request.wait).min(latest)).filter(|at| *at > now);
        let (history, course) = (History::default(), Course::default());
        Self { relay, caller, request, deadline, wait_until, history, token_looked_at: now, usage: None, course }
    }

    pub(super) async fn run(&mut self) -> Result<Reply> {
        mcp::check_offered(&self.request.method, &self.request.path)?;
        token_class::check(self.request)?;
        let mut access = self.access().await?;
        // An answer that is passed on if there is neither permit nor time for another attempt.
        let mut in_hand: Option<Reply> = None;
        // Whether the token was renewed because of a 401 that nobody has classified.
        let mut doubted = false;
        loop {
            let result = match (self.attempt(&mut access).await, in_hand.take()) {
                (Ok(result), _) => result,
                (Err(_), Some(reply)) => return Ok(reply),
                (Err(refused), None) => return Err(refused),
            };
            let outcome = outcome(&result);
            self.learn_of_token(&access, outcome, doubted, result.as_ref().ok()).await;
            match (next(&self.request.method, outcome, self.history), result) {
                (Next::Renew, Ok(reply)) => {
                    doubted = matches!(outcome, Outcome::Answered(_, Some(Unauthorized::Unknown)));
                    match self.renew(&access, doubted).await? {
                        Some(renewed) => access = renewed,
                        None => return Ok(reply),
                    }
                }
                (Next::AskPlainly, Ok(_)) => self.history.asked_plainly = true,
                (Next::Wait, Ok(reply)) => {
                    self.history.waits += 1;
                    if self.wait_until.is_none() {
                        return Ok(reply);
                    }
                    in_hand = Some(reply);
                }
                (Next::Repeat(within), result) => {
                    self.history.repeats += 1;
                    let pause = within.mul_f64(fastrand::f64());
                    if self.left() <= pause {
                        return result.map_err(|failure| Refused::by_platform(&failure));
                    }
                    tokio::time::sleep(pause).await;
                    in_hand = result.ok();
                }
                (_, result) => return result.map_err(|failure| Refused::by_platform(&failure)),
            }
        }
    }

    fn left(&self) -> Duration {
        self.deadline.since(self.relay.now())
    }

    async fn access(&mut self) -> Result<Access> {
        let started = self.relay.now();
        let access = self.relay.app.tokens.access(&self.request.resource, self.deadline).await;
        self.got_token(started, access.as_ref().ok());
        access.map_err(|error| Refused::by_token(&error, self.relay.now()))
    }

    /// Another token, or none if the platform's 401 should be passed on. `doubted` says that nobody has classified it.
    async fn renew(&mut self, used: &Access, doubted: bool) -> Result<Option<Access>> {
        self.history.renewed = true;
        let (tokens, resource, started) = (&self.relay.app.tokens, &self.request.resource, self.relay.now());
        let access = if doubted {
            tokens.renew_doubted(resource, used, self.deadline).await
        } else {
            tokens.renew(resource, used, self.deadline).await
        };
        self.got_token(started, access.as_ref().ok());
        match access {
            Ok(access) => Ok(Some(access)),
            Err(TokenError::RecentlyForced) => Ok(None),
            // A token that may well be good and cannot be renewed now is no fault of ours to tell of.
            Err(error)
                if doubted && !matches!(error, TokenError::Revoked | TokenError::ReauthorizationRequired { .. }) =>
            {
                Ok(None)
            }
            Err(error) => Err(Refused::by_token(&error, self.relay.now())),
        }
    }

    /// What an answer says of the token that it was asked with. `renewed_in_doubt` says that this token came of a renewal
    /// whose reason was a 401 that nobody has classified.
    async fn learn_of_token(&self, used: &Access, outcome: Outcome, renewed_in_doubt: bool, reply: Option<&Reply>) {
        let (app, resource) = (&self.relay.app, &self.request.resource);
        match outcome {
            Outcome::Answered(status, _) if status.is_success() => {
                app.tokens.worked(resource, used);
                if renewed_in_doubt {
                    app.tokens.renewal_helped(resource, used).await;
                }
            }
            // A refresh token was spent in vain: the text should be known.
            Outcome::Answered(status, Some(Unauthorized::Unknown)) if renewed_in_doubt => {
                let said = reply.map(|reply| Refusal::read(status, &reply.body).sample).unwrap_or_default();
                app.alarms.unclassified(resource, status, &said).await;
            }
            _ => {}
        }
    }

    fn got_token(&mut self, started: Millis, access: Option<&Access>) {
        self.course.token_ms += self.since(started);
        self.token_looked_at = self.relay.now();
        self.course.generation = access.map(|a| a.generation).or(self.course.generation);
    }

    fn since(&self, started: Millis) -> u64 {
        u64::try_from(self.relay.now().since(started).as_millis()).unwrap_or(u64::MAX)
    }

    /// One request to the platform: a connection, a permit, the token if the wait for them was long, and the request
    /// itself if it can leave while the permit is good. Refused if there is no permit or no token.
    async fn attempt(&mut self, access: &mut Access) -> Result<Sent<Reply>> {
        let uri = match target(&self.relay.app.config.api_url, &self.request.path, &self.request.query) {
            Ok(uri) => uri,
            Err(reason) => return Ok(Err(Failure::NotSent(reason.to_string()))),
        };
        for _ in 0..LATE_PERMITS {
            let held = match self.connection(&uri).await? {
                Ok(held) => held,
                Err(failure) => {
                    self.course.attempts += 1;
                    return Ok(Err(failure));
                }
            };
            // Everything that takes time comes before the permit, which is good for some hundred milliseconds only.
            self.look_again(access).await?;
            let mut request = self.request(&uri, access);
            let permit = self.permit().await?;
            if self.look_again(access).await? {
                request = self.request(&uri, access);
            }
            match self.send(held, request, &permit).await {
                Err(Failure::TooLate) => {}
                result => {
                    self.course.attempts += 1;
                    if let Ok(reply) = &result {
                        self.observe(reply).await;
                    }
                    return Ok(result);
                }
            }
        }
        Err(Refused::by_deadline())
    }

    /// Looks at the token again if it was last looked at some time ago. Returns true if so.
    async fn look_again(&mut self, access: &mut Access) -> Result<bool> {
        let is_due = self.relay.now().since(self.token_looked_at) >= TOKEN_LOOKED_AT;
        if is_due {
            *access = self.access().await?;
        }
        Ok(is_due)
    }

    /// A connection for the request. None where the limits are known to refuse it: then it needs no connection.
    async fn connection(&mut self, uri: &Uri) -> Result<Sent<Option<Connection>>> {
        let now = self.relay.now();
        let opens_at = self.relay.limiter.next_available_at(self.request.endpoint());
        if opens_at.is_some_and(|at| at > self.wait_until.unwrap_or(now)) {
            return Ok(Ok(None));
        }
        let connecting = tokio::time::timeout(self.left(), self.relay.app.connections.connection(uri)).await;
        self.course.platform_ms += self.since(now);
        connecting.map(|connected| connected.map(Some)).map_err(|_| Refused::by_deadline())
    }

    async fn permit(&mut self) -> Result<Permit> {
        let started = self.relay.now();
        let permit = match tokio::time::timeout(self.left(), self.take()).await {
            Ok(permit) => permit.map_err(|error| Refused::by_limiter(error, self.relay.now())),
            Err(_) => Err(Refused::by_deadline()),
        };
        self.course.permit_ms += self.since(started);
        self.usage = match &permit {
            Ok(permit) => Some(permit.usage),
            // A refusal by the caller's share tells nothing of the resource's limits; the limiter may know.
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
        if let Some(share) = self.caller.requests_per_10s() {
            let owner = ShareOwner::Caller(self.caller.id());
            return Box::pin(limiter.take_within_share(owner, endpoint, share, self.wait_until)).await;
        }
        limiter.take(endpoint, self.wait_until).await
    }

    fn request(&self, uri: &Uri, access: &Access) -> Sent<http::Request<Full<Bytes>>> {
        let request = self.request;
        let mut headers = headers::to_platform(&request.headers, &request.method, &request.path);
        if self.history.asked_plainly {
            headers.remove(header::ACCEPT_ENCODING);
        }
        let (method, uri, body, token) = (&request.method, uri.clone(), request.body.clone(), &access.token);
        Attempt { method, uri, headers, body, token }.request()
    }

    async fn send(
        &mut self,
        held: Option<Connection>,
        request: Sent<http::Request<Full<Bytes>>>,
        permit: &Permit,
    ) -> Sent<Reply> {
        let started = self.relay.now();
        let limits = Limits { time: self.left(), body: LARGEST_BODY };
        let result = self.relay.app.connections.send(held, request?, permit.send_by, limits).await;
        self.course.platform_ms += self.since(started);
        result
    }

    /// Lets the limiter observe an answer. A failure does not affect the answer.
    async fn observe(&mut self, reply: &Reply) {
        let limiter = &self.relay.limiter;
        let resource = &self.request.resource;
        let learn = async {
            limiter.observe(self.request.endpoint(), reply.status, &reply.headers).await?;
            if reply.status == StatusCode::TOO_MANY_REQUESTS {
                return Box::pin(limiter.usage(resource)).await.map(Some);
            }
            Ok(None)
        };
        match tokio::time::timeout(self.left(), learn).await {
            Ok(Ok(usage)) => self.usage = usage.or(self.usage.take()),
            Ok(Err(error)) => tracing::warn!(%resource, %error, "nothing was learnt from the platform's limits"),
            Err(_) => tracing::warn!(%resource, "no time was left to learn from the platform's limits"),
        }
    }
}

fn outcome(result: &Sent<Reply>) -> Outcome {
    match result {
        Ok(reply) => {
            let encoding = reply.headers.get(header::CONTENT_ENCODING).map(|v| v.to_str().unwrap_or("unreadable"));
            let reason = (reply.status == StatusCode::UNAUTHORIZED).then(|| Unauthorized::of(encoding, &reply.body));
            Outcome::Answered(reply.status, reason)
        }
        Err(Failure::NotSent(_) | Failure::TooLate) => Outcome::NotSent,
        Err(Failure::Broken { .. }) => Outcome::Broken,
        Err(Failure::TimedOut) => Outcome::TimedOut,
        // It is there, only not here: a second time it would be as large.
        Err(Failure::TooLarge(status)) => Outcome::Answered(*status, None),
    }
}
