//! The one path that rotates a refresh token, for the schedule, for callers' requests and for the operator alike.
//!
//! A refresh has four steps: claim, guard, present, commit. The claim takes the lease, records the intent (write-ahead
//! intent) and proves that the table can be written. The guard checks the lease directly before each presentation
//! (`leased`). The module `attempt` presents the token and acts on each outcome. The module `release` releases
//! the lease if there is no new pair. The module `minting` asks companies about a location whose own grant is refused.
//! The condition of the `commit` is the version and not the lease, so that a granted pair is stored also after the lease
//! has ended.

mod attempt;
mod commit;
mod minting;
mod release;

use std::sync::Arc;

use self::attempt::LeasedRefresh;
use self::commit::{Commit, Committed};
use super::TokenError;
use super::breaker::BreakerError;
use super::mint::Minter;
use super::outcome::{Refreshed, Why};
use super::parts::TokenParts;
use super::rescue::{RescueError, RescueQueue, Rescued};
use crate::domain::clock::Millis;
use crate::domain::installation::{Installation, StandbyPair};
use crate::domain::resource::Resource;
use crate::domain::status::{LeaseOwner, TokenVersion};
use crate::seal::pair::{Pair, PairRole, place};
use crate::seal::vault::VaultError;
use crate::secrets::FRESH;
use crate::table::installation::LEASE;

/// Refreshes installations.
pub struct Refresher {
    parts: TokenParts,
    rescue: Option<RescueQueue>,
    minter: Arc<Minter>,
}

impl Refresher {
    /// Creates a refresher of the installations in the table. A granted pair that cannot be stored goes to the `rescue`
    /// queue.
    pub fn new(parts: TokenParts, rescue: Option<RescueQueue>, minter: Arc<Minter>) -> Self {
        Self { parts, rescue, minter }
    }

    /// Refreshes an installation that was read in version `seen`, in an invocation that ends at `deadline`.
    pub async fn refresh(&self, resource: &Resource, seen: TokenVersion, why: Why, deadline: Millis) -> Refreshed {
        // The future is boxed because it is large, and every reader's future would hold room for it.
        let refresh = async {
            match self.attempt(resource, seen, why, deadline).await {
                Ok(attempted) => Box::pin(attempted.present()).await,
                Err(instead) => instead,
            }
        };
        Box::pin(refresh).await
    }

    /// Prepares the refresh with the steps that can fail without harm, and then claims the installation.
    async fn attempt(
        &self,
        resource: &Resource,
        seen: TokenVersion,
        why: Why,
        deadline: Millis,
    ) -> Result<LeasedRefresh<'_>, Refreshed> {
        self.prepare(resource, deadline).await.map_err(Refreshed::Failed)?;
        let leased = self.parts.claim(resource, seen, why, false, deadline).await?;
        Ok(LeasedRefresh { refresher: self, leased, is_unanswered: false })
    }

    async fn prepare(&self, resource: &Resource, deadline: Millis) -> Result<(), TokenError> {
        self.parts.expect_time(resource, deadline)?;
        self.parts.endpoint.credentials(FRESH).await?;
        match self.parts.breaker.check(&self.parts.endpoint).await {
            Ok(None) => Ok(()),
            Ok(Some(open)) => Err(TokenError::Misconfigured(open.reason.as_str())),
            Err(BreakerError::Store(error)) => Err(error.into()),
            Err(BreakerError::Secret(error)) => Err(error.into()),
        }
    }

    /// Stores a pair from the rescue queue, by the same compare-and-swap as the commit of a refresh.
    ///
    /// # Errors
    /// [`RescueError`]: the message must be delivered again.
    pub async fn commit_rescued(
        &self,
        rescued: &Rescued,
        epoch: u64,
        generation: u64,
    ) -> Result<&'static str, RescueError> {
        let pair = rescued.open(&self.parts.vault).await?;
        let sealer = self.parts.vault.sealer().await.map_err(VaultError::from)?;
        let stored = self.parts.table.installation(&rescued.resource).await?;
        let commit = Commit {
            refresher: self,
            event: stored.and_then(|stored| self.parts.events.renewed(&stored)),
            resource: &rescued.resource,
            from: TokenVersion { epoch, generation },
            owner: &LeaseOwner::from(rescued.attempt.clone()),
            sealer: &sealer,
            pair: &pair,
        };
        Ok(match commit.once().await? {
            Committed::Stored(stored) => {
                self.parts.events.publish(&stored, self.parts.clock.now() + LEASE).await;
                "stored"
            }
            Committed::Standby => "standby",
            Committed::Superseded => "superseded",
        })
    }

    /// Returns true if the rescue queue holds granted pairs, or does not answer. The pairs may be those of any
    /// installation: the queue is empty unless the table has failed.
    async fn pairs_may_be_queued(&self) -> bool {
        match &self.rescue {
            Some(queue) => queue.depth().await != Some(0),
            None => false,
        }
    }

    /// Opens a standby pair.
    async fn open(&self, installation: &Installation, standby: &StandbyPair) -> Result<Pair, VaultError> {
        let (item, slot, sealed) = (installation.key(), PairRole::Standby, &standby.pair);
        let version = TokenVersion { generation: standby.generation, ..installation.version };
        let refresh = match &sealed.refresh {
            Some(refresh) => Some(self.parts.vault.open(place(&item, version, slot.refresh()), refresh).await?),
            None => None,
        };
        Ok(Pair {
            access: self.parts.vault.open(place(&item, version, slot.access()), &sealed.access.token).await?,
            refresh,
            issued_at: sealed.access.issued_at,
            expires_at: sealed.access.expires_at,
        })
    }
}
