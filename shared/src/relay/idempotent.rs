//! Requests with an idempotency key: the relay sends each of them once, and answers repeats from its record.
//!
//! docs/decisions/idempotency.md has the table of all cases.

use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::answer::Answer;
use super::call::{Call, Pacing, Stop, Timings};
use super::charges::Listed;
use super::refused::Refused;
use super::retry::Execution;
use super::{Invocation, Performed, Relay, charges, headers};
use crate::caller::Authorized;
use crate::domain::clock::Millis;
use crate::idempotency::{Ending, FOR_THE_OUTCOME, Found, KEY_HOLDS, RecordError, Recordable, RecordedAnswer};
use crate::limiter::LimitKind;
use crate::request::Request;
use crate::request::idempotency_key::IdempotencyKey;
use crate::table::idempotency::{CallId, CallProgress, RecordedRequest, StoredCall};

/// The time of a keyed request that is kept for its answer, after the record of its outcome.
const FOR_THE_ANSWER: Duration = Duration::from_millis(100);

/// The time after which an unknown charge is looked up again, if the platform did not list its charges.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Headers that reach the platform and do not make a request another one: they name the program, the attempt, or the
/// preferred form of the answer.
const OF_THE_ATTEMPT: [HeaderName; 10] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    HeaderName::from_static("ghl-sdk-version"),
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    header::USER_AGENT,
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-sdk-version"),
];

/// The digest of all parts that make two requests the same request: method, path, query, body, and headers.
pub fn fingerprint(request: &Request) -> String {
    let mut digest = Context::new(&SHA256);
    // Each part has its length before it, so no two requests have the same bytes.
    let mut part = |bytes: &[u8]| {
        digest.update(&(bytes.len() as u64).to_be_bytes());
        digest.update(bytes);
    };
    part(request.method.as_str().as_bytes());
    part(request.path.as_str().as_bytes());
    part(request.query.as_str().unwrap_or_default().as_bytes());
    part(&request.body);
    let relevant = |(name, _): &(&HeaderName, &HeaderValue)| {
        headers::reaches_platform(name.as_str(), &request.path) && !OF_THE_ATTEMPT.contains(name)
    };
    let mut fields: Vec<_> = request.headers.iter().filter(relevant).collect();
    fields.sort_by_key(|(name, _)| name.as_str());
    for (name, value) in fields {
        part(name.as_str().as_bytes());
        part(value.as_bytes());
    }
    hex::encode(digest.finish())
}

/// The record of a request of this caller, by which an operator can find it.
pub fn recorded_request(caller: &str, request: &Request) -> RecordedRequest {
    RecordedRequest {
        caller: caller.to_owned(),
        resource: request.resource.to_string(),
        method: request.method.to_string(),
        path: request.path.as_str().to_owned(),
        fingerprint: fingerprint(request),
    }
}

/// True if a recorded request may be sent again after an unknown outcome.
pub(super) fn is_repeatable(method: &Method) -> bool {
    method != Method::POST && method != Method::PATCH
}

impl Relay {
    /// Sends a request with a key once, or answers from the record of an equal request.
    pub(super) async fn perform_once(
        &self,
        authorized: &Authorized,
        key: &IdempotencyKey,
        invocation: &Invocation,
    ) -> Performed {
        let deadline = invocation.deadline - FOR_THE_OUTCOME - FOR_THE_ANSWER;
        let (caller, request) = (authorized.caller().id(), authorized.request());
        let recordable = Recordable {
            id: CallId::of_key(caller, &request.resource, key.as_str()),
            request: recorded_request(caller, request),
            is_repeatable: is_repeatable(&request.method),
            kept: KEY_HOLDS,
            message: None,
        };
        // A replay takes no permit and needs no token, so the record is read first.
        match self.find(authorized, &recordable, deadline).await {
            Ok(None) => {}
            Ok(Some(found)) => return Performed::of_record(found, self.now()),
            Err(refused) => return Performed::refused(refused, self.now()),
        }
        let mut performed = self.perform(authorized, deadline, Pacing::Caller, Some(&recordable)).await;
        if let Some(claim) = performed.claim.take() {
            let _logged = self.recorder.end(&claim, performed.ending(), FOR_THE_OUTCOME).await;
        }
        performed
    }

    /// Finds the record of an equal request. An unknown charge is looked up.
    async fn find(
        &self,
        authorized: &Authorized,
        recordable: &Recordable,
        deadline: Millis,
    ) -> Result<Option<Found>, Refused> {
        let by_record = |error: RecordError| Refused::by_record(&error, self.now());
        let found = self.recorder.find(recordable).await.map_err(by_record)?;
        if let Some(Found::Unknown(seen, _)) = &found {
            let looked_up = Box::pin(self.resolve_charge(authorized, &recordable.id, seen, deadline, Pacing::Caller));
            match looked_up.await.map_err(by_record)? {
                Resolved::Known => return self.recorder.find(recordable).await.map_err(by_record),
                Resolved::AskAgain(at) => return Err(Refused::by_unknown_charge(at)),
                Resolved::NotAsked(_, at) => {
                    return Err(Refused::by_unknown_charge(at.max(self.now() + ASK_AGAIN)));
                }
                Resolved::Never => {}
            }
        }
        Ok(found)
    }

    /// Finds out if an unknown charge was executed, and records that.
    pub(super) async fn resolve_charge(
        &self,
        authorized: &Authorized,
        id: &CallId,
        seen: &StoredCall,
        deadline: Millis,
        pacing: Pacing<'_>,
    ) -> Result<Resolved, RecordError> {
        let CallProgress::Unknown { since, .. } = seen.progress else { return Ok(Resolved::Never) };
        let request = authorized.request();
        let Some((event_id, question)) = charges::question(request) else { return Ok(Resolved::Never) };
        let visible_at = since + charges::VISIBLE_AFTER;
        let mut call = Call::new(self, authorized.caller(), &question, deadline, pacing, None);
        let asked_at = self.now();
        let reply = match call.run().await {
            Ok(reply) if reply.status == StatusCode::OK => reply,
            Err(Stop::Refused(Refused { limit: Some(limit), problem, .. })) => {
                return Ok(Resolved::NotAsked(limit, problem.retry_at.unwrap_or_default()));
            }
            _ => return Ok(Resolved::AskAgain(visible_at.max(self.now() + ASK_AGAIN))),
        };
        let ending = match charges::find(&reply.body, &event_id) {
            Listed::Charge(charge) => Ending::Executed(found_charge(charge.to_string())),
            Listed::No if asked_at >= visible_at => Ending::NotExecuted,
            Listed::No if self.now() < visible_at => return Ok(Resolved::AskAgain(visible_at)),
            Listed::No | Listed::Unclear => return Ok(Resolved::AskAgain(visible_at.max(self.now() + ASK_AGAIN))),
        };
        let executed = matches!(ending, Ending::Executed(_));
        tracing::info!(resource = %request.resource, executed, "an unknown charge was looked up");
        self.recorder.resolve(id, seen, ending).await?;
        Ok(Resolved::Known)
    }
}

/// The result of the look for an unknown charge.
pub(super) enum Resolved {
    /// The record says now if the charge was made.
    Known,
    /// It may be known at this instant.
    AskAgain(Millis),
    /// This limit did not permit the question. It may until this instant.
    NotAsked(LimitKind, Millis),
    /// The request is no charge that can be looked up.
    Never,
}

/// The answer to a charge that was found.
fn found_charge(charge: String) -> RecordedAnswer {
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    RecordedAnswer { status: StatusCode::OK, is_of_platform: true, headers, body: Some(charge.into()), attempts: 1 }
}

impl Performed {
    /// The answer from the record of an equal request.
    pub(super) fn of_record(found: Found, now: Millis) -> Self {
        let replayed = match &found {
            Found::Answered(answer) => Ok(Answer::replayed(RecordedAnswer::clone(answer))),
            Found::InProgress(until) => Err(Refused::by_request_in_progress(*until, now)),
            Found::Unknown(..) => Err(Refused::by_unknown_outcome()),
            Found::Conflict => Err(Refused::by_other_request()),
        };
        let performed = match replayed {
            Ok(answer) => Self::without_attempt(answer, None),
            Err(refused) => Self::refused(refused, now),
        };
        Self { found: Some(found), ..performed }
    }

    /// The refusal of a request that was not sent.
    fn refused(refused: Refused, now: Millis) -> Self {
        Self::without_attempt(Answer::refused(&refused, now), Some(refused))
    }

    fn without_attempt(answer: Answer, refused: Option<Refused>) -> Self {
        let (bare, timings) = (answer.clone(), Timings::default());
        Self { answer, bare, refused, execution: Execution::No, timings, claim: None, found: None }
    }

    /// The end of the call, as it is recorded.
    pub(super) fn ending(&self) -> Ending {
        match self.execution {
            Execution::No => Ending::NotExecuted,
            Execution::Unknown => Ending::Unknown(None),
            Execution::Answered => Ending::Executed(self.bare.recorded(self.timings.attempts)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::resource::Resource;
    use crate::relay::answer::AnswerSource;
    use crate::request::path::{Path, Query};

    fn request(
        method: Method,
        path: &str,
        query: &str,
        body: &'static str,
        headers: &[(&'static str, &str)],
    ) -> Request {
        let location = Resource::location("L1").expect("an id");
        let mut request = Request::new(location, method, Path::parse(path).expect("a path"));
        request.query = Query::parse(query).expect("a query");
        request.body = body.into();
        for (name, value) in headers {
            request.headers.append(*name, value.parse().expect("a value"));
        }
        request
    }

    #[test]
    fn two_requests_are_the_same_if_all_relevant_parts_are() {
        let post = |path, query, body, headers: &[(&'static str, &str)]| {
            fingerprint(&request(Method::POST, path, query, body, headers))
        };
        let first = post("/contacts/", "a=1", "{}", &[("version", "v3"), ("content-type", "application/json")]);
        for (name, same) in [
            (
                "the order of headers",
                post("/contacts/", "a=1", "{}", &[("content-type", "application/json"), ("version", "v3")]),
            ),
            (
                "headers of the attempt",
                post(
                    "/contacts/",
                    "a=1",
                    "{}",
                    &[
                        ("version", "v3"),
                        ("content-type", "application/json"),
                        ("user-agent", "x/2"),
                        ("x-request-id", "7"),
                        ("traceparent", "00-1"),
                        ("accept-encoding", "gzip"),
                        ("idempotency-key", "k"),
                    ],
                ),
            ),
            (
                "headers that go nowhere",
                post(
                    "/contacts/",
                    "a=1",
                    "{}",
                    &[
                        ("version", "v3"),
                        ("content-type", "application/json"),
                        ("authorization", "Bearer b"),
                        ("relay-wait-ms", "5"),
                        ("x-internal", "1"),
                    ],
                ),
            ),
        ] {
            assert_eq!(first, same, "{name}");
        }
        let base: &[(&str, &str)] = &[("version", "v3"), ("content-type", "application/json")];
        let put = fingerprint(&request(
            Method::PUT,
            "/contacts/",
            "a=1",
            "{}",
            &[("version", "v3"), ("content-type", "application/json")],
        ));
        for (name, other) in [
            ("method", put),
            ("path", post("/contacts", "a=1", "{}", &[("version", "v3"), ("content-type", "application/json")])),
            ("query", post("/contacts/", "a=2", "{}", &[("version", "v3"), ("content-type", "application/json")])),
            ("body", post("/contacts/", "a=1", "{ }", &[("version", "v3"), ("content-type", "application/json")])),
            ("version", post("/contacts/", "a=1", "{}", &[("version", "v2"), ("content-type", "application/json")])),
            ("a missing header", post("/contacts/", "a=1", "{}", &[("version", "v3")])),
            (
                "parts that move",
                post("/contacts/a=1", "", "{}", &[("version", "v3"), ("content-type", "application/json")]),
            ),
        ] {
            assert_ne!(first, other, "{name}: {base:?}");
        }
    }

    #[test]
    fn only_post_and_patch_are_not_repeatable() {
        for method in crate::request::METHODS {
            let expected = !["POST", "PATCH"].contains(&method.as_str());
            assert_eq!(is_repeatable(&method), expected, "{method}");
        }
    }

    #[test]
    fn a_replay_without_its_body_says_so() {
        let headers = HeaderMap::from_iter([
            (header::CONTENT_ENCODING, HeaderValue::from_static("gzip")),
            (header::CONTENT_TYPE, HeaderValue::from_static("text/csv")),
        ]);
        let recorded = RecordedAnswer { headers, body: None, ..RecordedAnswer::without_body(201) };
        let answer = Answer::replayed(recorded.clone());
        assert_eq!((answer.status.as_u16(), answer.source, answer.body.len()), (201, AnswerSource::Platform, 0));
        assert_eq!([&answer.headers["relay-replayed"], &answer.headers["relay-body-omitted"]], ["true", "true"]);
        assert_eq!((answer.headers.get("content-encoding"), answer.headers.len()), (None, 4));
        let whole = Answer::replayed(RecordedAnswer { body: Some("x".into()), ..recorded });
        assert!(!whole.headers.contains_key("relay-body-omitted") && whole.headers.contains_key("content-encoding"));
    }
}
