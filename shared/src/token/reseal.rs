//! Sealing stored tokens anew under the current data key, so that an old one can be retired.

use std::collections::BTreeMap;

use crate::domain::installation::installation_key;
use crate::domain::installation::{Installation, SealedPair, StandbyPair};
use crate::domain::resource::Resource;
use crate::domain::status::TokenVersion;
use crate::seal::pair::{Slot, place};
use crate::seal::{Field, SealError, Sealer, key_id};
use crate::table::{StoreError, Table};

/// How often an item is looked at that changes under the rotation.
const ROUNDS: u32 = 5;

/// What came of one installation.
#[derive(Debug, PartialEq, Eq)]
pub enum Resealed {
    /// Nothing of it was sealed under another key.
    Already,
    /// It is sealed under the current key now.
    Done,
    /// It changes faster than it can be written: worth another run.
    Busy,
    /// Something of it does not open, or its key is not known. It is as it was.
    DoesNotOpen(SealError),
}

/// The ids of the keys that an installation's tokens are sealed under, with how many values each; the empty id stands
/// for what is no sealed value.
pub fn keys_of(installation: &Installation, into: &mut BTreeMap<String, u64>) {
    let standby = installation.standby.iter().map(|standby| &standby.pair);
    for pair in installation.pair.iter().chain(standby) {
        for value in std::iter::once(&pair.access).chain(&pair.refresh) {
            *into.entry(key_id(value).unwrap_or_default().to_owned()).or_default() += 1;
        }
    }
}

/// Seals one installation's tokens under the sealer's current key, whose id is `current`.
///
/// # Errors
/// [`StoreError`]: it may or may not have been written; both are well.
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
        let Installation { resource, version, pair, standby, .. } = &installation;
        let pair = pair.as_ref().map(|pair| seal_anew(sealer, resource, *version, Slot::Current, pair)).transpose();
        let standby = standby.iter().map(|StandbyPair { generation, pair, .. }| {
            let version = TokenVersion { generation: *generation, ..*version };
            seal_anew(sealer, resource, version, Slot::Standby, pair)
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
    slot: Slot,
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
