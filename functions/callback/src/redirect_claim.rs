//! Single flight across processes: the code of a redirect is exchanged once, and a repeated redirect in the same
//! browser shows the result of the first one.
//!
//! Browsers send a redirect twice or three times: a reload, a double render, a restored tab. Codes are single-use, so
//! the platform refuses a code that is presented again. The first arrival therefore claims the redirect in the table
//! before it presents the code ([`shared::table::redirect`]). A repeated arrival waits for the stored result.
//!
//! **Proof of the same browser.** An admin believes a page that says "connected". That page must not be shown for a
//! link that another person has already used and then passed on.
//! - With a state, the browser has the cookie that the state was signed for. Other browsers are refused earlier.
//! - Without a state, the first arrival may have no cookie. Its response sets the cookie, and a later repeat must send
//!   it. A repeat that reached API Gateway before that response was made cannot have the cookie: it must come from the
//!   same network address, with the same `User-Agent`.
//! - Every other arrival gets the page of a used code. Its text is right for a connected admin and for any other.
//!
//! **Table outage.** If the table does not answer in time, the code is exchanged without a claim, because the rescue
//! queue can hold the token pair. The platform then refuses repeats. API Gateway's throttle and the function's reserved
//! concurrency are the only limits on exchanges.

use std::time::Duration;

use shared::app::App;
use shared::domain::clock::{Clock, Millis};
use shared::domain::digest::sha256;
use shared::domain::redacted::Redacted;
use shared::domain::resource::Kind;
use shared::domain::status::LeaseOwner;
use shared::table::redirect::{
    Ending, ExchangePlace, MOST_ATTEMPTS, MOST_EXCHANGES, Origin, Progress, RedirectArrival, RedirectId, StoredRedirect,
};
use shared::table::{StoreError, Table};
use shared::token::pace::Pacer;
use tokio::time::{sleep, timeout};

use crate::browser::Browser;
use crate::event::Sender;
use crate::failure::InstallFailure;
use crate::redirect::Admitted;
use crate::state::StateKey;

/// Time-out of the claim. After it, the code is exchanged without a claim.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(2);
/// Time-out of the write that stores the result. After it, the browser gets its response.
const RESULT_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest wait of a repeated arrival for the result. It is as long as an exchange with its wait for a permit (24 s).
const WAIT_TIMEOUT: Duration = Duration::from_secs(24);
/// The first and the longest pause between two reads of a waiting arrival.
const POLL_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));

/// The browser that sends a redirect.
#[derive(Clone)]
pub struct Visitor {
    /// The browser. A new one if the request has no cookie of ours.
    pub browser: Browser,
    /// True if the request has our cookie.
    pub has_cookie: bool,
    /// The client's network address and the time of arrival.
    pub sender: Sender,
}

/// One arrival of a redirect, before its claim.
pub struct ArrivingRedirect<'a> {
    table: &'a Table,
    clock: &'a Clock,
    pace: &'a Pacer,
    /// HMAC of the network address.
    sender: String,
    id: RedirectId,
    origin: Origin,
    arrival: RedirectArrival,
    arrived_at: Millis,
    proof: Proof,
}

/// The evidence that an arrival comes from the browser of the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// The state was signed for this browser.
    State,
    /// The browser has our cookie.
    Cookie,
    /// The network address and the `User-Agent` only.
    Network,
}

impl Proof {
    /// Returns true if an arrival at `at` comes from the browser of the first arrival.
    fn holds(self, arrival: &RedirectArrival, at: Millis, seen: &StoredRedirect) -> bool {
        match (self, &seen.progress) {
            (Self::State, _) => true,
            (Self::Cookie, _) => seen.first.browser == arrival.browser,
            (Self::Network, Progress::Exchanging) => seen.first.network == arrival.network,
            // After that response, the browser has a cookie.
            (Self::Network, Progress::Connected { at: answered, .. }) => {
                seen.first.network == arrival.network && at <= *answered
            }
            (Self::Network, Progress::Failed(_) | Progress::Open(_)) => false,
        }
    }
}

/// The next step of an arrival.
pub enum NextStep<'a> {
    /// Exchange the code. This arrival holds the claim.
    Exchange(RedirectClaim<'a>),
    /// Exchange the code without a claim, because the table does not answer.
    ExchangeUnclaimed,
    /// Show the stored result: a resource of this kind is connected.
    Repeated(Kind),
}

/// The decision on an arrival, from the stored redirect.
enum Decision<'a> {
    Step(NextStep<'a>),
    Wait,
}

/// The reason for which a redirect was not claimed.
enum ClaimError {
    InstallFailure(InstallFailure),
    Store(StoreError),
}

impl From<InstallFailure> for ClaimError {
    fn from(failure: InstallFailure) -> Self {
        Self::InstallFailure(failure)
    }
}

impl From<StoreError> for ClaimError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl<'a> ArrivingRedirect<'a> {
    /// An arrival of `code`, sent by `visitor`.
    pub fn new(
        App { table, clock, pace, .. }: &'a App,
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
        let arrival = RedirectArrival {
            code: sha256(code.expose().as_bytes()),
            browser: sha256(browser.bytes()),
            network: key.network(&sender.address, &sender.user_agent),
        };
        let network = key.network(&sender.address, "");
        Self { table, clock, pace, sender: network, id, origin, arrival, arrived_at: sender.arrived_at, proof }
    }

    /// Claims the redirect, or returns the result of an earlier arrival. `may_exchange` is the failure to return if
    /// this is the first arrival and its code must not be exchanged.
    ///
    /// # Errors
    /// The failure of the earlier arrival, or the reason for which the code must not be exchanged now.
    pub async fn next_step(&self, may_exchange: Result<(), InstallFailure>) -> Result<NextStep<'_>, InstallFailure> {
        let error = match timeout(CLAIM_TIMEOUT, self.decide(may_exchange)).await {
            Ok(Ok(Decision::Step(turn))) => return Ok(turn),
            Ok(Ok(Decision::Wait)) => return self.wait().await.map(NextStep::Repeated),
            Ok(Err(ClaimError::InstallFailure(failure))) => return Err(failure),
            Ok(Err(ClaimError::Store(error))) => error,
            Err(_elapsed) => StoreError::Unavailable("no answer in time".into()),
        };
        tracing::warn!(%error, "the table did not answer: the code is exchanged without a claim of its redirect");
        may_exchange.map(|()| NextStep::ExchangeUnclaimed)
    }

    async fn decide(&self, may_exchange: Result<(), InstallFailure>) -> Result<Decision<'_>, ClaimError> {
        // If another arrival wins the claim, the redirect is read again. A claim is granted `MOST_ATTEMPTS` times at
        // most.
        for _ in 0..=MOST_ATTEMPTS {
            if let Some(seen) = self.table.redirect(&self.id, self.clock.now()).await?
                && let Some(decision) = self.compare(&seen)?
            {
                return Ok(decision);
            }
            may_exchange?;
            if let Some(claim) = self.claim().await? {
                return Ok(Decision::Step(NextStep::Exchange(claim)));
            }
        }
        Err(InstallFailure::InProgress.into())
    }

    /// The decision that follows from an earlier arrival. `None` if this arrival may claim the redirect.
    fn compare(&self, seen: &StoredRedirect) -> Result<Option<Decision<'_>>, InstallFailure> {
        if seen.first.code != self.arrival.code {
            return Err(InstallFailure::StateUsed);
        }
        if matches!(seen.progress, Progress::Open(_)) {
            return Ok(None);
        }
        if !self.proof.holds(&self.arrival, self.arrived_at, seen) {
            return Err(InstallFailure::CodeRefused);
        }
        match &seen.progress {
            Progress::Exchanging => Ok(Some(Decision::Wait)),
            Progress::Connected { kind, .. } => Ok(Some(Decision::Step(NextStep::Repeated(*kind)))),
            Progress::Failed(reason) => Err(InstallFailure::named(reason).unwrap_or(InstallFailure::CodeRefused)),
            Progress::Open(_) => Ok(None),
        }
    }

    async fn claim(&self) -> Result<Option<RedirectClaim<'_>>, ClaimError> {
        let places = self.take_places().await?;
        let owner = LeaseOwner::new();
        if !self.table.claim_redirect(&self.id, &self.arrival, &owner, self.clock.now()).await?.is_applied() {
            return_places(self.table, places).await?;
            return Ok(None);
        }
        Ok(Some(RedirectClaim { redirect: self, owner, places }))
    }

    /// Takes the places of an exchange. If the token endpoint has a pace, refused codes use up a small part of it, because
    /// anybody can send them, and one network uses up half of that part.
    async fn take_places(&self) -> Result<Vec<ExchangePlace>, ClaimError> {
        let (now, origin) = (self.clock.now(), self.origin.name());
        let groups = match self.pace.limit().await? {
            None => vec![(origin, MOST_EXCHANGES)],
            Some(limit) => {
                vec![(&*self.sender, (limit / 5).max(1)), (origin, (limit * 2 / 5).clamp(2, MOST_EXCHANGES))]
            }
        };
        let mut places = Vec::with_capacity(groups.len());
        for (group, most) in groups {
            let Some(place) = self.table.take_exchange(group, most, now).await? else {
                return_places(self.table, places).await?;
                return Err(InstallFailure::Busy.into());
            };
            places.push(place);
        }
        Ok(places)
    }

    /// Waits for the result of the first arrival.
    async fn wait(&self) -> Result<Kind, InstallFailure> {
        let ended = async {
            let (mut pause, longest) = POLL_PAUSES;
            loop {
                sleep(pause).await;
                pause = longest.min(pause * 2);
                match self.table.redirect(&self.id, self.clock.now()).await {
                    Ok(Some(seen)) if seen.progress != Progress::Exchanging => return seen.progress,
                    // A failed read is repeated.
                    Ok(_) | Err(_) => {}
                }
            }
        };
        match timeout(WAIT_TIMEOUT, ended).await {
            Ok(Progress::Connected { kind, .. }) => Ok(kind),
            Ok(Progress::Failed(reason) | Progress::Open(Some(reason))) => {
                Err(InstallFailure::named(&reason).unwrap_or(InstallFailure::CodeRefused))
            }
            Ok(Progress::Open(None) | Progress::Exchanging) | Err(_) => Err(InstallFailure::InProgress),
        }
    }
}

async fn return_places(table: &Table, places: Vec<ExchangePlace>) -> Result<(), StoreError> {
    for place in places {
        table.return_exchange(place).await?;
    }
    Ok(())
}

/// The right to exchange the code of a redirect once.
pub struct RedirectClaim<'a> {
    redirect: &'a ArrivingRedirect<'a>,
    owner: LeaseOwner,
    places: Vec<ExchangePlace>,
}

impl RedirectClaim<'_> {
    /// Stores the result for repeated arrivals. If that fails, the claim expires by itself.
    pub async fn end(self, ending: Ending<'_>) {
        let Self { redirect: ArrivingRedirect { table, clock, id, .. }, owner, places } = self;
        let returned = async {
            match ending {
                Ending::Connected(_) | Ending::NotPresented(_) => return_places(table, places).await,
                Ending::Failed(_) | Ending::Open(_) => Ok(()),
            }
        };
        let both = Box::pin(async { tokio::try_join!(table.end_redirect(id, &owner, ending, clock.now()), returned) });
        match timeout(RESULT_TIMEOUT, both).await {
            Ok(Ok((true, ()))) => {}
            Ok(Ok((false, ()))) => tracing::warn!(
                "the claim of a redirect expired before its exchange ended; a repeat may present the code again"
            ),
            Ok(Err(error)) => tracing::warn!(%error, "the result of a redirect was not stored"),
            Err(_elapsed) => tracing::warn!("the result of a redirect was not stored in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_browser_is_recognised_by_the_strongest_proof_available() {
        let arrival = |browser: &str, network: &str| RedirectArrival {
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
