//! Random names that cannot be guessed: request ids, codes, tokens.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use shared::domain::random;

/// Returns a version 4 UUID.
pub(crate) fn uuid() -> String {
    let random = random::hex::<16>();
    format!("{}-{}-4{}-a{}-{}", &random[0..8], &random[8..12], &random[13..16], &random[17..20], &random[20..32])
}

/// Returns a token that resembles the platform's tokens in form and size: a signed JWT of one to two kilobytes.
pub(crate) fn token(kind: &str, claims: &Value) -> String {
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256","typ":"JWT"}"#);
    let mut claims = claims.clone();
    claims["jti"] = json!(random::hex::<16>());
    claims["kind"] = json!(kind);
    claims["oauthMeta"] = json!({ "scopes": SCOPES.split(' ').collect::<Vec<_>>(), "client": "sandbox" });
    format!(
        "{header}.{}.{}",
        URL_SAFE_NO_PAD.encode(claims.to_string()),
        URL_SAFE_NO_PAD.encode(random::bytes::<256>())
    )
}

/// Scopes of every token that the fake platform issues.
pub(crate) const SCOPES: &str = "contacts.readonly contacts.write locations.readonly companies.readonly oauth.readonly oauth.write \
     calendars.readonly calendars.write conversations.readonly conversations.write opportunities.readonly opportunities.write \
     forms.readonly invoices.readonly invoices.write medias.readonly users.readonly workflows.readonly";
