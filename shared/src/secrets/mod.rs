//! The three secrets, read from Secrets Manager and kept for a short time.
//!
//! A value that is older than [`FRESH`] is read again; while the service does not answer, the old value goes on being
//! used. Only one caller of a process reads at a time.

pub mod edit;

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_secretsmanager::Client;
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::domain::clock::{Clock, Millis};
use crate::domain::redacted::Redacted;
use crate::http_client::aws_error::describe;

/// How long a value is used before it is read again. The contract promises that a change is noticed within 60 s.
pub const FRESH: Duration = Duration::from_secs(45);
/// How long a failed read is not repeated while there is an older value to use.
const RETRY: Duration = Duration::from_secs(5);

/// Why there is no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Secrets Manager did not answer, or refused.
    #[error("secret {id} cannot be read: {reason}")]
    Unavailable {
        /// Name or ARN of the secret.
        id: String,
        /// What the SDK says; it never holds the value.
        reason: String,
    },
    /// The value is not in its documented form.
    #[error("secret {id} is malformed: {reason}")]
    Malformed {
        /// Name or ARN of the secret.
        id: String,
        /// Which form was expected.
        reason: String,
    },
}

/// The app's client credentials (RFC 6749 section 2.3.1, sent in the body).
#[derive(Clone, Debug, Deserialize)]
pub struct AppCredentials {
    /// The app's id, with the version's suffix after a dash.
    pub client_id: String,
    /// The app's secret.
    pub client_secret: Redacted,
}

impl AppCredentials {
    /// Reads `{"client_id":"…","client_secret":"…"}`.
    ///
    /// # Errors
    /// A sentence on the form that was expected.
    pub fn parse(json: &str) -> Result<Self, String> {
        let form = || r#"expected {"client_id":"…","client_secret":"…"}, neither empty"#.to_owned();
        let credentials: Self = serde_json::from_str(json).map_err(|_| form())?;
        let empty = credentials.client_id.is_empty() || credentials.client_secret.expose().is_empty();
        if empty { Err(form()) } else { Ok(credentials) }
    }

    /// The app's id without the version's suffix: the platform's `appId`.
    #[must_use]
    pub fn app_id(&self) -> &str {
        self.client_id.split('-').next().unwrap_or(&self.client_id)
    }
}

/// One secret, parsed and cached.
pub struct Secret<T> {
    client: Client,
    id: String,
    clock: Clock,
    parse: fn(&str) -> Result<T, String>,
    cached: Mutex<Option<Cached<T>>>,
}

struct Cached<T> {
    value: Arc<T>,
    read_at: Millis,
    /// Before this instant no further read is tried.
    next_read_at: Millis,
    /// When it was last read again out of turn.
    urged_at: Option<Millis>,
}

impl<T> Secret<T> {
    /// A secret that has not been read yet.
    pub fn new(client: Client, id: impl Into<String>, clock: Clock, parse: fn(&str) -> Result<T, String>) -> Self {
        Self { client, id: id.into(), clock, parse, cached: Mutex::new(None) }
    }

    /// The value, at most [`FRESH`] old unless Secrets Manager fails.
    ///
    /// # Errors
    /// [`SecretError`] if there is neither a new value nor an old one.
    pub async fn get(&self) -> Result<Arc<T>, SecretError> {
        self.read_if_older_than(FRESH).await
    }

    /// The value, at most `age` old unless Secrets Manager fails: for who has a reason to think that it has changed.
    ///
    /// # Errors
    /// [`SecretError`] if there is neither a new value nor an old one.
    pub async fn read_if_older_than(&self, age: Duration) -> Result<Arc<T>, SecretError> {
        self.read_unless(|cached, now| now.since(cached.read_at) < age || now < cached.next_read_at, false).await
    }

    /// The value, read again however new it is, but so at most once in `apart`: for who has met something that the
    /// value does not know yet.
    ///
    /// # Errors
    /// [`SecretError`] if there is neither a new value nor an old one.
    pub async fn read_again(&self, apart: Duration) -> Result<Arc<T>, SecretError> {
        self.read_unless(|cached, now| cached.urged_at.is_some_and(|at| now.since(at) < apart), true).await
    }

    async fn read_unless(
        &self,
        is_good: impl Fn(&Cached<T>, Millis) -> bool + Send,
        urged: bool,
    ) -> Result<Arc<T>, SecretError> {
        let mut cached = self.cached.lock().await;
        let now = self.clock.now();
        if let Some(c) = &*cached
            && is_good(c, now)
        {
            return Ok(c.value.clone());
        }
        let urged_at = if urged { Some(now) } else { cached.as_ref().and_then(|c| c.urged_at) };
        // Boxed, like all that is rare on the way of a call: a future is moved with the room for its rarest part.
        match (Box::pin(self.read()).await, &mut *cached) {
            (Ok(value), slot) => {
                let value = Arc::new(value);
                *slot = Some(Cached { value: value.clone(), read_at: now, next_read_at: now, urged_at });
                Ok(value)
            }
            (Err(error), Some(old)) => {
                tracing::warn!(%error, "an older value of a secret is used");
                old.next_read_at = now + RETRY;
                old.urged_at = urged_at;
                Ok(old.value.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    async fn read(&self) -> Result<T, SecretError> {
        let unavailable = |reason: String| SecretError::Unavailable { id: self.id.clone(), reason };
        // The label is the default, but not every double of the service knows that.
        let asked = self.client.get_secret_value().secret_id(&self.id).version_stage(edit::CURRENT);
        let answer = asked.send().await.map_err(|e| unavailable(describe(&e)))?;
        let text = answer.secret_string().ok_or_else(|| unavailable("it has no SecretString".into()))?;
        (self.parse)(text).map_err(|reason| SecretError::Malformed { id: self.id.clone(), reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_complete_or_refused_and_never_printed() {
        let good = AppCredentials::parse(r#"{"client_id":"abc-v1","client_secret":"hush-hush"}"#).expect("complete");
        assert_eq!(good.app_id(), "abc");
        assert!(!format!("{good:?}").contains("hush"));
        for bad in ["", "{}", r#"{"client_id":"a"}"#, r#"{"client_id":"a","client_secret":""}"#] {
            assert!(AppCredentials::parse(bad).is_err(), "{bad}");
        }
    }
}
