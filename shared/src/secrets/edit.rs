//! Compare-and-swap (optimistic concurrency) for a secret: another editor's change is never overwritten.
//!
//! Secrets Manager has no conditional write. But it moves a label from one *named* version to another, or not at all
//! (API reference, `UpdateSecretVersionStage`: "If the label is attached and … the version ID does not match, then the
//! operation fails"). So an edit has two steps. The new value is stored under a label that no function reads. Then
//! `AWSCURRENT` is moved to it from exactly the version that was seen. Functions read `AWSCURRENT`, so they see the old
//! value or the new one.

use aws_sdk_secretsmanager::Client;

use super::SecretError;
use crate::domain::clock::Millis;
use crate::domain::random;
use crate::domain::redacted::Redacted;
use crate::http_client::aws_error::describe;

/// The label of a new value before it becomes the current one.
const PROPOSED: &str = "PROPOSED";
/// The label of the version that the functions read.
pub(super) const CURRENT: &str = "AWSCURRENT";

/// One version of a secret, as it was read.
#[derive(Clone, Debug)]
pub struct Version {
    /// The value.
    pub text: Redacted,
    /// The version's id.
    pub id: String,
    /// The time when the version was made.
    pub made_at: Option<Millis>,
}

/// The answer of [`EditedSecret::replace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// The new value is the current one.
    Applied,
    /// Another editor has changed the secret since it was read. Nothing was changed.
    Conflict,
}

/// A secret that is read and changed.
#[derive(Clone, Debug)]
pub struct EditedSecret {
    client: Client,
    id: String,
}

impl EditedSecret {
    /// The secret of that name or ARN.
    pub fn new(client: Client, id: String) -> Self {
        Self { client, id }
    }

    /// The current version.
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
    /// The secret is unchanged, unless only the service's answer was lost.
    pub async fn replace(&self, seen: &Version, text: &Redacted) -> Result<Replaced, SecretError> {
        let version = new_version_id();
        let proposed = self.client.put_secret_value().secret_id(&self.id).client_request_token(&version);
        let proposed = proposed.secret_string(text.expose()).version_stages(PROPOSED).send().await;
        proposed.map_err(|error| self.unavailable(describe(&error)))?;
        let moved = self.client.update_secret_version_stage().secret_id(&self.id).version_stage(CURRENT);
        let moved = moved.move_to_version_id(&version).remove_from_version_id(&seen.id).send().await;
        let Err(error) = moved else { return Ok(Replaced::Applied) };
        // The documentation does not name the error of a lost race. The version that is current now decides.
        match self.read().await?.id {
            current if current == version => Ok(Replaced::Applied),
            current if current != seen.id => Ok(Replaced::Conflict),
            _ => Err(self.unavailable(describe(&error))),
        }
    }

    fn unavailable(&self, reason: String) -> SecretError {
        SecretError::Unavailable { id: self.id.clone(), reason }
    }
}

/// A version's id: any 32 to 64 characters that no other version has.
fn new_version_id() -> String {
    random::hex::<16>()
}
