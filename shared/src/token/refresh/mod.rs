//! The one path that rotates a refresh token, for the schedule, for callers' requests and for the operator alike.
//!
//! A refresh has four steps: claim, guard, present, commit. Before the claim it waits for its turn, if the token endpoint
//! has a pace, and it takes its permit directly before each presentation ([`super::pace`]). The claim takes the lease, records the intent (write-ahead
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
use super::breaker::BreakerError;
use super::mint::Minter;
use super::outcome::{Refreshed, Why};
use super::pace::{NoPermit, Patience, RENEWAL_TIME, REPLAY_TIME, Turn, sleep_until_soon_before};
use super::parts::TokenParts;
use super::rescue::{RescueError, RescueQueue, Rescued};
use super::schedule;
use super::{PAUSED, TokenError};
use crate::domain::clock::Millis;
use crate::domain::installation::{Installation, StandbyPair};
use crate::domain::pace::Priority;
use crate::domain::resource::Resource;
use crate::domain::status::{LeaseOwner, TokenVersion};
use crate::seal::pair::{Pair, PairRole};
use crate::seal::vault::VaultError;
use crate::secrets::FRESH;
use crate::table::StoreError;
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

    /// Refreshes an installation that was read in version `seen`, in an invocation that ends at `deadline`. Waits for a
    /// permit like the schedule.
    pub async fn refresh(&self, resource: &Resource, seen: TokenVersion, why: Why, deadline: Millis) -> Refreshed {
        let patience = Patience { priority: Priority::Schedule, until: deadline - RENEWAL_TIME };
        self.refresh_with(patience, resource, seen, why, deadline).await
    }

    /// Refreshes an installation like [`Refresher::refresh`], with the priority and the patience of the request.
    pub async fn refresh_with(
        &self,
        patience: Patience,
        resource: &Resource,
        seen: TokenVersion,
        why: Why,
        deadline: Millis,
    ) -> Refreshed {
        // The future is boxed because it is large, and every reader's future would hold room for it.
        let refresh = async {
            let mut turn = None;
            loop {
                let refreshed = match self.attempt(&mut turn, patience, resource, seen, why, deadline).await {
                    Ok(attempted) => Box::pin(attempted.present()).await,
                    Err(instead) => instead,
                };
                match refreshed {
                    // Another process took the place, or the platform answered 429.
                    Refreshed::Failed(TokenError::Paced { retry_at }) if retry_at <= patience.until => {
                        sleep_until_soon_before(&self.parts.clock, retry_at).await;
                    }
                    refreshed => return refreshed,
                }
            }
        };
        Box::pin(refresh).await
    }

    /// Prepares the refresh with the steps that can fail without harm, waits for its turn, and then claims the
    /// installation.
    async fn attempt<'a, 't>(
        &'a self,
        turn: &'t mut Option<Turn<'a>>,
        patience: Patience,
        resource: &Resource,
        seen: TokenVersion,
        why: Why,
        deadline: Millis,
    ) -> Result<LeasedRefresh<'a, 't>, Refreshed> {
        self.prepare(resource, patience.priority, deadline).await.map_err(Refreshed::Failed)?;
        let in_turn = match turn.take() {
            // Another process was faster. The turn is kept, so that no other renewal of this process overtakes.
            Some(kept) => self.parts.pace.turn_again(kept, patience).await,
            None => self.parts.pace.turn(patience).await,
        };
        *turn = Some(in_turn.map_err(|refused| {
            Refreshed::Failed(match refused {
                NoPermit::NotBefore(retry_at) => TokenError::Paced { retry_at },
                NoPermit::Store(error) => error.into(),
            })
        })?);
        // The turn may have come after a long wait, and the breaker may have opened meanwhile.
        self.expect_closed_breaker(resource).await.map_err(Refreshed::Failed)?;
        let leased = self.parts.claim(resource, seen, why, false, deadline).await?;
        let priority = patience.priority;
        Ok(LeasedRefresh { refresher: self, leased, is_unanswered: false, priority, turn, permit: None })
    }

    /// Returns true if an operator has paused all refreshing. The answer may be 2 s old.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn is_paused(&self) -> Result<bool, StoreError> {
        self.parts.breaker.is_paused().await
    }

    /// Returns true if the token endpoint has a pace, so that a lost answer may have to wait for its replay.
    pub(super) async fn is_paced(&self) -> bool {
        matches!(self.parts.pace.limit().await, Ok(Some(_)))
    }

    async fn prepare(&self, resource: &Resource, priority: Priority, deadline: Millis) -> Result<(), TokenError> {
        // One presentation is enough for a replay. Any other renewal leaves time for a second one.
        let needed = if priority == Priority::Replay { REPLAY_TIME } else { LEASE };
        self.parts.expect_time(resource, needed, deadline)?;
        self.parts.endpoint.credentials(FRESH).await?;
        self.expect_closed_breaker(resource).await
    }

    /// A pause stops every refresh but one: the platform repeats a lost answer for 30 s only, so the token of that refresh
    /// is presented again.
    async fn expect_closed_breaker(&self, resource: &Resource) -> Result<(), TokenError> {
        if self.parts.breaker.is_paused().await? && !self.is_answer_missing(resource).await? {
            return Err(TokenError::Misconfigured(PAUSED));
        }
        match self.parts.breaker.check(&self.parts.endpoint).await {
            Ok(None) => Ok(()),
            Ok(Some(open)) => Err(TokenError::Misconfigured(open.reason.as_str())),
            Err(BreakerError::Store(error)) => Err(error.into()),
            Err(BreakerError::Secret(error)) => Err(error.into()),
        }
    }

    async fn is_answer_missing(&self, resource: &Resource) -> Result<bool, TokenError> {
        let stored = self.parts.table.installation(resource).await?;
        let now = self.parts.clock.now();
        Ok(stored.is_some_and(|stored| schedule::unanswered_until(&stored, now).is_some()))
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
        let version = TokenVersion { generation: standby.generation, ..installation.version };
        self.parts.vault.open_pair(&installation.key(), version, PairRole::Standby, &standby.pair).await
    }
}
