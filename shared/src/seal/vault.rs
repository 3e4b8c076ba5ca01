//! The sealer with the data keys as Secrets Manager has them now.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::redacted::Redacted;
use crate::seal::{DataKeys, Place, SealError, Sealer};
use crate::secrets::{Secret, SecretError};

/// An unknown key id makes the secret be read again at most so often.
const UNKNOWN_KEY: Duration = Duration::from_secs(30);

/// Why a stored token cannot be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VaultError {
    /// The data keys cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The value does not open.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Seals and opens; reads the data keys when it first needs them, and again when they are old.
pub struct Vault {
    keys: Secret<DataKeys>,
    table: Arc<str>,
}

impl Vault {
    /// A vault for the items of one table.
    #[must_use]
    pub fn new(keys: Secret<DataKeys>, table: &str) -> Self {
        Self { keys, table: table.into() }
    }

    /// The sealer with the current keys.
    ///
    /// # Errors
    /// [`SecretError`]. Nothing may be sent to the token endpoint then: its answer could not be kept.
    pub async fn sealer(&self) -> Result<Sealer, SecretError> {
        Ok(Sealer::new(self.table.clone(), self.keys.get().await?))
    }

    /// Opens a sealed value. An unknown key id makes the keys be read again, at most once in 30 s.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Redacted, VaultError> {
        match self.sealer().await?.open(place, sealed) {
            Err(SealError::UnknownKey(_)) => {
                let keys = self.keys.read_again(UNKNOWN_KEY).await?;
                Ok(Sealer::new(self.table.clone(), keys).open(place, sealed)?)
            }
            opened => Ok(opened?),
        }
    }
}
