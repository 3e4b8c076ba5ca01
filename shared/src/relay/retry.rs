//! What follows an attempt. Pure: the operation does what is decided here.
//!
//! The platform has no idempotency keys, so nothing is sent twice that may have been carried out, but for GET and
//! HEAD. A 401 or a 429 was not carried out.

use std::time::Duration;

use http::{Method, StatusCode};

use crate::platform::refusal::Meaning;

/// How often a failed attempt of any one kind is repeated.
const REPEATS: u8 = 2;

/// What a 401 of the platform is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unauthorized {
    /// The token is expired or not one: another one helps.
    Token,
    /// Scope, class of token, version header, something that the request names: no token of this installation helps.
    NotTheToken,
    /// A text that is not known: another token may help, once.
    Unknown,
    /// The text is compressed, as the caller asked, and so cannot be read here.
    Unreadable,
}

impl Unauthorized {
    /// Reads the reason of a 401. `encoding` is the answer's `Content-Encoding`.
    #[must_use]
    pub fn of(encoding: Option<&str>, body: &[u8]) -> Self {
        if encoding.is_some_and(|e| !e.trim().is_empty() && !e.trim().eq_ignore_ascii_case("identity")) {
            return Self::Unreadable;
        }
        match Meaning::of(StatusCode::UNAUTHORIZED, body) {
            Meaning::AccessTokenInvalid => Self::Token,
            Meaning::Unknown => Self::Unknown,
            _ => Self::NotTheToken,
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There was no connection, so nothing was sent.
    NotSent,
    /// The connection broke: it is not known what the platform did.
    Broken,
    /// The time was up: it is not known what the platform did.
    TimedOut,
    /// An answer; a 401 with its reason.
    Answered(StatusCode, Option<Unauthorized>),
}

/// What has been done about earlier attempts of the same request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Another token was fetched.
    pub renewed: bool,
    /// The request was sent without `Accept-Encoding`.
    pub asked_plainly: bool,
    /// Attempts repeated because of the connection or a 5xx.
    pub repeats: u8,
    /// Attempts repeated because of a 429.
    pub waits: u8,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Give the caller the answer, or the failure if there is none.
    PassOn,
    /// Fetch another token, and send the request again with it.
    Renew,
    /// Send it again without `Accept-Encoding`, to be able to read the reason.
    AskPlainly,
    /// Send it again once the limiter permits, if that is within what the caller would wait.
    Wait,
    /// Send it again after a random time up to this.
    Repeat(Duration),
}

/// Decides what follows an attempt.
#[must_use]
pub fn next(method: &Method, outcome: Outcome, history: History) -> Next {
    let repeat = |allowed: bool| {
        let within = Duration::from_millis(100 << history.repeats.min(8));
        if allowed && history.repeats < REPEATS { Next::Repeat(within) } else { Next::PassOn }
    };
    let reads_only = method == Method::GET || method == Method::HEAD;
    match outcome {
        Outcome::NotSent => repeat(true),
        Outcome::Broken
        | Outcome::Answered(
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT,
            _,
        ) => repeat(reads_only),
        Outcome::Answered(StatusCode::UNAUTHORIZED, Some(Unauthorized::Token | Unauthorized::Unknown))
            if !history.renewed =>
        {
            Next::Renew
        }
        Outcome::Answered(StatusCode::UNAUTHORIZED, Some(Unauthorized::Unreadable)) if !history.asked_plainly => {
            Next::AskPlainly
        }
        Outcome::Answered(StatusCode::TOO_MANY_REQUESTS, _) if history.waits < REPEATS => Next::Wait,
        Outcome::TimedOut | Outcome::Answered(..) => Next::PassOn,
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
    fn each_outcome_has_its_consequence() {
        use Outcome::*;
        let fresh = History::default();
        let renewed = History { renewed: true, ..fresh };
        let plain = History { asked_plainly: true, ..fresh };
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
            ("a compressed reason", &post, refused(Unauthorized::Unreadable), fresh, Next::AskPlainly),
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
