//! The platform's texts, and how a text is compared with them.

use super::Meaning;

/// The meaning of the first entry of [`KNOWN`] that matches one of the texts. The texts are in the form of
/// [`crate::platform::text::words`].
pub(super) fn known_meaning(texts: &[String]) -> Option<Meaning> {
    let known = KNOWN.iter().find(|(_, pattern)| texts.iter().any(|text| pattern.matches(text)));
    known.map(|(meaning, _)| *meaning)
}

/// A pattern of texts. All phrases are whole words in the form of [`crate::platform::text::words`], without the spaces at
/// their ends.
enum Pattern {
    /// The text has one of these phrases.
    Phrase(&'static [&'static str]),
    /// The text is one of these phrases.
    Exactly(&'static [&'static str]),
    /// The text says one of the second phrases of one of the first: "the refresh token … has expired", "expired refresh
    /// token".
    Of(&'static [&'static str], &'static [&'static str]),
    /// The text has one of the first phrases and one of the second, anywhere.
    Both(&'static [&'static str], &'static [&'static str]),
    /// The text consists of the first words only, and has one of the second phrases.
    Only(&'static [&'static str], &'static [&'static str]),
}
use Pattern::{Both, Exactly, Of, Only, Phrase};

/// The platform's texts, by their meaning. The first matching entry counts.
const KNOWN: [(Meaning, Pattern); 17] = [
    // The token may be another app's, or the app's settings may be wrong. Neither says anything about the grant.
    (Meaning::Unknown, Phrase(&["issued to another client"])),
    (Meaning::Inactive, Both(&["location", "account", "subaccount", "company", "agency"], INACTIVE)),
    (Meaning::RefreshTokenInvalid, Of(&["refresh token", "refreshtoken"], DEAD)),
    (Meaning::CodeInvalid, Of(&["authorization code"], DEAD)),
    (Meaning::TimedOut, Phrase(&["timeout after", "request timed out", "request timeout"])),
    (Meaning::WrongVersion, Phrase(&["version header", "not available in api version", "not available in version"])),
    (
        Meaning::NotAllowed,
        Phrase(&[
            "not authorized for this scope",
            "type is not allowed to access this scope",
            "user type mismatch",
            "insufficient scope",
            "not have access to this company",
        ]),
    ),
    (
        Meaning::NoAccessToLocation,
        Phrase(&[
            "not have access to this location",
            "not have access to the location",
            "doesnt have access to this location",
            "no access to this location",
            "location is not accessible",
        ]),
    ),
    (Meaning::AboutTheRequest, Phrase(&["no conversation provider found"])),
    (Meaning::NotInstalled, Of(&["app", "application"], &["not installed", "uninstalled", "no longer installed"])),
    (Meaning::ClientInvalid, Phrase(&["invalid client"])),
    (Meaning::ClientInvalid, Of(&["client id", "client secret", "client credentials", "client"], &["invalid"])),
    (
        Meaning::ParameterInvalid,
        Phrase(&[
            "invalid parameter",
            "missing parameter",
            "unsupported grant type",
            "unauthorized client",
            "redirect uri is invalid",
            "redirect uri mismatch",
            "redirect uri is not a valid uri",
        ]),
    ),
    (Meaning::LocationNotFound, Of(&["location", "sub account", "subaccount"], GONE)),
    (Meaning::CompanyNotFound, Of(&["company", "agency"], GONE)),
    (Meaning::GrantInvalid, Exactly(&["invalid grant"])),
    (Meaning::AccessTokenInvalid, Only(OF_ACCESS_TOKENS, DEAD_ACCESS_TOKEN)),
];

/// Phrases for a location or company that is paused.
const INACTIVE: &[&str] = &["not active", "inactive", "paused", "suspended", "deactivated"];
/// Phrases for a token or code that is no longer valid.
const DEAD: &[&str] = &[
    "invalid",
    "not valid",
    "no longer valid",
    "expired",
    "revoked",
    "unknown",
    "deleted",
    "already used",
    "been used",
    "was used",
    "reused",
    "reuse detected",
    "consumed",
    "not found",
    "not be found",
    "not exist",
    "doesnt exist",
    "no longer exists",
    "not recognized",
    "not recognised",
];
/// Phrases for a location or company that is deleted.
const GONE: &[&str] =
    &["not found", "not be found", "not exist", "doesnt exist", "no longer exists", "deleted", "removed"];
/// Words that may stand between the two phrases of [`Of`]. A word with a digit, such as an id, may stand there too.
const BETWEEN: &[&str] = &[
    "a",
    "already",
    "an",
    "and",
    "app",
    "be",
    "been",
    "can",
    "cannot",
    "client",
    "company",
    "could",
    "did",
    "does",
    "either",
    "for",
    "given",
    "has",
    "have",
    "id",
    "is",
    "it",
    "location",
    "may",
    "of",
    "or",
    "presented",
    "provided",
    "supplied",
    "that",
    "the",
    "this",
    "user",
    "value",
    "was",
    "were",
    "which",
    "with",
    "you",
    "your",
];
/// All words of the texts that say only that an access token is invalid.
const OF_ACCESS_TOKENS: &[&str] = &[
    "a",
    "access",
    "an",
    "and",
    "auth",
    "authentication",
    "authorization",
    "authorized",
    "been",
    "bearer",
    "expired",
    "for",
    "has",
    "have",
    "invalid",
    "is",
    "it",
    "jwt",
    "longer",
    "malformed",
    "no",
    "not",
    "oauth",
    "or",
    "other",
    "please",
    "provided",
    "reasons",
    "revoked",
    "the",
    "this",
    "token",
    "un",
    "unauthorized",
    "valid",
    "was",
    "your",
];
/// Phrases for an access token that is invalid.
const DEAD_ACCESS_TOKEN: &[&str] = &[
    "invalid jwt",
    "jwt expired",
    "jwt is expired",
    "jwt has expired",
    "jwt malformed",
    "jwt is invalid",
    "invalid token",
    "invalid access token",
    "invalid bearer token",
    "token expired",
    "expired token",
    "token is expired",
    "token has expired",
    "token has been expired",
    "token was expired",
    "token is invalid",
    "token provided is expired",
    "token is not valid",
    "token is no longer valid",
    "token revoked",
    "token is revoked",
    "token has been revoked",
    "token was revoked",
    "token malformed",
    "token is malformed",
    "expired jwt",
    "expired access token",
];

impl Pattern {
    fn matches(&self, text: &str) -> bool {
        match self {
            Phrase(phrases) => has(text, phrases),
            Exactly(phrases) => phrases.contains(&text.trim()),
            Of(subjects, predicates) => subjects.iter().any(|subject| is_said_of(subject, predicates, text)),
            Both(some, others) => has(text, some) && has(text, others),
            Only(vocabulary, phrases) => {
                let is_known = |word: &str| word == "." || vocabulary.contains(&word);
                has(text, phrases) && text.split_whitespace().all(is_known)
            }
        }
    }
}

/// True if the text has one of the phrases, as whole words.
pub(super) fn has(text: &str, phrases: &[&str]) -> bool {
    phrases.iter().any(|phrase| positions(text, phrase).next().is_some())
}

/// The text before and after each occurrence of the phrase, as whole words.
fn positions<'a>(text: &'a str, phrase: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    text.match_indices(phrase).filter_map(move |(at, found)| {
        let (before, after) = (&text[..at], &text[at + found.len()..]);
        (before.ends_with(' ') && after.starts_with(' ')).then_some((before, after))
    })
}

fn is_said_of(subject: &str, predicates: &[&str], text: &str) -> bool {
    positions(text, subject).any(|(before, after)| {
        let mut last = before.split_whitespace().rev();
        // "expired refresh token", but not "not an expired refresh token".
        let is_adjective = last.next().is_some_and(|word| predicates.contains(&word));
        is_adjective && !last.any(|word| word == "not")
            || predicates.iter().any(|predicate| begins_with(after, predicate))
    })
}

/// True if the text begins with the phrase, after any number of the words that may stand between.
fn begins_with(text: &str, phrase: &str) -> bool {
    positions(text, phrase).any(|(before, _)| {
        let mut between = before.split_whitespace();
        between.all(|word| BETWEEN.contains(&word) || word.bytes().any(|byte| byte.is_ascii_digit()))
    })
}
