//! An exhaustive search of the life cycle of an installation: three workers, and every fault that can occur between two
//! of their steps, up to a budget. Designs that lose tokens are searched too, which proves that the search finds them.
//!
//! Three invariants must hold in every order of events: no write discards the last usable token; only a newer install
//! revives an uninstalled installation; no installation that holds a live grant is marked for a new authorization.

mod item;
mod provider;
mod search;

use std::hash::Hash;

use shared::domain::status::Status;

use self::item::{Design, Item, Standby, Version, Wrote};
use self::provider::{Mode, Provider, Token};

/// The number of events of each kind that a search may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Budget {
    /// Claims by any worker.
    claims: u8,
    /// Crashes of a worker.
    crashes: u8,
    /// Lost requests to the platform, and lost answers of the platform.
    lost: u8,
    /// Lost requests that nevertheless arrive later.
    ghosts: u8,
    /// Answers of the platform with an unknown text, and answers from in front of the platform, to requests that have
    /// not reached the platform.
    odd: u8,
    /// Writes that are applied although their answer is lost.
    ambiguous: u8,
    /// Pairs that go through the rescue queue, and messages that are delivered twice.
    rescues: u8,
    /// Installs and uninstalls.
    installs: u8,
    uninstalls: u8,
    /// Ticks of the clock. A lease lasts one tick.
    ticks: u8,
}

/// The next step of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    Idle,
    /// The worker has claimed the lease, or presents the token a second time.
    Present(Claimed),
    /// The worker's request is under way.
    Ask(Claimed),
    Commit(Granted),
    AddStandby {
        at: Version,
        granted: Granted,
    },
    Refused(Claimed),
    Promote {
        claim: Claimed,
        seen: Vec<Standby>,
    },
    Release(Claimed, Status),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Claimed {
    attempt: u8,
    from: Version,
    token: Token,
    standby: Vec<Standby>,
    /// The state that a release restores if no request was sent.
    unchanged: Status,
    lease_ends: u8,
    unanswered: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Granted {
    attempt: u8,
    from: Version,
    token: Token,
}

impl Granted {
    fn standby(&self) -> Standby {
        Standby { token: self.token, attempt: self.attempt, granted_from: self.from.1 }
    }
}

/// A grant from an exchanged code, not yet stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Exchanged {
    attempt: u8,
    at: u8,
    token: Token,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    now: u8,
    item: Item,
    provider: Provider,
    workers: [Work; WORKERS],
    queue: Option<Granted>,
    exchanged: Vec<Exchanged>,
    /// The webhook of an uninstall that has not been delivered yet.
    uninstall: Option<u8>,
    /// A request that was taken for lost and can still arrive.
    ghost: Option<Token>,
    /// The counter that orders installs and uninstalls.
    stamp: u8,
    attempts: u8,
    left: Budget,
}

const WORKERS: usize = 3;

/// A step: its name, true if the step is one write of the product, and the world after the step.
type Step = (&'static str, bool, World);

impl World {
    fn new(mode: Mode, left: Budget) -> Self {
        let mut provider = Provider::new(mode);
        let item = Item::installed(provider.grant(), 0);
        Self {
            now: 0,
            item,
            provider,
            workers: std::array::from_fn(|_| Work::Idle),
            queue: None,
            exchanged: Vec::new(),
            uninstall: None,
            ghost: None,
            stamp: 1,
            attempts: 1,
            left,
        }
    }

    /// Returns true if the item, the queue, or a worker that can still store its token holds a usable token.
    fn holds_something(&self) -> bool {
        let current = |granted: &Granted| granted.from.0 == self.item.version.0;
        let working = self.workers.iter().filter_map(|work| match work {
            Work::Commit(granted) | Work::AddStandby { granted, .. } => current(granted).then_some(granted.token),
            // The platform can still answer a token that a worker presents (again).
            Work::Present(claim) | Work::Ask(claim) => (self.now < claim.lease_ends).then_some(claim.token),
            _ => None,
        });
        let queued = self.queue.iter().filter(|granted| current(granted)).map(|granted| granted.token);
        self.item.tokens().chain(working).chain(queued).any(|token| self.provider.is_good(token, self.now))
    }

    /// The invariant that a step violates, if any.
    fn violation(&self, is_write: bool, after: &Self) -> Option<&'static str> {
        if is_write && self.holds_something() && !after.holds_something() {
            return Some("a write discards the last live token");
        }
        let was_revoked = self.item.status == Status::Revoked;
        if was_revoked && after.item.status != Status::Revoked && after.item.installed_at <= self.item.revoked_at {
            return Some("an uninstalled installation comes back");
        }
        if after.item.status == Status::NeedsReauthorization
            && after.item.tokens().any(|token| after.provider.is_good(token, after.now))
        {
            return Some("marked for a new authorization with a live grant in hand");
        }
        None
    }

    fn steps(&self, design: Design) -> Vec<Step> {
        let mut steps = Vec::new();
        for who in 0..WORKERS {
            // Idle workers are alike, so one of them stands for all.
            if self.workers[who] == Work::Idle && self.workers[..who].contains(&Work::Idle) {
                continue;
            }
            self.work(who, design, &mut steps);
        }
        self.outside(design, &mut steps);
        steps
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut next = self.clone();
        change(&mut next);
        next
    }

    fn work(&self, who: usize, design: Design, steps: &mut Vec<Step>) {
        let then = |work: Work, change: &dyn Fn(&mut Self)| {
            self.with(|next| {
                change(next);
                next.workers[who] = work;
            })
        };
        let nothing: &dyn Fn(&mut Self) = &|_| {};
        match &self.workers[who] {
            Work::Idle => {
                self.claims(who, steps);
                return;
            }
            Work::Present(claim) if self.now < claim.lease_ends => {
                steps.push(("send", false, then(Work::Ask(claim.clone()), nothing)));
            }
            Work::Present(claim) => {
                let to = if claim.unanswered > 0 { Status::Uncertain } else { claim.unchanged };
                steps.push(("the guard holds it back", false, then(Work::Release(claim.clone(), to), nothing)));
            }
            Work::Ask(claim) => self.answers(who, claim, design, steps),
            Work::Commit(granted) => {
                let mut next = self.clone();
                let Granted { attempt, from, token } = *granted;
                let wrote = next.item.commit(design, from, attempt, token);
                if self.left.ambiguous > 0 {
                    let mut unsure = next.clone();
                    unsure.left.ambiguous -= 1;
                    steps.push(("commit, its answer lost", true, unsure));
                }
                next.workers[who] = match wrote {
                    Wrote::AddStandbyTo(at) => Work::AddStandby { at, granted: granted.clone() },
                    Wrote::Done | Wrote::Moved | Wrote::HasStandby => Work::Idle,
                };
                steps.push(("commit", true, next));
                if self.left.rescues > 0 && self.queue.is_none() {
                    steps.push((
                        "rescue",
                        true,
                        then(Work::Idle, &|next| {
                            next.queue = Some(granted.clone());
                            next.left.rescues -= 1;
                        }),
                    ));
                }
            }
            Work::AddStandby { at, granted } => {
                let mut next = self.clone();
                let is_added = next.item.add_standby(design, *at, granted.standby());
                // The version has moved on, so the worker returns to its commit and decides again.
                next.workers[who] =
                    if is_added || design == Design::OneStandby { Work::Idle } else { Work::Commit(granted.clone()) };
                steps.push(("add a standby pair", true, next));
            }
            Work::Refused(claim) => {
                let work = if !claim.standby.is_empty() {
                    Work::Promote { claim: claim.clone(), seen: claim.standby.clone() }
                } else if self.queue.is_some() {
                    // The queue may hold the live pair.
                    Work::Release(claim.clone(), Status::Uncertain)
                } else {
                    Work::Release(claim.clone(), Status::NeedsReauthorization)
                };
                steps.push(("refused", false, then(work, nothing)));
                // The budget of marks has no place left.
                steps.push((
                    "refused, no mark left",
                    false,
                    then(Work::Release(claim.clone(), Status::Uncertain), nothing),
                ));
            }
            Work::Promote { claim, seen } => {
                // The order in which the platform granted the standby pairs is unknown, so any of them may be tried
                // first.
                for place in 0..seen.len() {
                    let mut next = self.clone();
                    let wrote = next.item.promote(design, claim.from, claim.attempt, seen, place);
                    next.workers[who] = match wrote {
                        Wrote::HasStandby if !self.item.standby.is_empty() => {
                            Work::Promote { claim: claim.clone(), seen: self.item.standby.clone() }
                        }
                        _ => Work::Idle,
                    };
                    steps.push(("promote", true, next));
                }
            }
            Work::Release(claim, to) => {
                let mut next = self.clone();
                let wrote = next.item.release(claim.from, claim.attempt, *to);
                if self.left.ambiguous > 0 {
                    let mut unsure = next.clone();
                    unsure.left.ambiguous -= 1;
                    steps.push(("release, its answer lost", true, unsure));
                }
                next.workers[who] = match wrote {
                    Wrote::HasStandby => Work::Promote { claim: claim.clone(), seen: self.item.standby.clone() },
                    _ => Work::Idle,
                };
                steps.push(("release", true, next));
            }
        }
        if self.left.crashes > 0 {
            steps.push(("crash", false, then(Work::Idle, &|next| next.left.crashes -= 1)));
        }
    }

    fn claims(&self, who: usize, steps: &mut Vec<Step>) {
        let Some(token) = self.item.token else { return };
        if self.left.claims == 0 || !self.item.is_claimable(self.now) {
            return;
        }
        let unchanged = match self.item.status {
            Status::Refreshing | Status::Uncertain => Status::Uncertain,
            status => status,
        };
        let claim = Claimed {
            attempt: self.attempts,
            from: self.item.version,
            token,
            standby: self.item.standby.clone(),
            unchanged,
            lease_ends: self.now + 1,
            unanswered: 0,
        };
        let claimed = self.with(|next| {
            next.item.claim(next.attempts, next.now);
            next.attempts += 1;
            next.left.claims -= 1;
            next.workers[who] = Work::Present(claim);
        });
        steps.push(("claim", true, claimed));
    }

    /// The possible results of a request that is under way.
    fn answers(&self, who: usize, claim: &Claimed, design: Design, steps: &mut Vec<Step>) {
        let answered = self.with(|next| {
            next.workers[who] = match next.provider.present(claim.token, next.now) {
                Some(token) => Work::Commit(Granted { attempt: claim.attempt, from: claim.from, token }),
                None => Work::Refused(claim.clone()),
            };
        });
        steps.push(("answered", false, answered));
        if self.left.odd > 0 {
            let unsure = if claim.unanswered > 0 { Status::Uncertain } else { claim.unchanged };
            for (name, to) in [("an unknown text", Status::Blocked), ("not reached", unsure)] {
                let release = |next: &mut Self| {
                    next.left.odd -= 1;
                    next.workers[who] = Work::Release(claim.clone(), to);
                };
                steps.push((name, false, self.with(release)));
            }
        }
        if self.left.lost == 0 {
            return;
        }
        let unanswered = |next: &mut Self| {
            let claim = Claimed { unanswered: claim.unanswered + 1, ..claim.clone() };
            next.left.lost -= 1;
            next.workers[who] = match claim.unanswered {
                1 => Work::Present(claim),
                _ if design == Design::GivesUpUnanswered => Work::Release(claim, Status::NeedsReauthorization),
                _ => Work::Release(claim, Status::Uncertain),
            };
        };
        steps.push(("the request is lost", false, self.with(unanswered)));
        steps.push((
            "the answer is lost",
            false,
            self.with(|next| {
                next.provider.present(claim.token, next.now);
                unanswered(next);
            }),
        ));
        if self.left.ghosts > 0 && self.ghost.is_none() {
            steps.push((
                "the request is late",
                false,
                self.with(|next| {
                    next.left.ghosts -= 1;
                    next.ghost = Some(claim.token);
                    unanswered(next);
                }),
            ));
        }
    }

    fn outside(&self, design: Design, steps: &mut Vec<Step>) {
        if self.left.ticks > 0 {
            steps.push((
                "a lease's time passes",
                false,
                self.with(|next| {
                    next.left.ticks -= 1;
                    next.now += 1;
                }),
            ));
        }
        if let Some(token) = self.ghost {
            steps.push((
                "the late request arrives",
                false,
                self.with(|next| {
                    next.ghost = None;
                    next.provider.present(token, next.now);
                }),
            ));
        }
        if let Some(Granted { attempt, from, token }) = self.queue.clone() {
            let mut next = self.clone();
            if let Wrote::AddStandbyTo(at) = next.item.commit(design, from, attempt, token) {
                next.item.add_standby(design, at, Granted { attempt, from, token }.standby());
            }
            if self.left.rescues > 0 {
                let again = next.with(|next| next.left.rescues -= 1);
                steps.push(("rescued, and the message comes again", true, again));
            }
            next.queue = None;
            steps.push(("rescued", true, next));
        }
        if self.left.installs > 0 {
            steps.push((
                "somebody installs",
                false,
                self.with(|next| {
                    next.left.installs -= 1;
                    next.stamp += 1;
                    let token = next.provider.grant();
                    next.exchanged.push(Exchanged { attempt: next.attempts, at: next.stamp, token });
                    next.attempts += 1;
                }),
            ));
        }
        for index in 0..self.exchanged.len() {
            steps.push((
                "the install is stored",
                false,
                self.with(|next| {
                    let Exchanged { attempt, at, token } = next.exchanged.remove(index);
                    next.item.install(design, attempt, at, token);
                }),
            ));
        }
        if self.left.uninstalls > 0 && self.uninstall.is_none() {
            steps.push((
                "somebody uninstalls",
                false,
                self.with(|next| {
                    next.left.uninstalls -= 1;
                    next.stamp += 1;
                    next.uninstall = Some(next.stamp);
                    next.provider.uninstall();
                }),
            ));
        }
        if let Some(at) = self.uninstall {
            steps.push((
                "the uninstall is heard of",
                false,
                self.with(|next| {
                    next.uninstall = None;
                    next.item.uninstall(at);
                }),
            ));
        }
    }
}
