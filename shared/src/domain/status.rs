//! The states of an installation and the moves between them. Pure.

use std::fmt;

use crate::domain::clock::Millis;
use crate::domain::random;

/// The state of an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// The stored pair is the live one, as far as is known.
    Active,
    /// An attempt holds the lease and may have presented the refresh token.
    Refreshing,
    /// The refresh token was presented and no answer is known. It is presented again.
    Uncertain,
    /// The platform says that the location is not active: temporary, tried again seldom.
    Suspended,
    /// The platform gave an answer that is not classified: tried again seldom.
    Blocked,
    /// The platform refused the current refresh token, and there is no other way but a human.
    NeedsReauthorization,
    /// Uninstalled. Holds no tokens.
    Revoked,
}

impl Status {
    /// All states.
    pub const ALL: [Self; 7] = [
        Self::Active,
        Self::Refreshing,
        Self::Uncertain,
        Self::Suspended,
        Self::Blocked,
        Self::NeedsReauthorization,
        Self::Revoked,
    ];

    /// The name, in the table and in answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "Active",
            Self::Refreshing => "Refreshing",
            Self::Uncertain => "Uncertain",
            Self::Suspended => "Suspended",
            Self::Blocked => "Blocked",
            Self::NeedsReauthorization => "NeedsReauthorization",
            Self::Revoked => "Revoked",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// Whether the stored pair is the live one as far as is known.
    #[must_use]
    pub const fn has_live_pair(self) -> bool {
        match self {
            Self::Active => true,
            Self::Refreshing
            | Self::Uncertain
            | Self::Suspended
            | Self::Blocked
            | Self::NeedsReauthorization
            | Self::Revoked => false,
        }
    }

    /// Whether the installation has ended: it gets no new token until the app is installed again, or an operator has the
    /// refresh token tried once more.
    #[must_use]
    pub const fn has_ended(self) -> bool {
        match self {
            Self::NeedsReauthorization | Self::Revoked => true,
            Self::Active | Self::Refreshing | Self::Uncertain | Self::Suspended | Self::Blocked => false,
        }
    }

    /// Whether a lease keeps an installation in this state from being claimed.
    #[must_use]
    pub const fn respects_lease(self) -> bool {
        match self {
            Self::Refreshing | Self::Uncertain => true,
            Self::Active | Self::Suspended | Self::Blocked | Self::NeedsReauthorization | Self::Revoked => false,
        }
    }

    /// Whether an attempt may claim an installation in this state, `lease_ends_at` being the end of the last lease.
    /// The condition of the claim's write says the same to DynamoDB. An operator may also claim what was given up.
    #[must_use]
    pub fn claimable(self, lease_ends_at: Option<Millis>, now: Millis) -> bool {
        let is_leased = self.respects_lease() && lease_ends_at.is_some_and(|end| now < end);
        Transition::Claim.from(self).is_some() && !is_leased
    }
}

/// A write that may change the state of an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// A claim, for a refresh or a minting.
    Claim,
    /// A claim that an operator wants, although the installation was given up.
    ClaimByOperator,
    /// A new token becomes the current one: the commit of a refresh, a standby pair or a minted token.
    StoreToken,
    /// A pair that came second is kept as a standby pair.
    AddStandby,
    /// The holder of the lease releases it without a new token, and leaves this state behind.
    Release(Status),
    /// A new installation.
    Install,
    /// The marketplace reports that the app was installed in a location.
    InstallNotice,
    /// An uninstall.
    Uninstall,
}

impl Transition {
    /// The state after this write in an installation that is in state `from`; `None` if the write is not legal there.
    ///
    /// This is the one table of legal moves: the conditions of the writes are generated from it. No arm stands for all
    /// other states, so that the compiler finds each place where a new state needs a decision.
    #[must_use]
    pub const fn from(self, from: Status) -> Option<Status> {
        use Status::{Active, Blocked, NeedsReauthorization, Refreshing, Revoked, Suspended, Uncertain};
        match self {
            Self::Claim => match from {
                Active | Refreshing | Uncertain | Suspended | Blocked => Some(Refreshing),
                NeedsReauthorization | Revoked => None,
            },
            Self::ClaimByOperator => match from {
                Active | Refreshing | Uncertain | Suspended | Blocked | NeedsReauthorization => Some(Refreshing),
                Revoked => None,
            },
            // Also without a lease: the holder of a granted pair may hold the only live one.
            Self::StoreToken => match from {
                Active | Refreshing | Uncertain | Suspended | Blocked | NeedsReauthorization => Some(Active),
                Revoked => None,
            },
            Self::AddStandby => match from {
                Active | Refreshing | Suspended | Blocked => Some(from),
                // There is another token to try.
                Uncertain | NeedsReauthorization => Some(Uncertain),
                Revoked => None,
            },
            Self::Release(to) => match from {
                Refreshing => match to {
                    Active | Uncertain | Suspended | Blocked | NeedsReauthorization => Some(to),
                    Refreshing | Revoked => None,
                },
                Active | Uncertain | Suspended | Blocked | NeedsReauthorization | Revoked => None,
            },
            Self::Install => match from {
                Active | Refreshing | Uncertain | Suspended | Blocked | NeedsReauthorization | Revoked => Some(Active),
            },
            Self::InstallNotice => match from {
                Active | Refreshing | Uncertain | Suspended | Blocked => Some(from),
                NeedsReauthorization | Revoked => Some(Active),
            },
            Self::Uninstall => match from {
                Active | Refreshing | Uncertain | Suspended | Blocked | NeedsReauthorization => Some(Revoked),
                Revoked => None,
            },
        }
    }

    /// Whether this write is legal in an installation that is in state `from`.
    #[must_use]
    pub const fn is_legal(self, from: Status) -> bool {
        self.from(from).is_some()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a token pair stands in time. Both numbers only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenVersion {
    /// Grows with each install and uninstall.
    pub epoch: u64,
    /// Grows with each pair that is stored.
    pub generation: u64,
}

impl TokenVersion {
    /// The version of the pair that a refresh of this one's stores.
    #[must_use]
    pub fn next(self) -> Self {
        Self { generation: self.generation + 1, ..self }
    }

    /// The version of a new installation after this one.
    #[must_use]
    pub fn reinstalled(self) -> Self {
        Self { epoch: self.epoch + 1, generation: self.generation + 1 }
    }
}

/// The owner of a lease: one attempt at a refresh, a minting or an install, by a random 128-bit name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseOwner(String);

impl LeaseOwner {
    /// A new name.
    #[must_use]
    pub fn new() -> Self {
        Self(random::hex::<16>())
    }

    /// The name as it stands in the table.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LeaseOwner {
    fn default() -> Self {
        Self::new()
    }
}

impl From<String> for LeaseOwner {
    fn from(name: String) -> Self {
        Self(name)
    }
}

/// The reason why a commit's condition did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostCommit {
    /// My own earlier write was applied and only its answer was lost.
    AlreadyMine,
    /// Another attempt stored a pair first that was granted for the same token, or for an older one. Mine may be the
    /// live one all the same: keep it as a standby pair.
    Standby,
    /// Uninstalled, installed again, or renewed since by a pair that came after mine: my pair is history.
    Superseded,
}

/// Judges a commit whose condition failed. The version decides and never the lease, because the holder of a granted pair
/// may hold the only live one. `from` is the version whose token was presented for my pair, `stored` that of the
/// stored pair, and `granted_from` the generation whose token was presented for the stored pair: the one before it, or
/// an older one if it was a standby pair that has taken the place of a refused one.
#[must_use]
pub fn lost_commit(
    mine: &LeaseOwner,
    from: TokenVersion,
    stored: TokenVersion,
    granted_from: u64,
    committed_by: Option<&LeaseOwner>,
) -> LostCommit {
    if committed_by == Some(mine) {
        LostCommit::AlreadyMine
    } else if stored.epoch == from.epoch && granted_from <= from.generation {
        LostCommit::Standby
    } else {
        LostCommit::Superseded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for status in Status::ALL {
            assert_eq!(Status::parse(status.as_str()), Some(status));
        }
        assert_eq!(Status::parse("active"), None);
    }

    #[test]
    fn a_lease_protects_its_holder_until_its_end_and_final_states_are_not_claimed() {
        let (now, later) = (Millis(1_000), Some(Millis(1_001)));
        for (status, lease, claimable) in [
            (Status::Active, later, true),
            (Status::Suspended, None, true),
            (Status::Blocked, None, true),
            (Status::Refreshing, later, false),
            (Status::Refreshing, Some(now), true),
            (Status::Uncertain, later, false),
            (Status::Uncertain, None, true),
            (Status::NeedsReauthorization, None, false),
            (Status::Revoked, None, false),
        ] {
            assert_eq!(status.claimable(lease, now), claimable, "{status} {lease:?}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn every_write_has_an_answer_for_every_state() {
        use Status::{Active as A, Blocked as B, NeedsReauthorization as N, Refreshing as R, Revoked as X};
        use Status::{Suspended as S, Uncertain as U};
        use Transition::{AddStandby, Claim, ClaimByOperator, Install, InstallNotice, Release, StoreToken, Uninstall};
        const __: Option<Status> = None;
        let some = |states: [Status; 7]| states.map(Some);
        for (transition, next) in [
            //        from:  Active   Refreshing  Uncertain  Suspended  Blocked  NeedsReauth.  Revoked
            (Claim,           [Some(R), Some(R), Some(R), Some(R), Some(R), __,      __]),
            (ClaimByOperator, [Some(R), Some(R), Some(R), Some(R), Some(R), Some(R), __]),
            (StoreToken,      [Some(A), Some(A), Some(A), Some(A), Some(A), Some(A), __]),
            (AddStandby,      [Some(A), Some(R), Some(U), Some(S), Some(B), Some(U), __]),
            (Install,         some([A, A, A, A, A, A, A])),
            (InstallNotice,   some([A, R, U, S, B, A, A])),
            (Uninstall,       [Some(X), Some(X), Some(X), Some(X), Some(X), Some(X), __]),
            (Release(A),      [__, Some(A), __, __, __, __, __]),
            (Release(R),      [__; 7]),
            (Release(U),      [__, Some(U), __, __, __, __, __]),
            (Release(S),      [__, Some(S), __, __, __, __, __]),
            (Release(B),      [__, Some(B), __, __, __, __, __]),
            (Release(N),      [__, Some(N), __, __, __, __, __]),
            (Release(X),      [__; 7]),
        ] {
            for (from, next) in Status::ALL.into_iter().zip(next) {
                assert_eq!(transition.from(from), next, "{transition:?} of {from}");
            }
        }
    }

    #[test]
    fn a_lost_commit_is_judged_by_lineage() {
        let (mine, rival) = (LeaseOwner::new(), LeaseOwner::new());
        let from = TokenVersion { epoch: 2, generation: 7 };
        let at = |epoch, generation| TokenVersion { epoch, generation };
        for (stored, granted_from, by, verdict) in [
            (at(2, 8), 7, Some(&mine), LostCommit::AlreadyMine),
            (at(2, 8), 7, Some(&rival), LostCommit::Standby),
            (at(2, 8), 7, None, LostCommit::Standby),
            // A standby pair has taken the place of a refused one: the stored pair is no younger than mine.
            (at(2, 9), 7, Some(&rival), LostCommit::Standby),
            (at(2, 10), 6, Some(&rival), LostCommit::Standby),
            (at(2, 9), 8, Some(&rival), LostCommit::Superseded),
            (at(3, 8), 7, Some(&rival), LostCommit::Superseded),
            (at(3, 7), 6, None, LostCommit::Superseded),
        ] {
            assert_eq!(lost_commit(&mine, from, stored, granted_from, by), verdict, "{stored:?} by {by:?}");
        }
    }
}
