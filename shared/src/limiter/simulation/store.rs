//! The conditional writes of [`item`](crate::limiter::item), applied to an item in memory.

use crate::domain::limits::{FURTHEST_DAY, Limits, ObservedLimits};
use crate::limiter::counters::{Counters, LimitKind};
use crate::limiter::decision::{Basis, Plan, Rewrite, Take};
use crate::limiter::update::{DayChange, LimitUpdate, ProposalChange};
use crate::limiter::window::{MOST_SLOTS, Slot};
use crate::table::Write;

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) item: Option<Counters>,
    pub(super) calls: usize,
}

impl Store {
    pub(super) fn apply(&mut self, plan: &Plan) -> Write<Counters> {
        match plan {
            Plan::Take(take) => self.take(take),
            Plan::Rewrite(rewrite) => self.rewrite(rewrite),
        }
    }

    fn write(&mut self, change: impl FnOnce(&mut Counters) -> bool) -> Write<Counters> {
        self.calls += 1;
        let Some(item) = &mut self.item else { return Write::NotFound };
        let mut next = item.clone();
        if !change(&mut next) {
            return Write::Conflict(item.clone());
        }
        *item = next.clone();
        Write::Applied(next)
    }

    fn take(&mut self, take: &Take) -> Write<Counters> {
        self.write(|item| {
            let count = i64::from(take.permits.count);
            let counted = i64::from(item.counted) + count - i64::from(take.replaces.is_some());
            let used = i64::from(item.day.used) + count;
            let leaves_room = |limits: Limits| counted <= i64::from(limits.burst) && used <= i64::from(limits.daily);
            let basis_holds = match take.basis {
                Basis::Snapshot { revision, used_at_most, slots_fit, old_limits } => {
                    item.revision == revision
                        && (item.day.used <= used_at_most || old_limits.is_some_and(leaves_room))
                        && (slots_fit || item.slots.len() <= MOST_SLOTS)
                }
                Basis::Assumption { slot_ms, limits, now } => {
                    leaves_room(limits)
                        && item.slot_ms == slot_ms
                        && item.day.ends > now
                        && item.day.ends <= now + FURTHEST_DAY
                        && item.closed.is_none_or(|closed| closed.until <= now && closed.by != LimitKind::Daily)
                        && item.observed.is_none()
                        && item.closed_endpoints.is_empty()
                        && item.slots.len() <= MOST_SLOTS
                }
            };
            let holds = basis_holds
                && item.newest <= take.permits.slot
                && (take.permits.background == 0 || item.background.is_some())
                && take.replaces.is_none_or(|slot| remove_one(item, slot));
            if holds {
                add(&mut item.slots, take.permits.slot, take.permits.count);
                if let Some(background) = item.background.as_mut().filter(|_| take.permits.background > 0) {
                    add(background, take.permits.slot, take.permits.background);
                }
                item.newest = take.permits.slot;
                item.counted = u32::try_from(counted).expect("never negative");
                item.day.used += take.permits.count;
            }
            holds
        })
    }

    fn rewrite(&mut self, rewrite: &Rewrite) -> Write<Counters> {
        self.calls += 1;
        if self.item.as_ref().map(Counters::version) != rewrite.seen {
            return self.item.clone().map_or(Write::NotFound, Write::Conflict);
        }
        self.item = Some(rewrite.next.clone());
        Write::Applied(rewrite.next.clone())
    }

    pub(super) fn give_back(&mut self, slot: Slot, slot_ms: i64) -> Write<Counters> {
        self.write(|item| {
            let holds = item.slot_ms == slot_ms && item.counted > 0 && remove_one(item, slot);
            if holds {
                item.counted -= 1;
            }
            holds
        })
    }

    pub(super) fn update(&mut self, seen: &Counters, update: &LimitUpdate) -> Write<Counters> {
        self.write(|item| {
            let holds = item.revision == seen.revision
                && (update.proposal.is_none() || item.proposal == seen.proposal)
                && match update.day {
                    None => true,
                    Some(DayChange::Used(used)) => item.day.used < used,
                    Some(DayChange::Replaced(_)) => item.day.used == seen.day.used,
                };
            item.revision += i64::from(update.raises_revision());
            if let Some(observed) = update.observed {
                item.observed = Some(observed).filter(|observed| *observed != ObservedLimits::default());
            }
            match &update.proposal {
                None => {}
                Some(ProposalChange::Made(proposal)) => item.proposal = Some(proposal.clone()),
                Some(ProposalChange::Ended) => item.proposal = None,
            }
            item.lowered_at = update.lowered_at.or(item.lowered_at);
            item.closed = update.closed.or(item.closed);
            if let Some(closed) = &update.closed_endpoints {
                item.closed_endpoints.clone_from(closed);
            }
            match update.day {
                None => {}
                Some(DayChange::Used(used)) => item.day.used = used,
                Some(DayChange::Replaced(day)) => item.day = day,
            }
            holds
        })
    }
}

/// Adds permits of a slot.
fn add(slots: &mut Vec<(Slot, u32)>, slot: Slot, permits: u32) {
    match slots.iter_mut().find(|(counted, _)| *counted == slot) {
        Some((_, counted)) => *counted += permits,
        None => slots.push((slot, permits)),
    }
    slots.sort_unstable();
}

fn remove_one(item: &mut Counters, slot: Slot) -> bool {
    let Some((_, count)) = item.slots.iter_mut().find(|(counted, count)| *counted == slot && *count > 0) else {
        return false;
    };
    *count -= 1;
    true
}
