//! The budget of marks, part of the item `app#breaker`.
//!
//! A *mark* gives an installation up because the platform refused its grant. The mark is `NeedsReauthorization`, or
//! "not installed" for a location whose token is minted. A refusal of one grant is caused by the customer. Refusals of
//! many grants are an incident of the platform, and marking those installations would ask every customer to install
//! again for nothing. One answer does not show which of the two is the cause. Therefore all processes together have
//! [`PLACES`] marks, and only grants free further places. Each mark first reserves a place by a conditional write. An
//! installation without a place waits.

use std::time::Duration;

use super::{Attributes, Item, StoreError, Table, Update, Write, n, s};
use crate::domain::clock::Millis;
use crate::domain::status::LeaseOwner;

/// The key of the one item that holds the breaker and the budget of marks.
pub(super) const BREAKER: &str = "app#breaker";

/// The number of marks that can be made before a grant frees a place.
pub const PLACES: u64 = 3;
/// This number of granted refresh tokens frees one place.
const GRANTS_PER_PLACE: u64 = 100;
/// Each such period since the last mark frees one place, if a refresh token was granted after that mark.
const TIME_PER_PLACE: Duration = Duration::from_hours(1);
/// Refreshing stops if at least this number of installations wait for a place…
const LEAST_WAITING: u64 = 3;
/// …and the waiting installations are more than one in this number of the answers since the last mark.
const MOST_GRANTED: u64 = 10;

/// The kind of request that the platform granted or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requested {
    /// A refresh with a refresh token.
    Refresh,
    /// A minting: the token of a location, requested with its company's token. A grant of a minting frees no place:
    /// minting continues for a day while refreshing fails, and would otherwise pay for marks of the companies.
    Mint,
}

impl Requested {
    /// The attribute that counts the grants of this kind.
    fn grants(self) -> &'static str {
        match self {
            Self::Refresh => "grants",
            Self::Mint => "mint_grants",
        }
    }

    /// The attribute that counts the installations that wait for a place.
    fn waiting(self) -> &'static str {
        match self {
            Self::Refresh => "waiting",
            Self::Mint => "waiting_mints",
        }
    }
}

/// The budget as stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MarkBudget {
    /// The number of all marks ever made. A reservation compares this number (compare-and-swap).
    marks: u64,
    /// The number of places in use when the last mark was made.
    taken: u64,
    marked_at: Millis,
    marked_by: Option<String>,
    /// The number of grants since the last mark that have not yet freed a place. Counted only while a place is in use.
    grants: u64,
    granted_at: Millis,
    mint_grants: u64,
    /// The number of installations that were refused since the last mark and have no place.
    waiting: u64,
    waiting_mints: u64,
}

impl MarkBudget {
    pub(super) fn read(item: &Item) -> Self {
        let attributes = Attributes::of(item);
        let number = |name| attributes.number(name).unwrap_or(0);
        let instant = |name| Millis(attributes.number(name).unwrap_or(0));
        Self {
            marks: number("marks"),
            taken: number("taken"),
            marked_at: instant("marked_at"),
            marked_by: attributes.text("marked_by").map(str::to_owned),
            // A reservation subtracts from this number while other processes add to it. The number is never below zero;
            // a negative number would be read as zero.
            grants: number("grants"),
            granted_at: instant("granted_at"),
            mint_grants: number("mint_grants"),
            waiting: number("waiting"),
            waiting_mints: number("waiting_mints"),
        }
    }

    /// The number of places in use at `now`.
    pub fn taken(&self, now: Millis) -> u64 {
        let by_grants = self.grants / GRANTS_PER_PLACE;
        let by_time = if self.granted_at > self.marked_at {
            now.since(self.marked_at).as_secs() / TIME_PER_PLACE.as_secs()
        } else {
            0
        };
        self.taken.saturating_sub(by_grants).saturating_sub(by_time)
    }

    /// The number of refused installations that wait for a place, for both kinds of requests.
    pub fn waiting(&self) -> u64 {
        self.waiting + self.waiting_mints
    }

    /// The number of grants that a mark at `now` uses up: the grants that have freed places. If all places are free,
    /// all grants.
    fn used_grants(&self, now: Millis) -> u64 {
        if self.taken(now) == 0 { self.grants } else { self.grants / GRANTS_PER_PLACE * GRANTS_PER_PLACE }
    }

    /// Returns true if there are so many refusals that refreshing must stop. To be called only when no place is left.
    pub fn is_mass_refusal(&self, requested: Requested) -> bool {
        let (waiting, grants) = match requested {
            Requested::Refresh => (self.waiting, self.grants),
            Requested::Mint => (self.waiting_mints, self.mint_grants),
        };
        waiting >= LEAST_WAITING && waiting * MOST_GRANTED > waiting + grants
    }
}

impl Table {
    /// Reserves a place for a mark by `attempt`, from a budget that was read as `seen` and has a free place. A conflict
    /// means that another mark was made since, and returns the current budget. If the mark then cannot be stored, its
    /// place stays in use: too few marks are better than too many.
    ///
    /// # Errors
    /// [`StoreError`]: the place may be in use. The mark must not be made.
    pub async fn reserve_mark(
        &self,
        seen: &MarkBudget,
        attempt: &LeaseOwner,
        now: Millis,
    ) -> Result<Write<MarkBudget>, StoreError> {
        let mut write = Update::of(BREAKER);
        if seen.marks == 0 {
            write.when("attribute_not_exists(marks)");
        } else {
            write.when_equal("marks", n(seen.marks));
        }
        write.set("marks", n(seen.marks + 1)).set("taken", n(seen.taken(now) + 1)).set("marked_at", n(now));
        write.set("marked_by", s(attempt.as_str()));
        write.set("waiting", n(0)).set("waiting_mints", n(0)).set("mint_grants", n(0));
        write.add("grants", n(-i128::from(seen.used_grants(now))));
        let answer = self.write(write).await?.read(|item| Ok(MarkBudget::read(item)))?;
        Ok(answer.or_applied_before(|budget| budget.marked_by.as_deref() == Some(attempt.as_str())))
    }

    /// Counts a grant, which can free a place. Needed only while a place is in use.
    pub async fn count_grant(&self, requested: Requested, now: Millis) -> Result<(), StoreError> {
        let mut write = Update::of(BREAKER);
        write.add(requested.grants(), n(1));
        match requested {
            Requested::Refresh => {
                write.set("granted_at", n(now));
            }
            Requested::Mint => {}
        }
        self.write(write).await.map(drop)
    }

    /// Counts an installation that was refused and has no place. Returns the updated budget.
    pub async fn count_waiting(&self, requested: Requested) -> Result<MarkBudget, StoreError> {
        let mut write = Update::of(BREAKER);
        write.add(requested.waiting(), n(1));
        match self.write(write).await? {
            Write::Applied(item) | Write::Conflict(item) => Ok(MarkBudget::read(&item)),
            Write::NotFound => Ok(MarkBudget::default()),
        }
    }

    /// Sets the number of waiting installations to zero, because an operator knows that the refusals were correct.
    /// Frees no place.
    pub async fn forget_waiting(&self) -> Result<(), StoreError> {
        let mut write = Update::of(BREAKER);
        write.remove(["waiting", "waiting_mints"]);
        self.write(write).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn full(grants: u64, granted_at: i64) -> MarkBudget {
        let (marked_at, granted_at) = (Millis(1_000), Millis(granted_at));
        MarkBudget { marks: 9, taken: 3, marked_at, grants, granted_at, ..MarkBudget::default() }
    }

    #[test]
    fn a_hundred_grants_free_a_place_and_an_hour_with_a_grant_does() {
        for (grants, granted_at, now, taken, what) in [
            (0, 0, 1_000, 3, "nothing has happened"),
            (99, 2_000, 3_000, 3, "one grant too few"),
            (100, 2_000, 3_000, 2, "a hundred grants"),
            (299, 2_000, 3_000, 1, "two hundreds"),
            (100_000, 2_000, 3_000, 0, "no more than all"),
            (0, 0, 1_000 + 30 * HOUR, 3, "hours without any grant"),
            (1, 1_000, 1_000 + HOUR, 3, "a grant that is no later than the last mark"),
            (1, 1_001, 999 + HOUR, 3, "a moment before the hour is over"),
            (1, 1_001, 1_000 + HOUR, 2, "an hour with a grant"),
            (1, 1_001, 1_000 + 3 * HOUR, 0, "three hours"),
            (100, 1_001, 1_000 + HOUR, 1, "both"),
        ] {
            assert_eq!(full(grants, granted_at).taken(Millis(now)), taken, "{what}");
        }
        assert_eq!(MarkBudget::default().taken(Millis(0)), 0, "an app that has never marked anything");
    }

    #[test]
    fn a_mark_uses_up_the_grants_that_freed_places_and_no_others() {
        for (grants, used) in [(0, 0), (99, 0), (100, 100), (250, 200), (300, 300), (777, 777)] {
            assert_eq!(full(grants, 2_000).used_grants(Millis(3_000)), used, "{grants}");
        }
    }

    #[test]
    fn refreshing_stops_when_three_wait_and_are_more_than_a_tenth_of_the_answers() {
        for (waiting, grants, stop, what) in [
            (1, 0, false, "a fourth grant that is really dead, in a small app"),
            (2, 0, false, "a fifth"),
            (3, 0, true, "nothing is granted any more"),
            (3, 26, true, "3 of 29"),
            (3, 27, false, "3 of 30: a tenth is not more than a tenth"),
            (3, 99, false, "a healthy app with six dead grants"),
            (12, 99, true, "12 of 111"),
        ] {
            let refreshes = MarkBudget { grants, waiting, ..full(0, 0) };
            assert_eq!(refreshes.is_mass_refusal(Requested::Refresh), stop, "{what}");
            assert!(!refreshes.is_mass_refusal(Requested::Mint), "refusals of minting are counted apart");
            let mints = MarkBudget { waiting_mints: waiting, mint_grants: grants, ..full(0, 0) };
            assert_eq!(mints.is_mass_refusal(Requested::Mint), stop, "{what}");
        }
    }
}
