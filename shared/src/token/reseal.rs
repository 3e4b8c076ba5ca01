//! Seals stored tokens again under the current data key, so that an old key can be retired.

use std::collections::BTreeMap;

use crate::domain::installation::{
    Installation, Installed, SealedAccess, SealedPair, Source, StandbyPair, installation_key,
};
use crate::domain::resource::Resource;
use crate::domain::status::TokenVersion;
use crate::seal::pair::{PairRole, place};
use crate::seal::{Field, SealError, Sealer, key_id};
use crate::table::sealed::tokens_of;
use crate::table::{StoreError, Table};

/// The most tries to seal an item that changes in the meantime.
const ROUNDS: u32 = 5;

/// The outcome of resealing one installation.
#[derive(Debug, PartialEq, Eq)]
pub enum Resealed {
    /// No token of the installation was sealed under another key.
    Already,
    /// The installation's tokens are sealed under the current key now.
    Done,
    /// The installation changes faster than it can be written. Another run is worthwhile.
    Busy,
    /// A token does not open, or its key is not known. The installation is unchanged.
    DoesNotOpen(SealError),
}

/// Counts the sealed tokens of an installation by the id of their key, and adds the counts to `into`. The empty id
/// counts values that are not sealed.
pub fn keys_of(installation: &Installation, into: &mut BTreeMap<String, u64>) {
    let Some(Installed { source, .. }) = installation.installed() else { return };
    for value in tokens_of(source).values() {
        *into.entry(key_id(value).unwrap_or_default().to_owned()).or_default() += 1;
    }
}

/// Seals one installation's tokens under the sealer's current key, whose id is `current`.
///
/// # Errors
/// [`StoreError`]: the tokens may or may not have been written. Both are safe.
pub async fn reseal(
    table: &Table,
    sealer: &Sealer,
    current: &str,
    installation: Installation,
) -> Result<Resealed, StoreError> {
    let mut installation = installation;
    for _ in 0..ROUNDS {
        let mut keys = BTreeMap::new();
        keys_of(&installation, &mut keys);
        keys.remove(current);
        if keys.is_empty() {
            return Ok(Resealed::Already);
        }
        let Some(Installed { source, .. }) = installation.installed() else { return Ok(Resealed::Already) };
        let anew = match seal_anew(sealer, &installation.resource, installation.version, source) {
            Ok(anew) => anew,
            Err(error) => return Ok(Resealed::DoesNotOpen(error)),
        };
        if table.reseal(&installation, &anew).await? {
            return Ok(Resealed::Done);
        }
        match table.installation(&installation.resource).await? {
            Some(changed) => installation = changed,
            None => return Ok(Resealed::Already),
        }
    }
    Ok(Resealed::Busy)
}

fn seal_anew(
    sealer: &Sealer,
    resource: &Resource,
    version: TokenVersion,
    source: &Source,
) -> Result<Source, SealError> {
    let item = installation_key(resource);
    let token = |version, field: Field, sealed: &[u8]| {
        let place = place(&item, version, field);
        sealer.open(place, sealed).map(|token| sealer.seal(place, token.expose()))
    };
    let access = |version, role: PairRole, access: &SealedAccess| {
        Ok(SealedAccess { token: token(version, role.access(), &access.token)?, ..*access })
    };
    let pair = |version, role: PairRole, pair: &SealedPair| {
        let refresh = pair.refresh.as_ref().map(|refresh| token(version, role.refresh(), refresh)).transpose()?;
        Ok(SealedPair { access: access(version, role, &pair.access)?, refresh })
    };
    Ok(match source {
        Source::Own { pair: current, standby } => {
            let standby = standby.iter().map(|standby| {
                let version = TokenVersion { generation: standby.generation, ..version };
                let pair = pair(version, PairRole::Standby, &standby.pair)?;
                Ok(StandbyPair { pair, ..standby.clone() })
            });
            let standby = standby.collect::<Result<_, _>>()?;
            let current = current.as_ref().map(|current| pair(version, PairRole::Current, current)).transpose()?;
            Source::Own { pair: current, standby }
        }
        Source::Minted { access: current, minted } => {
            let current = current.as_ref().map(|current| access(version, PairRole::Current, current)).transpose()?;
            Source::Minted { access: current, minted: *minted }
        }
    })
}
