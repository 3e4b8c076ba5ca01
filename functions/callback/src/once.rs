//! Each redirect is exchanged once, and a repeat of it in the same browser ends on the page of the first arrival.
//!
//! Browsers send one redirect twice or three times: a reload, a double render, a restored tab. A code is single use, so
//! the platform refuses all presentations but the first. The first arrival therefore claims the redirect in the table
//! before it presents the code ([`shared::table::redirect`]), and a repeat waits for what comes of that.
//!
//! **Which repeat is the same browser's.** A page that says "connected" is believed by the admin who reads it. It must
//! not be shown for a link that somebody else has used already and then passed on.
//! - With a state, it is the browser that has the cookie which the state was signed for. No other gets here.
//! - Without a state, the first arrival may have no cookie. Its answer sets one, and a later repeat must bring that. A
//!   repeat that reached API Gateway before that answer was made cannot have the cookie: it must come from the same
//!   network address, with the same `User-Agent`.
//! - Every other arrival reads the page of a used code, which fits both the admin who is connected and the one who is not.
//!
//! **Without the table.** Where it does not answer in time, the code is exchanged all the same, since the pair can wait
//! on the rescue queue. Repeats are then refused by the platform, and API Gateway's throttle and the function's reserved
//! concurrency are the only bounds of exchanges.

use std::time::Duration;

use shared::domain::clock::{Clock, Millis};
use shared::domain::redacted::Redacted;
use shared::domain::resource::Kind;
use shared::domain::status::LeaseOwner;
use shared::table::redirect::{
    Arrival, Ending, ExchangePlace, MOST_ATTEMPTS, Origin, Progress, RedirectId, StoredRedirect, sha256,
};
use shared::table::{StoreError, Table};
use tokio::time::{sleep, timeout};

use crate::browser::Browser;
use crate::event::Sender;
use crate::failure::Failure;
use crate::redirect::Admitted;
use crate::state::StateKey;

/// The table has so long to answer before a code is exchanged without it.
const TABLE: Duration = Duration::from_secs(2);
/// The table has so long to take the outcome, after which the browser gets its answer.
const OUTCOME: Duration = Duration::from_secs(1);
/// A repeat waits so long for the first arrival: longer than the exchange may take (10 s).
const PATIENCE: Duration = Duration::from_secs(12);
/// Pauses between two looks of a repeat that waits.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));

/// The browser that brings a redirect.
#[derive(Clone)]
pub struct Visitor {
    /// The browser; a new one where it came without our cookie.
    pub browser: Browser,
    /// True if the redirect came with our cookie.
    pub has_cookie: bool,
    /// Where it comes from, and when it came.
    pub sender: Sender,
}

/// One arrival of a redirect.
pub struct Once<'a> {
    table: &'a Table,
    clock: &'a Clock,
    id: RedirectId,
    origin: Origin,
    arrival: Arrival,
    arrived_at: Millis,
    proof: Proof,
}

/// The evidence that an arrival comes from the browser of the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// The state was signed for this browser.
    State,
    /// The browser had a cookie of ours.
    Cookie,
    /// Nothing but where it comes from.
    Network,
}

impl Proof {
    /// Returns true if an arrival at `at` comes from the browser that brought the redirect first.
    fn holds(self, arrival: &Arrival, at: Millis, seen: &StoredRedirect) -> bool {
        match (self, &seen.progress) {
            (Self::State, _) => true,
            (Self::Cookie, _) => seen.first.browser == arrival.browser,
            (Self::Network, Progress::Exchanging) => seen.first.network == arrival.network,
            // Later than that, the browser has a cookie.
            (Self::Network, Progress::Connected { at: answered, .. }) => {
                seen.first.network == arrival.network && at <= *answered
            }
            (Self::Network, Progress::Failed(_) | Progress::Open(_)) => false,
        }
    }
}

/// The next step of an arrival.
pub enum Turn<'a> {
    /// Present the code; the claim is this arrival's.
    First(Claim<'a>),
    /// Present the code without a claim: the table does not answer.
    Unguarded,
    /// Nothing: the redirect has connected this.
    Repeat(Kind),
}

/// What the table says of an arrival.
enum Verdict<'a> {
    Take(Turn<'a>),
    Wait,
}

/// Why an arrival comes to nothing.
enum Stop {
    Failure(Failure),
    Store(StoreError),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl<'a> Once<'a> {
    /// The arrival of `code` with a visitor.
    #[must_use]
    pub fn new(
        table: &'a Table,
        clock: &'a Clock,
        key: &StateKey,
        admitted: &Admitted,
        code: &Redacted,
        visitor: &Visitor,
    ) -> Self {
        let Visitor { browser, has_cookie, sender } = visitor;
        let (id, origin, proof) = match admitted.state {
            Some(state) => (RedirectId::of_state(&state.nonce), Origin::Link, Proof::State),
            None if *has_cookie => (RedirectId::of_code(code), Origin::Marketplace, Proof::Cookie),
            None => (RedirectId::of_code(code), Origin::Marketplace, Proof::Network),
        };
        let arrival = Arrival {
            code: sha256(code.expose().as_bytes()),
            browser: sha256(browser.bytes()),
            network: key.network(&sender.address, &sender.user_agent),
        };
        Self { table, clock, id, origin, arrival, arrived_at: sender.arrived_at, proof }
    }

    /// Claims the redirect, or finds what an earlier arrival has made of it. `may_exchange` is the failure of an arrival
    /// that would be the first one.
    ///
    /// # Errors
    /// The failure of the earlier arrival, or why there may be no exchange now.
    pub async fn turn(&self, may_exchange: Result<(), Failure>) -> Result<Turn<'_>, Failure> {
        let error = match timeout(TABLE, self.verdict(may_exchange)).await {
            Ok(Ok(Verdict::Take(turn))) => return Ok(turn),
            Ok(Ok(Verdict::Wait)) => return self.wait().await.map(Turn::Repeat),
            Ok(Err(Stop::Failure(failure))) => return Err(failure),
            Ok(Err(Stop::Store(error))) => error,
            Err(_elapsed) => StoreError::Unavailable("no answer in time".into()),
        };
        tracing::warn!(%error, "a code is exchanged without a claim of its redirect");
        may_exchange.map(|()| Turn::Unguarded)
    }

    async fn verdict(&self, may_exchange: Result<(), Failure>) -> Result<Verdict<'_>, Stop> {
        // A claim that is lost to another arrival is looked at again, and that one can lose it at most so often.
        for _ in 0..=MOST_ATTEMPTS {
            if let Some(seen) = self.table.redirect(&self.id, self.clock.now()).await?
                && let Some(verdict) = self.judge(&seen)?
            {
                return Ok(verdict);
            }
            may_exchange?;
            if let Some(claim) = self.claim().await? {
                return Ok(Verdict::Take(Turn::First(claim)));
            }
        }
        Err(Failure::InProgress.into())
    }

    /// What an earlier arrival means for this one; nothing where the code may be presented.
    fn judge(&self, seen: &StoredRedirect) -> Result<Option<Verdict<'_>>, Failure> {
        if seen.first.code != self.arrival.code {
            return Err(Failure::StateUsed);
        }
        if matches!(seen.progress, Progress::Open(_)) {
            return Ok(None);
        }
        if !self.proof.holds(&self.arrival, self.arrived_at, seen) {
            return Err(Failure::CodeRefused);
        }
        match &seen.progress {
            Progress::Exchanging => Ok(Some(Verdict::Wait)),
            Progress::Connected { kind, .. } => Ok(Some(Verdict::Take(Turn::Repeat(*kind)))),
            Progress::Failed(reason) => Err(Failure::named(reason).unwrap_or(Failure::CodeRefused)),
            Progress::Open(_) => Ok(None),
        }
    }

    async fn claim(&self) -> Result<Option<Claim<'_>>, Stop> {
        let place = self.table.take_exchange(self.origin, self.clock.now()).await?.ok_or(Failure::Busy)?;
        let owner = LeaseOwner::new();
        if !self.table.claim_redirect(&self.id, &self.arrival, &owner, self.clock.now()).await?.is_applied() {
            self.table.return_exchange(place).await?;
            return Ok(None);
        }
        Ok(Some(Claim { once: self, owner, place }))
    }

    /// Waits until the first arrival has its end.
    async fn wait(&self) -> Result<Kind, Failure> {
        let ended = async {
            let (mut pause, longest) = PAUSES;
            loop {
                sleep(pause).await;
                pause = longest.min(pause * 2);
                match self.table.redirect(&self.id, self.clock.now()).await {
                    Ok(Some(seen)) if seen.progress != Progress::Exchanging => return seen.progress,
                    // A table that does not answer now may do so at the next look.
                    Ok(_) | Err(_) => {}
                }
            }
        };
        match timeout(PATIENCE, ended).await {
            Ok(Progress::Connected { kind, .. }) => Ok(kind),
            Ok(Progress::Failed(reason) | Progress::Open(Some(reason))) => {
                Err(Failure::named(&reason).unwrap_or(Failure::CodeRefused))
            }
            Ok(Progress::Open(None) | Progress::Exchanging) | Err(_) => Err(Failure::InProgress),
        }
    }
}

/// The right to present the code of a redirect once.
pub struct Claim<'a> {
    once: &'a Once<'a>,
    owner: LeaseOwner,
    place: ExchangePlace,
}

impl Claim<'_> {
    /// Stores what came of the code, for the repeats. Without that, they see a claim that ends by itself.
    pub async fn end(self, ending: Ending<'_>) {
        let Self { once: Once { table, clock, id, .. }, owner, place } = self;
        let given_back = async {
            match ending {
                Ending::Connected(_) => table.return_exchange(place).await,
                Ending::Failed(_) | Ending::Open(_) => Ok(()),
            }
        };
        let both =
            Box::pin(async { tokio::try_join!(table.end_redirect(id, &owner, ending, clock.now()), given_back) });
        match timeout(OUTCOME, both).await {
            Ok(Ok((true, ()))) => {}
            Ok(Ok((false, ()))) => tracing::warn!("the claim of a redirect had ended before its exchange"),
            Ok(Err(error)) => tracing::warn!(%error, "the outcome of a redirect is not stored"),
            Err(_elapsed) => tracing::warn!("the outcome of a redirect is not stored in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_browser_of_the_first_arrival_is_known_by_the_best_proof_that_it_can_have() {
        let arrival = |browser: &str, network: &str| Arrival {
            code: "code".into(),
            browser: browser.into(),
            network: network.into(),
        };
        let answered = Millis(1_000);
        let (exchanging, failed) = (Progress::Exchanging, Progress::Failed("code_refused".into()));
        let connected = Progress::Connected { kind: Kind::Location, at: answered };
        for (proof, browser, network, at, progress, holds) in [
            (Proof::State, "other", "other", 2_000, &connected, true),
            (Proof::Cookie, "first", "other", 2_000, &connected, true),
            (Proof::Cookie, "first", "other", 500, &exchanging, true),
            (Proof::Cookie, "other", "first", 500, &connected, false),
            (Proof::Cookie, "other", "first", 500, &exchanging, false),
            (Proof::Network, "new", "first", 500, &exchanging, true),
            (Proof::Network, "new", "other", 500, &exchanging, false),
            (Proof::Network, "new", "first", 1_000, &connected, true),
            (Proof::Network, "new", "first", 1_001, &connected, false),
            (Proof::Network, "new", "other", 500, &connected, false),
            (Proof::Network, "new", "first", 500, &failed, false),
        ] {
            let seen = StoredRedirect { first: arrival("first", "first"), progress: progress.clone() };
            let found = proof.holds(&arrival(browser, network), Millis(at), &seen);
            assert_eq!(found, holds, "{proof:?} {browser} {network} {at} {progress:?}");
        }
    }
}
