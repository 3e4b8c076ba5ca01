//! The states of an installation and the legal moves between them. Pure code.

use std::fmt;

use strum::VariantArray;

use crate::domain::clock::Millis;
use crate::domain::random;

/// The state of an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, VariantArray)]
pub enum Status {
    /// The stored pair is the live one, as far as known.
    Active,
    /// An attempt holds the lease and may have presented the refresh token.
    Refreshing,
    /// The refresh token was presented and its answer is not known. The token is presented again.
    Uncertain,
    /// The platform states that the location is not active. This is temporary, so the token is tried again, but rarely.
    Suspended,
    /// The platform gave an unclassified answer. The token is tried again, but rarely.
    Blocked,
    /// The platform refused the current refresh token. Only a human can restore the installation, by installing again.
    NeedsReauthorization,
    /// The app was uninstalled. The installation holds no tokens.
    Revoked,
}

impl Status {
    /// All states, in the order of their declaration.
    pub const ALL: &[Self] = Self::VARIANTS;

    /// The name in the table and in answers.
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

    /// The state with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|status| status.as_str() == name)
    }

    /// Returns true if the stored pair is the live one, as far as known.
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

    /// Returns true if the app is installed, as far as is known.
    pub const fn is_installed(self) -> bool {
        match self {
            Self::Active
            | Self::Refreshing
            | Self::Uncertain
            | Self::Suspended
            | Self::Blocked
            | Self::NeedsReauthorization => true,
            Self::Revoked => false,
        }
    }

    /// Returns true if the refresh token was refused for good, so that a human must install the app again.
    pub const fn needs_human(self) -> bool {
        match self {
            Self::NeedsReauthorization => true,
            Self::Active | Self::Refreshing | Self::Uncertain | Self::Suspended | Self::Blocked | Self::Revoked => {
                false
            }
        }
    }

    /// Returns true if the installation has ended: it gets no new token until the app is installed again, or an
    /// operator orders another try of the refresh token.
    pub const fn has_ended(self) -> bool {
        self.needs_human() || !self.is_installed()
    }

    /// Returns true if an unexpired lease prevents a claim in this state.
    pub const fn respects_lease(self) -> bool {
        match self {
            Self::Refreshing | Self::Uncertain => true,
            Self::Active | Self::Suspended | Self::Blocked | Self::NeedsReauthorization | Self::Revoked => false,
        }
    }

    /// Returns true if an attempt may claim an installation in this state. `lease_ends_at` is the end of the last
    /// lease. The condition of the claim's write is the same rule for `DynamoDB`. An operator may also claim an
    /// installation that was given up.
    pub fn claimable(self, lease_ends_at: Option<Millis>, now: Millis) -> bool {
        let is_leased = self.respects_lease() && lease_ends_at.is_some_and(|end| now < end);
        Transition::Claim.from(self).is_some() && !is_leased
    }
}

/// A write that may change the state of an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// A claim of the lease, for a refresh or a minting.
    Claim,
    /// A claim by an operator, although the installation was given up.
    ClaimByOperator,
    /// Stores a new token as the current one: the commit of a refresh, of a standby pair or of a minted token.
    StoreToken,
    /// Keeps a pair as a standby pair, because another pair was stored first.
    AddStandby,
    /// Releases the lease without a new token, and stores this state. Only the holder of the lease can.
    Release(Status),
    /// Stores a new installation.
    Install,
    /// Stores the marketplace's notice that the app was installed in a location.
    InstallNotice,
    /// Revokes the installation after an uninstall.
    Uninstall,
}

impl Transition {
    /// The state after this write, for an installation in state `from`. `None` if the write is not legal there.
    ///
    /// This is the only table of legal moves: the conditions of the writes are generated from it. No match arm covers
    /// all other states, so the compiler reports each place where a new state needs a decision.
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
            // Legal without a lease, too: the holder of a granted pair may hold the only live one.
            Self::StoreToken => match from {
                Active | Refreshing | Uncertain | Suspended | Blocked | NeedsReauthorization => Some(Active),
                Revoked => None,
            },
            Self::AddStandby => match from {
                Active | Refreshing | Suspended | Blocked => Some(from),
                // The standby pair is another token to try.
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

    /// Returns true if this write is legal for an installation in state `from`.
    pub const fn is_legal(self, from: Status) -> bool {
        self.from(from).is_some()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The version of a token pair: epoch and generation. Both numbers only grow. The version is the fencing token of the
/// lease: it is in the condition of every write of a lease owner, so a write that belongs to an older pair changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenVersion {
    /// Incremented by each install and uninstall.
    pub epoch: u64,
    /// Incremented by each stored pair.
    pub generation: u64,
}

impl TokenVersion {
    /// The version of the pair that replaces this one in a refresh.
    #[must_use]
    pub fn next(self) -> Self {
        Self { generation: self.generation + 1, ..self }
    }

    /// The version of a new install after this version.
    #[must_use]
    pub fn reinstalled(self) -> Self {
        Self { epoch: self.epoch + 1, generation: self.generation + 1 }
    }
}

/// The random 128-bit id of a lease owner: one attempt at a refresh, a minting or an install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseOwner(String);

impl LeaseOwner {
    /// Creates a new random id.
    pub fn new() -> Self {
        Self(random::hex::<16>())
    }

    /// The id as stored in the table.
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
    /// My own earlier write was applied, and only its answer was lost.
    AlreadyMine,
    /// Another attempt first stored a pair that was granted for the same token or for an older one. My pair may still
    /// be the live one, so it is kept as a standby pair.
    Standby,
    /// The app was uninstalled or installed again, or a pair that came after mine was stored. My pair is obsolete.
    Superseded,
}

/// Judges a commit whose condition failed. The decision depends on the version and never on the lease, because the
/// holder of a granted pair may hold the only live one. `from` is the version whose token was presented for my pair,
/// and `stored` is the version of the stored pair. `granted_from` is the generation whose token was presented for the
/// stored pair: the previous generation, or an older one if the stored pair is a standby pair that replaced a refused
/// pair.
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
        for &status in Status::ALL {
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
            for (from, next) in Status::ALL.iter().copied().zip(next) {
                assert_eq!(transition.from(from), next, "{transition:?} of {from}");
            }
        }
    }

    #[test]
    fn a_lost_commit_is_judged_by_version() {
        let (mine, rival) = (LeaseOwner::new(), LeaseOwner::new());
        let from = TokenVersion { epoch: 2, generation: 7 };
        let at = |epoch, generation| TokenVersion { epoch, generation };
        for (stored, granted_from, by, verdict) in [
            (at(2, 8), 7, Some(&mine), LostCommit::AlreadyMine),
            (at(2, 8), 7, Some(&rival), LostCommit::Standby),
            (at(2, 8), 7, None, LostCommit::Standby),
            // A standby pair has replaced a refused one, so the stored pair is no younger than mine.
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
