//! Seals stored tokens again under the current data key, so that an old key can be retired.

use std::collections::BTreeMap;

use crate::domain::installation::installation_key;
use crate::domain::installation::{Installation, SealedPair, StandbyPair};
use crate::domain::resource::Resource;
use crate::domain::status::TokenVersion;
use crate::seal::pair::{PairRole, place};
use crate::seal::{Field, SealError, Sealer, key_id};
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
    let standby = installation.standby().iter().map(|standby| &standby.pair);
    for pair in installation.pair.iter().chain(standby) {
        for value in std::iter::once(&pair.access).chain(&pair.refresh) {
            *into.entry(key_id(value).unwrap_or_default().to_owned()).or_default() += 1;
        }
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
        let Installation { resource, version, pair, .. } = &installation;
        let pair = pair.as_ref().map(|pair| seal_anew(sealer, resource, *version, PairRole::Current, pair)).transpose();
        let standby = installation.standby().iter().map(|StandbyPair { generation, pair, .. }| {
            let version = TokenVersion { generation: *generation, ..*version };
            seal_anew(sealer, resource, version, PairRole::Standby, pair)
        });
        let (pair, standby) = match (pair, standby.collect::<Result<Vec<_>, _>>()) {
            (Ok(pair), Ok(standby)) => (pair, standby),
            (Err(error), _) | (_, Err(error)) => return Ok(Resealed::DoesNotOpen(error)),
        };
        if table.reseal(&installation, pair.as_ref(), &standby).await? {
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
    slot: PairRole,
    pair: &SealedPair,
) -> Result<SealedPair, SealError> {
    let item = installation_key(resource);
    let anew = |field: Field, sealed: &[u8]| {
        let place = place(&item, version, field);
        sealer.open(place, sealed).map(|token| sealer.seal(place, token.expose()))
    };
    Ok(SealedPair {
        access: anew(slot.access(), &pair.access)?,
        refresh: pair.refresh.as_ref().map(|refresh| anew(slot.refresh(), refresh)).transpose()?,
        ..*pair
    })
}
