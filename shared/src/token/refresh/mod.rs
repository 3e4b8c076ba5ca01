//! The one path that rotates a refresh token, for the schedule, for callers' requests and for the operator alike.
//!
//! A refresh has four steps: claim, guard, present, commit. The claim takes the lease, records the intent and proves
//! that the table can be written. The guard checks the lease directly before each presentation (`lease`). The module
//! `attempt` presents the token and acts on each outcome. The module `setback` releases the lease if there is no new
//! pair. The module `minting` asks companies about a location whose own grant is refused. The condition of the `commit` is the version and not the lease, so that a granted pair is stored also after
//! the lease has ended.

mod attempt;
mod commit;
mod lease;
mod minting;
pub(super) mod setback;

use std::sync::Arc;
use std::time::Instant;

use self::attempt::Attempted;
use self::commit::{Commit, Committed};
use self::lease::Lease;
use super::alarm::AppAlarms;
use super::breaker::{Breaker, BreakerError};
use super::mint::Minter;
use super::outcome::{Failure, Refreshed, Why, not_claimed};
use super::parts::TokenParts;
use super::rescue::{RescueError, RescueQueue, Rescued};
use crate::domain::clock::{Clock, Millis};
use crate::domain::installation::{Installation, StandbyPair};
use crate::domain::resource::Resource;
use crate::domain::status::{LeaseOwner, TokenVersion};
use crate::events::Events;
use crate::platform::token_endpoint::TokenEndpoint;
use crate::seal::pair::{Pair, Slot, place};
use crate::seal::vault::{Vault, VaultError};
use crate::secrets::FRESH;
use crate::table::installation::{Claim, LEASE};
use crate::table::{Table, Write};

/// Refreshes installations.
pub struct Refresher {
    table: Table,
    vault: Arc<Vault>,
    endpoint: TokenEndpoint,
    breaker: Arc<Breaker>,
    rescue: Option<RescueQueue>,
    events: Events,
    alarms: Arc<AppAlarms>,
    minter: Arc<Minter>,
    clock: Clock,
}

impl Refresher {
    /// Creates a refresher of the installations in the table. A granted pair that cannot be stored goes to the `rescue`
    /// queue.
    #[must_use]
    pub fn new(parts: TokenParts, rescue: Option<RescueQueue>, minter: Arc<Minter>) -> Self {
        let TokenParts { table, vault, endpoint, breaker, events, alarms, clock } = parts;
        Self { table, vault, endpoint, breaker, rescue, events, alarms, minter, clock }
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
    ) -> Result<Attempted<'_>, Refreshed> {
        if self.clock.now() + LEASE > deadline {
            tracing::warn!(%resource, "not refreshed: a renewal needs 15 s of the invocation, and less are left");
            return Err(Refreshed::Failed(Failure::NoTime));
        }
        let secret = |error| Refreshed::Failed(Failure::Secret(error));
        let store = |error| Refreshed::Failed(Failure::Store(error));
        let (sealer, app) = tokio::join!(self.vault.sealer(), self.endpoint.credentials(FRESH));
        let sealer = sealer.map_err(secret)?;
        app.map_err(secret)?;
        match self.breaker.check(&self.endpoint).await {
            Ok(None) => {}
            Ok(Some(open)) => return Err(Refreshed::Failed(Failure::Misconfigured(open.reason.as_str()))),
            Err(BreakerError::Store(error)) => return Err(store(error)),
            Err(BreakerError::Secret(error)) => return Err(secret(error)),
        }
        let (now, claimed_at, owner) = (self.clock.now(), Instant::now(), LeaseOwner::new());
        let claim = Claim {
            resource,
            version: seen,
            owner: &owner,
            now,
            lease_ends_at: now + LEASE,
            given_up_too: why == Why::Operator,
            forced_before: why.forced_apart().map(|apart| now - apart),
            doubted: why == Why::Doubted,
            minting: false,
        };
        match self.table.claim(&claim).await.map_err(store)? {
            Write::Applied(installation) => {
                let lease = Lease { ends_at: now + LEASE, claimed_at, deadline };
                Ok(Attempted { on: self, installation: *installation, owner, lease, sealer, uncertain: false })
            }
            Write::NotFound => Err(Refreshed::Gone),
            Write::Conflict(stored) if stored.minted().is_some() => Err(Refreshed::IsMinted),
            Write::Conflict(stored) => Err(not_claimed(&stored, seen, why, now)),
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
        let pair = rescued.open(&self.vault).await?;
        let sealer = self.vault.sealer().await.map_err(VaultError::from)?;
        let stored = self.table.installation(&rescued.resource).await?;
        let commit = Commit {
            on: self,
            event: stored.and_then(|stored| self.events.renewed(&stored)),
            resource: &rescued.resource,
            from: TokenVersion { epoch, generation },
            owner: &LeaseOwner::from(rescued.attempt.clone()),
            sealer: &sealer,
            pair: &pair,
        };
        Ok(match commit.once().await? {
            Committed::Stored(stored) => {
                self.events.publish(&stored, self.clock.now() + LEASE).await;
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
        let (item, slot, sealed) = (installation.key(), Slot::Standby, &standby.pair);
        let version = TokenVersion { generation: standby.generation, ..installation.version };
        let refresh = match &sealed.refresh {
            Some(refresh) => Some(self.vault.open(place(&item, version, slot.refresh()), refresh).await?),
            None => None,
        };
        Ok(Pair {
            access: self.vault.open(place(&item, version, slot.access()), &sealed.access).await?,
            refresh,
            issued_at: sealed.access_issued_at,
            expires_at: sealed.access_expires_at,
        })
    }
}
