//! The item of the model and its conditional writes, as `shared::table::installation` makes them. The model calls the
//! product's own rules where it can: for legal claims, for the next version, and for the meaning of a lost commit.

use shared::domain::clock::Millis;
use shared::domain::status::{LeaseOwner, LostCommit, Status, TokenVersion, lost_commit};

use super::provider::Token;

/// The rule by which the item is written. All designs except the first one are known to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Design {
    /// The product's design: compare-and-swap on the version.
    ByVersion,
    /// The worker takes a lease, and commits without a condition.
    BlindWrite,
    /// The worker commits only while its attempt holds the lease.
    ByLeaseHolder,
    /// The installation is marked after two presentations without an answer.
    GivesUpUnanswered,
    /// A granted pair is dropped if another pair was committed first.
    DropsTheSecond,
    /// There is room for one standby pair only: a further standby pair replaces it. A promotion does not check that the
    /// standby pair in the item is the one that the worker saw.
    OneStandby,
    /// A granted pair is dropped as soon as the generation has grown by two, even if one of the two steps was the
    /// promotion of a standby pair.
    ForgetsTheGrantor,
}

/// The version: epoch and generation.
pub(super) type Version = (u8, u8);

fn token_version((epoch, generation): Version) -> TokenVersion {
    TokenVersion { epoch: epoch.into(), generation: generation.into() }
}

fn model_version(version: TokenVersion) -> Version {
    let small = |n: u64| u8::try_from(n).expect("few writes");
    (small(version.epoch), small(version.generation))
}

fn name(attempt: u8) -> LeaseOwner {
    LeaseOwner::from(attempt.to_string())
}

/// The result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrote {
    /// The write is applied, by this try or by an earlier one.
    Done,
    /// The commit lost: the worker must add its pair as a standby pair of this version.
    AddStandbyTo(Version),
    /// The item has standby pairs, or other standby pairs than the worker saw.
    HasStandby,
    /// The version of the item has moved on.
    Moved,
}

/// A standby pair: a pair that was granted but did not become the current pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Standby {
    pub(super) token: Token,
    pub(super) attempt: u8,
    /// The generation whose token was presented to obtain the pair.
    pub(super) granted_from: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Item {
    pub(super) status: Status,
    pub(super) version: Version,
    pub(super) token: Option<Token>,
    pub(super) granted_from: u8,
    pub(super) standby: Vec<Standby>,
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
            version: (1, 1),
            token: Some(token),
            granted_from: 0,
            standby: Vec::new(),
            attempt: None,
            lease_ends: None,
            committed_by: Some(attempt),
            installed_at: 1,
            revoked_at: 0,
        }
    }

    /// All tokens of the item.
    pub(super) fn tokens(&self) -> impl Iterator<Item = Token> {
        self.token.into_iter().chain(self.standby.iter().map(|standby| standby.token))
    }

    pub(super) fn is_claimable(&self, now: u8) -> bool {
        self.status.claimable(self.lease_ends.map(|end| Millis(end.into())), Millis(now.into()))
    }

    pub(super) fn claim(&mut self, attempt: u8, now: u8) {
        self.status = Status::Refreshing;
        self.attempt = Some(attempt);
        self.lease_ends = Some(now + 1);
    }

    /// Stores a granted pair. Standby pairs stay in the item until they are tried.
    pub(super) fn commit(&mut self, design: Design, from: Version, attempt: u8, token: Token) -> Wrote {
        let is_same_version = self.version == from && self.status != Status::Revoked;
        let may = match design {
            Design::BlindWrite => true,
            Design::ByLeaseHolder => is_same_version && self.attempt == Some(attempt),
            _ => is_same_version,
        };
        if may {
            self.replace(model_version(token_version(from).next()), attempt, token, from.1);
            return Wrote::Done;
        }
        if design == Design::ByLeaseHolder {
            return Wrote::Moved;
        }
        let stored_by = self.committed_by.map(name);
        let granted_from = match design {
            Design::ForgetsTheGrantor => self.version.1.saturating_sub(1),
            _ => self.granted_from,
        };
        let (mine, from, stored) = (name(attempt), token_version(from), token_version(self.version));
        match lost_commit(&mine, from, stored, granted_from.into(), stored_by.as_ref()) {
            LostCommit::AlreadyMine => Wrote::Done,
            LostCommit::Standby if design != Design::DropsTheSecond => Wrote::AddStandbyTo(self.version),
            LostCommit::Standby | LostCommit::Superseded => Wrote::Moved,
        }
    }

    fn replace(&mut self, version: Version, attempt: u8, token: Token, granted_from: u8) {
        self.status = Status::Active;
        self.version = version;
        self.token = Some(token);
        self.granted_from = granted_from;
        self.committed_by = Some(attempt);
        (self.attempt, self.lease_ends) = (None, None);
    }

    /// Adds a standby pair to the item. Returns false if this version is not the current one.
    pub(super) fn add_standby(&mut self, design: Design, at: Version, standby: Standby) -> bool {
        if self.version != at || self.status == Status::Revoked {
            return self.status == Status::Revoked;
        }
        if design == Design::OneStandby {
            self.standby.clear();
        }
        if !self.standby.iter().any(|known| known.attempt == standby.attempt) {
            self.standby.push(standby);
        }
        if self.status == Status::NeedsReauthorization {
            self.status = Status::Uncertain;
        }
        true
    }

    /// Promotes one of the standby pairs that the attempt has seen to the current pair.
    pub(super) fn promote(
        &mut self,
        design: Design,
        from: Version,
        attempt: u8,
        seen: &[Standby],
        place: usize,
    ) -> Wrote {
        if self.version != from || self.status == Status::Revoked {
            return Wrote::Moved;
        }
        match design {
            // In this design the standby pair that the worker saw replaces the current pair, and the item's standby
            // pair is dropped.
            Design::OneStandby if self.standby.is_empty() => return Wrote::Moved,
            Design::OneStandby => self.standby.clear(),
            _ if self.standby != seen => return Wrote::HasStandby,
            _ => drop(self.standby.remove(place)),
        }
        let Standby { token, granted_from, .. } = seen[place];
        self.replace(model_version(token_version(from).next()), attempt, token, granted_from);
        Wrote::Done
    }

    pub(super) fn release(&mut self, from: Version, attempt: u8, to: Status) -> Wrote {
        if self.version != from || self.attempt != Some(attempt) {
            return Wrote::Moved;
        }
        if to == Status::NeedsReauthorization && !self.standby.is_empty() {
            return Wrote::HasStandby;
        }
        self.status = to;
        (self.attempt, self.lease_ends) = (None, None);
        Wrote::Done
    }

    pub(super) fn install(&mut self, design: Design, attempt: u8, at: u8, token: Token) {
        if self.committed_by == Some(attempt) || self.revoked_at >= at {
            return;
        }
        if self.installed_at >= at {
            let standby = Standby { token, attempt, granted_from: self.granted_from };
            self.add_standby(design, self.version, standby);
            return;
        }
        let next = model_version(token_version(self.version).reinstalled());
        self.replace(next, attempt, token, next.1 - 1);
        self.standby.clear();
        self.installed_at = at;
    }

    pub(super) fn uninstall(&mut self, at: u8) {
        if self.installed_at < at && self.status != Status::Revoked {
            self.status = Status::Revoked;
            self.version.0 += 1;
            self.revoked_at = at;
            (self.token, self.attempt, self.lease_ends) = (None, None, None);
            self.standby.clear();
        }
    }
}
