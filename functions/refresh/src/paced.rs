//! The renewals of a tick while the token endpoint has a pace. All due installations are known, so the places go to the
//! most urgent of them ([`urgency`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use shared::app::App;
use shared::domain::clock::Millis;
use shared::domain::installation::Installation;
use shared::domain::pace::Priority;
use shared::domain::resource::Kind;
use shared::table::installation::Due;
use shared::token::outcome::Why;
use shared::token::pace::{Patience, RENEWAL_TIME, REPLAY_TIME};
use shared::token::schedule::{GRACE, is_urgent, unanswered_until, urgency};

use crate::tick::{CONCURRENCY, DueEntry, Renewal, Summary, deferred, mint, refreshed};

/// For this time, due installations are read before the first of them is renewed.
const READING: Duration = Duration::from_secs(10);

/// The next step for a due installation.
enum Step {
    Done(Renewal),
    /// A minting that does not count in the pace.
    Mint(Box<Installation>),
    Paced(Urgent),
}

/// An installation that needs a permit of the token endpoint.
struct Urgent {
    due: Due,
    /// The location, if its token is minted.
    minted: Option<Box<Installation>>,
    /// The end of the platform's grace, if an answer was lost a moment ago.
    replay_until: Option<Millis>,
}

/// Renews the tokens of `entries` in the order of their urgency, and adds the results to `summary`. Installations for
/// which the pace has no place in time stay due.
pub(crate) async fn renew(app: &App, mut entries: Vec<DueEntry>, deadline: Millis, summary: &mut Summary) {
    let (mut minted, mut urgent) = (Vec::new(), Vec::new());
    // The most urgent first, as far as the index shows: there may be no time for all. An installation whose answer was
    // lost became due at that time.
    let began = app.clock.now();
    entries.sort_by_key(|DueEntry { due, .. }| urgency(due.due_at >= began - GRACE, due.resource.kind(), due.due_at));
    let steps = stream::iter(entries).map(async |entry| {
        if app.clock.now().since(began) < READING { step(app, entry).await } else { Step::Done(Renewal::Left) }
    });
    let steps = steps.buffer_unordered(CONCURRENCY);
    for step in steps.collect::<Vec<_>>().await {
        match step {
            Step::Done(renewal) => summary.count(renewal),
            Step::Mint(location) => minted.push(location),
            Step::Paced(installation) => urgent.push(installation),
        }
    }
    urgent.sort_by_key(|Urgent { due, replay_until, .. }| {
        urgency(replay_until.is_some(), due.resource.kind(), due.due_at)
    });
    let is_first = |one: &Urgent| one.replay_until.is_some() || one.due.resource.kind() == Kind::Company;
    let others = urgent.split_off(urgent.partition_point(is_first));
    let is_over = AtomicBool::new(false);
    let renew_all = async |installations: Vec<Urgent>| {
        let renewals = stream::iter(installations).map(async |installation| {
            if is_over.load(Ordering::Relaxed) {
                return Renewal::Left;
            }
            let renewal = renew_one(app, &installation, deadline).await;
            // The installations behind this one would get no place either.
            let has_no_place = installation.replay_until.is_none() && matches!(renewal, Renewal::Left);
            is_over.fetch_or(has_no_place, Ordering::Relaxed);
            renewal
        });
        renewals.buffer_unordered(CONCURRENCY).collect::<Vec<_>>().await
    };
    let paced = async { [renew_all(urgent).await, renew_all(others).await].concat() };
    let mints = stream::iter(minted).map(async |location| mint(app, &location, Why::Due, deadline).await);
    let (paced, minted) = tokio::join!(Box::pin(paced), mints.buffer_unordered(CONCURRENCY).collect::<Vec<_>>(),);
    paced.into_iter().chain(minted).for_each(|renewal| summary.count(renewal));
}

async fn step(app: &App, DueEntry { due, hot }: DueEntry) -> Step {
    if !hot && deferred(app, &due).await {
        return Step::Done(Renewal::Deferred);
    }
    let now = app.clock.now();
    match app.table.installation(&due.resource).await {
        Ok(Some(stored)) if stored.version == due.version => {
            if stored.minted().is_none() {
                let is_urgent = is_urgent(stored.schedule().failures);
                let replay_until = unanswered_until(&stored, now).filter(|_| is_urgent);
                return Step::Paced(Urgent { due, minted: None, replay_until });
            }
            let stored = Box::new(stored);
            match app.pace.limit_of(Priority::Minting).await {
                Ok(None) => Step::Mint(stored),
                _ => Step::Paced(Urgent { due, minted: Some(stored), replay_until: None }),
            }
        }
        Ok(_) => Step::Done(Renewal::Deferred),
        Err(error) => {
            tracing::warn!(resource = %due.resource, %error, "the token was not renewed");
            Step::Done(Renewal::Failed)
        }
    }
}

async fn renew_one(app: &App, Urgent { due, minted, replay_until }: &Urgent, deadline: Millis) -> Renewal {
    let until = deadline - RENEWAL_TIME;
    let patience = match replay_until {
        Some(grace) => Patience { priority: Priority::Replay, until: (*grace).min(deadline - REPLAY_TIME) },
        // The tokens of many locations depend on a company's.
        None if due.resource.kind() == Kind::Company => Patience { priority: Priority::Caller, until },
        None => Patience { priority: Priority::Schedule, until },
    };
    if let Some(location) = minted {
        // The minter takes the permit.
        return match app.pace.turn(patience).await {
            Ok(_turn) => mint(app, location, Why::Due, deadline).await,
            Err(_) => Renewal::Left,
        };
    }
    // An installation without a refresh token has become a minted one a moment ago. The next tick mints its token.
    let renewed = refreshed(app, &due.resource, due.version, patience, deadline).await;
    renewed.unwrap_or(Renewal::Deferred)
}
