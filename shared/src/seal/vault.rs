//! Sealing with the data keys that Secrets Manager has now.

use std::time::Duration;

use crate::domain::installation::SealedPair;
use crate::domain::redacted::Redacted;
use crate::domain::status::TokenVersion;
use crate::seal::pair::{Pair, PairRole, place};
use crate::seal::{Binding, DataKeys, Place, SealError, Sealer};
use crate::secrets::{Secret, SecretError};

/// The least time between two re-reads of the secret because of an unknown key id.
const UNKNOWN_KEY: Duration = Duration::from_secs(30);

/// The reason why a stored token cannot be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VaultError {
    /// The data keys cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The value does not open.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Seals and opens values. Reads the data keys at first use, and again when they are old.
pub struct Vault {
    keys: Secret<DataKeys>,
    binding: Binding,
}

impl Vault {
    /// A vault for the items of one deployment.
    pub fn new(keys: Secret<DataKeys>, binding: Binding) -> Self {
        Self { keys, binding }
    }

    /// A sealer with other keys than those of the secret.
    pub fn sealer_with(&self, keys: DataKeys) -> Sealer {
        Sealer::new(self.binding.clone(), keys.into())
    }

    /// The sealer with the current keys.
    ///
    /// # Errors
    /// The data keys cannot be read. Then no request may go to the token endpoint: the response could not be stored.
    pub async fn sealer(&self) -> Result<Sealer, SecretError> {
        Ok(Sealer::new(self.binding.clone(), self.keys.get().await?))
    }

    /// Opens a sealed value. If its key id is unknown, the keys are read again, at most once in 30 s.
    pub async fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Redacted, VaultError> {
        match self.sealer().await?.open(place, sealed) {
            Err(SealError::UnknownKey(_)) => {
                let keys = self.keys.read_again(UNKNOWN_KEY).await?;
                Ok(Sealer::new(self.binding.clone(), keys).open(place, sealed)?)
            }
            opened => Ok(opened?),
        }
    }

    /// Opens the pair that is sealed in an item under `version`.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn open_pair(
        &self,
        item: &str,
        version: TokenVersion,
        role: PairRole,
        sealed: &SealedPair,
    ) -> Result<Pair, VaultError> {
        let open = async |field, sealed| self.open(place(item, version, field), sealed).await;
        let refresh = match &sealed.refresh {
            Some(refresh) => Some(open(role.refresh(), refresh).await?),
            None => None,
        };
        let access = open(role.access(), &sealed.access.token).await?;
        Ok(Pair { access, refresh, issued_at: sealed.access.issued_at, expires_at: sealed.access.expires_at })
    }
}
