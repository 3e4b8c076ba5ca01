//! Changing a secret without losing what somebody else changes meanwhile.
//!
//! Secrets Manager has no conditional write. But it moves a label from one *named* version to another, or not at all
//! (API reference, `UpdateSecretVersionStage`: "If the label is attached and … the version ID does not match, then the
//! operation fails"). So a new value is first stored under a label that nobody reads, and then `AWSCURRENT` is moved
//! to it from exactly the version that was seen. Functions read `AWSCURRENT` and so see the old value or the new one.

use aws_sdk_secretsmanager::Client;

use super::SecretError;
use crate::domain::clock::Millis;
use crate::domain::random;
use crate::domain::redacted::Redacted;
use crate::http_client::aws_error::describe;

/// The label under which a value waits to become the current one.
const PROPOSED: &str = "PROPOSED";
/// The label of the version that is in force.
pub(super) const CURRENT: &str = "AWSCURRENT";

/// One version of a secret, as it was read.
#[derive(Clone, Debug)]
pub struct Version {
    /// The value.
    pub text: Redacted,
    /// The version's id.
    pub id: String,
    /// When the version was made.
    pub made_at: Option<Millis>,
}

/// What a change came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// The new value is the current one.
    Done,
    /// Somebody else has changed the secret since it was read; nothing was done.
    Changed,
}

/// A secret to be read and changed.
#[derive(Clone, Debug)]
pub struct EditedSecret {
    client: Client,
    id: String,
}

impl EditedSecret {
    /// The secret of that name or ARN.
    #[must_use]
    pub fn new(client: Client, id: String) -> Self {
        Self { client, id }
    }

    /// The current version.
    ///
    /// # Errors
    /// [`SecretError`].
    pub async fn read(&self) -> Result<Version, SecretError> {
        let answer = self.client.get_secret_value().secret_id(&self.id).version_stage(CURRENT).send().await;
        let answer = answer.map_err(|error| self.unavailable(describe(&error)))?;
        let text = answer.secret_string().ok_or_else(|| self.unavailable("it has no SecretString".into()))?;
        Ok(Version {
            text: text.into(),
            id: answer.version_id().unwrap_or_default().to_owned(),
            made_at: answer.created_date().and_then(|at| at.to_millis().ok()).map(Millis),
        })
    }

    /// Makes `text` the current value in place of `seen`.
    ///
    /// # Errors
    /// [`SecretError`]; the secret is as it was, unless only the answer was lost.
    pub async fn replace(&self, seen: &Version, text: &Redacted) -> Result<Replaced, SecretError> {
        let version = new_version_id();
        let proposed = self.client.put_secret_value().secret_id(&self.id).client_request_token(&version);
        let proposed = proposed.secret_string(text.expose()).version_stages(PROPOSED).send().await;
        proposed.map_err(|error| self.unavailable(describe(&error)))?;
        let moved = self.client.update_secret_version_stage().secret_id(&self.id).version_stage(CURRENT);
        let moved = moved.move_to_version_id(&version).remove_from_version_id(&seen.id).send().await;
        let Err(error) = moved else { return Ok(Replaced::Done) };
        // Which error a lost race is answered with is not documented; which version is current now says more.
        match self.read().await?.id {
            current if current == version => Ok(Replaced::Done),
            current if current != seen.id => Ok(Replaced::Changed),
            _ => Err(self.unavailable(describe(&error))),
        }
    }

    fn unavailable(&self, reason: String) -> SecretError {
        SecretError::Unavailable { id: self.id.clone(), reason }
    }
}

/// A version id is any 32 to 64 characters that no other version has.
fn new_version_id() -> String {
    random::hex::<16>()
}
