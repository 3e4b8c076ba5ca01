//! A cache of the secrets in Secrets Manager, with single flight.
//!
//! A value that is older than [`FRESH`] is read again. While Secrets Manager does not answer, the old value stays in use.
//! A process reads each secret once at a time; other callers wait for that read (single flight).

pub mod edit;
pub mod webhook;

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_secretsmanager::Client;
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::domain::clock::{Clock, Millis};
use crate::domain::redacted::Redacted;
use crate::http_client::aws_error::describe;

/// The age at which a value is read again. Every process must notice a change within 60 s.
pub const FRESH: Duration = Duration::from_secs(45);
/// The pause after a failed read, while there is an older value to use.
const RETRY: Duration = Duration::from_secs(5);

/// The reason why a secret has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Secrets Manager did not answer, or refused.
    #[error("secret {id} cannot be read: {reason}")]
    Unavailable {
        /// Name or ARN of the secret.
        id: String,
        /// The SDK's error. It never contains the value.
        reason: String,
    },
    /// The value is not in its documented form.
    #[error("secret {id} is malformed: {reason}")]
    Malformed {
        /// Name or ARN of the secret.
        id: String,
        /// The form that was expected.
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
    /// Reads `{"client_id":"…","client_secret":"…"}`. The error says which form was expected.
    pub fn parse(json: &str) -> Result<Self, String> {
        let form = || r#"expected {"client_id":"…","client_secret":"…"}, neither empty"#.to_owned();
        let credentials: Self = serde_json::from_str(json).map_err(|_| form())?;
        let empty = credentials.client_id.is_empty() || credentials.client_secret.expose().is_empty();
        if empty { Err(form()) } else { Ok(credentials) }
    }

    /// The app's id without the version's suffix: the platform's `appId`.
    pub fn app_id(&self) -> &str {
        self.client_id.split('-').next().unwrap_or(&self.client_id)
    }
}

/// One secret, parsed and cached. Each of its three reads fails only if Secrets Manager fails and no older value is cached.
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
    /// No read is tried before this instant.
    next_read_at: Millis,
    /// When [`Secret::read_again`] last read the value.
    reread_at: Option<Millis>,
}

impl<T> Secret<T> {
    /// A secret that has not been read yet.
    pub fn new(client: Client, id: impl Into<String>, clock: Clock, parse: fn(&str) -> Result<T, String>) -> Self {
        Self { client, id: id.into(), clock, parse, cached: Mutex::new(None) }
    }

    /// The value, at most [`FRESH`] old unless Secrets Manager fails.
    pub async fn get(&self) -> Result<Arc<T>, SecretError> {
        self.read_if_older_than(FRESH).await
    }

    /// The value, at most `age` old unless Secrets Manager fails. For a caller that has a reason to expect a change.
    pub async fn read_if_older_than(&self, age: Duration) -> Result<Arc<T>, SecretError> {
        self.read_unless(|cached, now| now.since(cached.read_at) < age || now < cached.next_read_at, false).await
    }

    /// Re-reads the secret even if the cache is fresh, at most once per `min_interval`. For a value that was just rejected.
    pub async fn read_again(&self, min_interval: Duration) -> Result<Arc<T>, SecretError> {
        self.read_unless(|cached, now| cached.reread_at.is_some_and(|at| now.since(at) < min_interval), true).await
    }

    async fn read_unless(
        &self,
        is_good: impl Fn(&Cached<T>, Millis) -> bool + Send,
        is_reread: bool,
    ) -> Result<Arc<T>, SecretError> {
        let mut cached = self.cached.lock().await;
        let now = self.clock.now();
        if let Some(c) = &*cached
            && is_good(c, now)
        {
            return Ok(c.value.clone());
        }
        let reread_at = if is_reread { Some(now) } else { cached.as_ref().and_then(|c| c.reread_at) };
        // Boxed: a future is as large as its largest branch, and this branch is rare.
        match (Box::pin(self.read()).await, &mut *cached) {
            (Ok(value), slot) => {
                let value = Arc::new(value);
                *slot = Some(Cached { value: value.clone(), read_at: now, next_read_at: now, reread_at });
                Ok(value)
            }
            (Err(error), Some(old)) => {
                tracing::warn!(%error, "a secret could not be read; its older value stays in use");
                old.next_read_at = now + RETRY;
                old.reread_at = reread_at;
                Ok(old.value.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    async fn read(&self) -> Result<T, SecretError> {
        let unavailable = |reason: String| SecretError::Unavailable { id: self.id.clone(), reason };
        // The label is the service's default, but not every emulator knows that.
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
