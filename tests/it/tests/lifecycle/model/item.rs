//! The item of the model and its conditional writes, as `shared::table::installation` makes them. What can be asked
//! of the product's own rules is asked there: who may claim, which lineage follows, what a lost commit means.

use shared::clock::Millis;
use shared::installation::state::{Attempt, Lineage, LostCommit, Status, lost_commit};

use super::provider::Token;

/// By which rule the item is written. All but the first are known to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Design {
    /// The product's.
    ByLineage,
    /// A lease, and a commit without a condition.
    BlindWrite,
    /// A commit only while its attempt holds the lease.
    ByLeaseHolder,
    /// The installation is given up when nothing is answered twice.
    GivesUpUnanswered,
    /// A granted pair that comes second is dropped.
    DropsTheSecond,
}

/// Epoch and generation.
pub(super) type Line = (u8, u8);

fn lineage((epoch, generation): Line) -> Lineage {
    Lineage { epoch: epoch.into(), generation: generation.into() }
}

fn line(lineage: Lineage) -> Line {
    let small = |n: u64| u8::try_from(n).expect("few writes");
    (small(lineage.epoch), small(lineage.generation))
}

fn name(attempt: u8) -> Attempt {
    Attempt::from(attempt.to_string())
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrote {
    /// It is done, now or by an earlier try.
    Done,
    /// The pair is to be parked beside that of this lineage.
    ParkAt(Line),
    /// Another has parked a pair meanwhile.
    HasAlternate,
    /// The item has moved on.
    Moved,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Item {
    pub(super) status: Status,
    pub(super) line: Line,
    pub(super) token: Option<Token>,
    pub(super) alternate: Option<Token>,
    pub(super) attempt: Option<u8>,
    pub(super) lease_ends: Option<u8>,
    pub(super) committed_by: Option<u8>,
    pub(super) installed_at: u8,
    pub(super) revoked_at: u8,
}

impl Item {
    pub(super) fn installed(token: Token, attempt: u8) -> Self {
        Self {
            status: Status::Active,
            line: (1, 1),
            token: Some(token),
            alternate: None,
            attempt: None,
            lease_ends: None,
            committed_by: Some(attempt),
            installed_at: 1,
            revoked_at: 0,
        }
    }

    pub(super) fn is_claimable(&self, now: u8) -> bool {
        self.status.claimable(self.lease_ends.map(|end| Millis(end.into())), Millis(now.into()))
    }

    pub(super) fn claim(&mut self, attempt: u8, now: u8) {
        self.status = Status::Refreshing;
        self.attempt = Some(attempt);
        self.lease_ends = Some(now + 1);
    }

    /// Stores a granted pair. A parked one stays beside it until it is tried.
    pub(super) fn commit(&mut self, design: Design, from: Line, attempt: u8, token: Token) -> Wrote {
        let by_lineage = self.line == from && self.status != Status::Revoked;
        let may = match design {
            Design::BlindWrite => true,
            Design::ByLeaseHolder => by_lineage && self.attempt == Some(attempt),
            _ => by_lineage,
        };
        if may {
            let kept = self.alternate;
            self.replace(line(lineage(from).next()), attempt, token);
            self.alternate = kept;
            return Wrote::Done;
        }
        if design == Design::ByLeaseHolder {
            return Wrote::Moved;
        }
        let stored_by = self.committed_by.map(|by| by.to_string());
        match lost_commit(&name(attempt), lineage(from), lineage(self.line), stored_by.as_deref()) {
            LostCommit::AlreadyMine => Wrote::Done,
            LostCommit::Park if design != Design::DropsTheSecond => Wrote::ParkAt(self.line),
            LostCommit::Park | LostCommit::Superseded => Wrote::Moved,
        }
    }

    fn replace(&mut self, line: Line, attempt: u8, token: Token) {
        self.status = Status::Active;
        self.line = line;
        self.token = Some(token);
        self.committed_by = Some(attempt);
        (self.alternate, self.attempt, self.lease_ends) = (None, None, None);
    }

    pub(super) fn park(&mut self, at: Line, token: Token) {
        if self.line == at && self.status != Status::Revoked {
            self.alternate = Some(token);
            if self.status == Status::NeedsReauthorization {
                self.status = Status::Uncertain;
            }
        }
    }

    /// Makes the parked pair that the attempt has seen the current one.
    pub(super) fn promote(&mut self, from: Line, attempt: u8, seen: Token) {
        if self.line == from && self.status != Status::Revoked && self.alternate.is_some() {
            self.replace(line(lineage(from).next()), attempt, seen);
        }
    }

    pub(super) fn settle(&mut self, from: Line, attempt: u8, to: Status) -> Wrote {
        if self.line != from || self.attempt != Some(attempt) {
            return Wrote::Moved;
        }
        if to == Status::NeedsReauthorization && self.alternate.is_some() {
            return Wrote::HasAlternate;
        }
        self.status = to;
        (self.attempt, self.lease_ends) = (None, None);
        Wrote::Done
    }

    pub(super) fn install(&mut self, attempt: u8, at: u8, token: Token) {
        if self.committed_by == Some(attempt) || self.revoked_at >= at {
            return;
        }
        if self.installed_at >= at {
            self.park(self.line, token);
            return;
        }
        self.replace(line(lineage(self.line).reinstalled()), attempt, token);
        self.installed_at = at;
    }

    pub(super) fn uninstall(&mut self, at: u8) {
        if self.installed_at < at && self.status != Status::Revoked {
            self.status = Status::Revoked;
            self.line.0 += 1;
            self.revoked_at = at;
            (self.token, self.alternate, self.attempt, self.lease_ends) = (None, None, None, None);
        }
    }
}
