//! The retry policy of a relayed call: the step after each attempt. Pure.
//!
//! The platform has no idempotency keys. So a request that may have been executed is not sent again, except GET and HEAD.
//! A request that got 401 or 429 was not executed. Pauses between attempts are random up to a doubling limit (exponential
//! backoff with full jitter, against a thundering herd).

use std::time::Duration;

use http::{Method, StatusCode};

use crate::http_client::{Reply, SendError};
use crate::platform::error_response::Meaning;

/// The most repetitions because of the connection or a 5xx, and the most waits because of a 429.
const REPEATS: u8 = 2;

/// The reason of a 401 of the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unauthorized {
    /// The token is expired or invalid. Another token helps.
    Token,
    /// The scope, the class of the token, the version header, or the request itself is wrong. Another token does not help.
    NotTheToken,
    /// The text is unknown. Another token may help; it is tried once.
    Unknown,
    /// The text is compressed, because the caller accepts that. It cannot be read here.
    Unreadable,
}

impl Unauthorized {
    /// Reads the reason of a 401. `encoding` is the response's `Content-Encoding`.
    pub fn of(encoding: Option<&str>, body: &[u8]) -> Self {
        if encoding.is_some_and(|e| !e.trim().is_empty() && !e.trim().eq_ignore_ascii_case("identity")) {
            return Self::Unreadable;
        }
        match Meaning::of(StatusCode::UNAUTHORIZED, body) {
            Meaning::AccessTokenInvalid => Self::Token,
            Meaning::Unknown => Self::Unknown,
            Meaning::RefreshTokenInvalid
            | Meaning::GrantInvalid
            | Meaning::CodeInvalid
            | Meaning::NotInstalled
            | Meaning::ClientInvalid
            | Meaning::ParameterInvalid
            | Meaning::NotAllowed
            | Meaning::NoAccessToLocation
            | Meaning::WrongVersion
            | Meaning::AboutTheRequest
            | Meaning::Inactive
            | Meaning::LocationNotFound
            | Meaning::CompanyNotFound
            | Meaning::TimedOut
            | Meaning::Throttled
            | Meaning::ServerError
            | Meaning::Redirected
            | Meaning::NotReached => Self::NotTheToken,
        }
    }
}

/// The outcome of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// There was no connection. Nothing was sent.
    NotSent,
    /// The connection broke. It is unknown if the request was executed.
    Broken,
    /// The time was over. It is unknown if the request was executed.
    TimedOut,
    /// The platform responded. A 401 has its reason.
    Answered(StatusCode, Option<Unauthorized>),
}

/// The answer to the question if the platform has executed a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    /// Certainly not.
    No,
    /// Nobody knows.
    Unknown,
    /// The request has an answer. It may be an error that the platform's operation has decided.
    Answered,
}

impl Execution {
    /// Reads the outcome of an attempt.
    pub fn after(result: &Result<Reply, SendError>) -> Self {
        match result {
            Ok(reply) => Self::of_response(reply.status, &reply.body),
            Err(SendError::TooLarge(status)) => Self::of_response(*status, b""),
            Err(SendError::NotSent(_) | SendError::TooLate) => Self::No,
            Err(SendError::Broken { .. } | SendError::TimedOut) => Self::Unknown,
        }
    }

    fn of_response(status: StatusCode, body: &[u8]) -> Self {
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => Self::No,
            // Frameworks send a 408 when a handler that has begun takes too long.
            StatusCode::REQUEST_TIMEOUT => Self::Unknown,
            _ if status.is_server_error() => Self::Unknown,
            _ if status.is_client_error() => match Meaning::of(status, body) {
                Meaning::TimedOut => Self::Unknown,
                // A block page of the CDN. Other pages may come from behind it.
                Meaning::NotReached if status == StatusCode::FORBIDDEN => Self::No,
                _ => Self::Answered,
            },
            _ => Self::Answered,
        }
    }
}

/// The steps after earlier attempts of the same request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The token was renewed.
    pub renewed: bool,
    /// The request was sent without `Accept-Encoding`.
    pub asked_uncompressed: bool,
    /// The repetitions because of the connection or a 5xx.
    pub repeats: u8,
    /// The waits because of a 429.
    pub waits: u8,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Give the caller the response, or the failure if there is none.
    PassOn,
    /// Renew the token, and send the request again.
    Renew,
    /// Send the request again without `Accept-Encoding`, so that the reason can be read.
    AskUncompressed,
    /// Send the request again as soon as the limits permit it, if the caller waits so long.
    Wait,
    /// Send the request again after a random pause of at most this time.
    Repeat(Duration),
}

/// Decides the step after an attempt.
pub fn next(method: &Method, outcome: AttemptOutcome, history: History) -> Next {
    let repeat = |allowed: bool| {
        let within = Duration::from_millis(100 << history.repeats.min(8));
        if allowed && history.repeats < REPEATS { Next::Repeat(within) } else { Next::PassOn }
    };
    let reads_only = method == Method::GET || method == Method::HEAD;
    match outcome {
        AttemptOutcome::NotSent => repeat(true),
        AttemptOutcome::Broken
        | AttemptOutcome::Answered(
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT,
            _,
        ) => repeat(reads_only),
        AttemptOutcome::Answered(StatusCode::UNAUTHORIZED, Some(Unauthorized::Token | Unauthorized::Unknown))
            if !history.renewed =>
        {
            Next::Renew
        }
        AttemptOutcome::Answered(StatusCode::UNAUTHORIZED, Some(Unauthorized::Unreadable))
            if !history.asked_uncompressed =>
        {
            Next::AskUncompressed
        }
        AttemptOutcome::Answered(StatusCode::TOO_MANY_REQUESTS, _) if history.waits < REPEATS => Next::Wait,
        AttemptOutcome::TimedOut | AttemptOutcome::Answered(..) => Next::PassOn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_401_is_read() {
        use Unauthorized::*;
        let message = |text: &str| serde_json::json!({"statusCode": 401, "message": text}).to_string();
        let v3 = |text: &str| serde_json::json!({"error": {"code": "UNAUTHORIZED", "message": text}}).to_string();
        let cases = [
            ("an expired or garbled token", None, message("Invalid JWT"), Token),
            ("the platform's example", None, message("Invalid token: access token is invalid"), Token),
            ("the same in v3", None, v3("Invalid token: access token is invalid"), Token),
            ("a missing scope", None, message("The token is not authorized for this scope."), NotTheToken),
            ("a missing scope in v3", None, v3("The token is not authorized for this scope."), NotTheToken),
            ("something in the request", None, message("No conversation provider found for this message"), NotTheToken),
            ("another location", None, message("This location is not accessible from this token!"), NotTheToken),
            ("a paused location", None, message("Location is not active"), NotTheToken),
            ("another text", None, message("Unauthorized"), Unknown),
            ("something else that expired", None, message("the trial has expired"), Unknown),
            ("another's token", None, message("Your Facebook token expired, please connect it again"), Unknown),
            ("no JSON", None, "Invalid JWT\n".to_owned(), Token),
            ("a page of something else", None, "<html>".to_owned(), NotTheToken),
            ("nothing", None, String::new(), Unknown),
            ("compressed", Some("gzip"), "\x1f".to_owned(), Unreadable),
            ("said to be plain", Some("Identity"), message("Invalid JWT"), Token),
            ("too long to be a reason", None, message(&"token expired ".repeat(2_000)), Unknown),
        ];
        for (name, encoding, body, expected) in cases {
            assert_eq!(Unauthorized::of(encoding, body.as_bytes()), expected, "{name}");
        }
        assert_eq!(Unauthorized::of(None, &[0xff, 0xfe]), Unknown, "not text at all");
    }

    #[test]
    fn a_request_was_executed_or_not_or_nobody_knows() {
        let reply = |status: u16, body: &'static str| {
            let status = StatusCode::from_u16(status).expect("a status");
            let sent_at = crate::domain::clock::Millis(0);
            Ok(Reply { status, headers: http::HeaderMap::new(), body: body.into(), sent_at })
        };
        let broken = |status| Err(SendError::Broken { cause: String::new(), status });
        let json = r#"{"message":"no"}"#;
        let cases = [
            ("200", reply(200, ""), Execution::Answered),
            ("201", reply(201, json), Execution::Answered),
            ("a redirect", reply(303, ""), Execution::Answered),
            ("400", reply(400, json), Execution::Answered),
            ("403", reply(403, json), Execution::Answered),
            ("404", reply(404, ""), Execution::Answered),
            ("409", reply(409, json), Execution::Answered),
            ("422", reply(422, json), Execution::Answered),
            ("401 of any text", reply(401, json), Execution::No),
            ("425", reply(425, json), Execution::No),
            ("429", reply(429, json), Execution::No),
            ("a block page of the CDN", reply(403, "<html>Just a moment"), Execution::No),
            ("another page", reply(404, "<html>Cannot POST /contact"), Execution::Answered),
            ("408", reply(408, json), Execution::Unknown),
            (
                "the platform's own time-out",
                reply(400, r#"{"message":"Request Timeout after 30000ms"}"#),
                Execution::Unknown,
            ),
            ("500", reply(500, json), Execution::Unknown),
            ("502 of the CDN", reply(502, "<html>"), Execution::Unknown),
            ("503", reply(503, json), Execution::Unknown),
            ("504", reply(504, ""), Execution::Unknown),
            ("no connection", Err(SendError::NotSent(String::new())), Execution::No),
            ("too late to be sent", Err(SendError::TooLate), Execution::No),
            ("a reset before an answer", broken(None), Execution::Unknown),
            ("a reset in the middle of an answer", broken(Some(StatusCode::CREATED)), Execution::Unknown),
            ("no answer in time", Err(SendError::TimedOut), Execution::Unknown),
            ("an answer that is too large", Err(SendError::TooLarge(StatusCode::OK)), Execution::Answered),
            ("an error that is too large", Err(SendError::TooLarge(StatusCode::BAD_GATEWAY)), Execution::Unknown),
        ];
        for (name, result, expected) in cases {
            assert_eq!(Execution::after(&result), expected, "{name}");
        }
    }

    #[test]
    fn each_outcome_has_its_consequence() {
        use AttemptOutcome::*;
        let fresh = History::default();
        let renewed = History { renewed: true, ..fresh };
        let plain = History { asked_uncompressed: true, ..fresh };
        let once = History { repeats: 1, ..fresh };
        let twice = History { repeats: 2, ..fresh };
        let waited = History { waits: 2, ..fresh };
        let (get, head, post, put, delete) = (Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE);
        let ms = Duration::from_millis;
        let answered = |status: u16| Answered(StatusCode::from_u16(status).expect("a status"), None);
        let refused = |reason| Answered(StatusCode::UNAUTHORIZED, Some(reason));
        let cases = [
            ("not sent: any method again", &post, NotSent, fresh, Next::Repeat(ms(100))),
            ("and again, later", &post, NotSent, once, Next::Repeat(ms(200))),
            ("not a third time", &post, NotSent, twice, Next::PassOn),
            ("a read that broke", &get, Broken, fresh, Next::Repeat(ms(100))),
            ("a HEAD that broke", &head, Broken, once, Next::Repeat(ms(200))),
            ("a read that broke too often", &get, Broken, twice, Next::PassOn),
            ("a POST that broke may have been carried out", &post, Broken, fresh, Next::PassOn),
            ("so may a PUT", &put, Broken, fresh, Next::PassOn),
            ("and a DELETE", &delete, Broken, fresh, Next::PassOn),
            ("out of time", &get, TimedOut, fresh, Next::PassOn),
            ("502 to a read", &get, answered(502), fresh, Next::Repeat(ms(100))),
            ("503 to a read", &get, answered(503), fresh, Next::Repeat(ms(100))),
            ("504 to a read", &get, answered(504), once, Next::Repeat(ms(200))),
            ("504 to a read, too often", &get, answered(504), twice, Next::PassOn),
            ("503 to a POST", &post, answered(503), fresh, Next::PassOn),
            ("500 is an answer", &get, answered(500), fresh, Next::PassOn),
            ("400 is an answer", &get, answered(400), fresh, Next::PassOn),
            ("a redirect is an answer", &get, answered(302), fresh, Next::PassOn),
            ("403 is an answer", &get, answered(403), fresh, Next::PassOn),
            ("200", &post, answered(200), fresh, Next::PassOn),
            ("a dead token", &post, refused(Unauthorized::Token), fresh, Next::Renew),
            ("a dead token after repeats", &get, refused(Unauthorized::Token), twice, Next::Renew),
            ("a dead token again", &post, refused(Unauthorized::Token), renewed, Next::PassOn),
            ("a scope", &get, refused(Unauthorized::NotTheToken), fresh, Next::PassOn),
            ("an unknown reason", &get, refused(Unauthorized::Unknown), fresh, Next::Renew),
            ("an unknown reason again", &get, refused(Unauthorized::Unknown), renewed, Next::PassOn),
            ("a compressed reason", &post, refused(Unauthorized::Unreadable), fresh, Next::AskUncompressed),
            ("compressed although not asked for", &post, refused(Unauthorized::Unreadable), plain, Next::PassOn),
            ("a dead token, asked plainly", &post, refused(Unauthorized::Token), plain, Next::Renew),
            ("too many", &post, answered(429), fresh, Next::Wait),
            ("too many, although twice waited for", &post, answered(429), waited, Next::PassOn),
        ];
        for (name, method, outcome, history, expected) in cases {
            assert_eq!(next(method, outcome, history), expected, "{name}");
        }
    }
}
