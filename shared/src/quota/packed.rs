//! An item's counters as one text. Pure.
//!
//! For a process that has the item for itself: two assignments and one comparison cost the store what a plain counter
//! does, however many slots hold permits. A text cannot be added to, so nothing but a replacement of the item that was
//! seen succeeds on it.
//!
//! `200 57 1800000000000 told learnt=25/-/10000 closed-burst=1799990000000 9000000000 0=3 1=12` is the length of a slot
//! (ms), the day's requests and end (ms), whether the platform named that end, [`Learnt::to_text`], until when (ms) and by
//! which limit the platform closed the resource; then a slot, and for each slot with permits how many slots after the one
//! before it it is and how many it holds.

use std::fmt::Write as _;

use super::counters::{Closed, Counters, Day, LimitKind};
use super::limits::Learnt;
use super::window::Slot;
use crate::clock::Millis;

/// What is known of `counters`, but for the revision.
pub(crate) fn to_text(counters: &Counters) -> String {
    let Counters { slot_ms, day, .. } = counters;
    let mut text = String::with_capacity(64 + 8 * counters.slots.len());
    let _ = write!(text, "{slot_ms} {} {}", day.used, day.ends.0);
    if day.told {
        text.push_str(" told");
    }
    if let Some(learnt) = counters.learnt {
        let _ = write!(text, " learnt={}", learnt.to_text());
    }
    if let Some(Closed { until, by }) = counters.closed {
        let _ = write!(text, " closed-{}={}", by.to_text(), until.0);
    }
    let mut before = counters.slots.first().map_or(counters.newest, |(first, _)| *first);
    let _ = write!(text, " {before}");
    for &(slot, count) in &counters.slots {
        let _ = write!(text, " {}={count}", slot - before);
        before = slot;
    }
    text
}

/// What [`to_text`] wrote of an item of this revision; `None` if it did not.
pub(crate) fn from_text(text: &str, revision: i64) -> Option<Counters> {
    let mut words = text.split(' ');
    let (slot_ms, used, ends) = (words.next()?, words.next()?, words.next()?);
    let mut counters = Counters {
        revision,
        slot_ms: slot_ms.parse::<i64>().ok()?.max(1),
        newest: 0,
        slots: Vec::new(),
        total: 0,
        day: Day { used: used.parse().ok()?, ends: Millis(ends.parse().ok()?), told: false },
        learnt: None,
        closed: None,
        packed: true,
    };
    let mut slot: Option<Slot> = None;
    for word in words {
        match word.split_once('=') {
            None if word == "told" => counters.day.told = true,
            None if slot.is_none() => slot = Some(word.parse().ok()?),
            None => return None,
            Some(("learnt", limits)) => counters.learnt = Some(Learnt::from_text(limits)?),
            Some((name, value)) if let Some(by) = name.strip_prefix("closed-") => {
                counters.closed = Some(Closed { until: Millis(value.parse().ok()?), by: LimitKind::from_text(by)? });
            }
            Some((gap, count)) => {
                let gap: u32 = gap.parse().ok()?;
                let (next, count) = (slot?.checked_add(gap.into())?, count.parse().ok()?);
                counters.slots.push((next, count));
                counters.total = counters.total.checked_add(count)?;
                slot = Some(next);
            }
        }
    }
    (counters.newest, _) = *counters.slots.last()?;
    Some(counters)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_text_is_as_documented() {
        let learnt = Learnt { burst: Some(25), interval: None, daily: Some(10_000) };
        let mut counters = Counters {
            revision: 7,
            slot_ms: 200,
            newest: 9_000_000_001,
            slots: vec![(9_000_000_000, 3), (9_000_000_001, 12)],
            total: 15,
            day: Day { used: 57, ends: Millis(1_800_000_000_000), told: true },
            learnt: Some(learnt),
            closed: Some(Closed { until: Millis(1_799_990_000_000), by: LimitKind::Burst }),
            packed: true,
        };
        let text = "200 57 1800000000000 told learnt=25/-/10000 closed-burst=1799990000000 9000000000 0=3 1=12";
        assert_eq!(to_text(&counters), text);
        counters = Counters { learnt: None, closed: None, ..counters };
        counters.day.told = false;
        assert_eq!(to_text(&counters), "200 57 1800000000000 9000000000 0=3 1=12");
    }

    #[test]
    fn what_was_not_written_by_us_is_no_item() {
        for text in [
            "",
            "200 57 1800000000000",
            "200 57 1800000000000 9000000000",
            "200 57 x 9000000000 0=1",
            "200 -1 1800000000000 9000000000 0=1",
            "200 57 1800000000000 0=1",
            "200 57 1800000000000 9000000000 0=-1",
            "200 57 1800000000000 9000000000 x=1",
            "200 57 1800000000000 9000000000 1",
            "200 57 1800000000000 9000000000 -1=1",
            "200 57 1800000000000 9000000000 1=1=1",
            "200 57 1800000000000 5 9223372036854775807=1",
            "200 57 1800000000000 9000000000 0=4294967295 1=1",
            "200 57 1800000000000 learnt=x 9000000000 0=1",
            "200 57 1800000000000 closed-daily=x 9000000000 0=1",
            "200 57 1800000000000 closed-x=1800000000000 9000000000 0=1",
        ] {
            assert_eq!(from_text(text, 1), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            slots in prop::collection::btree_map(8_000_000_000_i64..8_000_000_100, any::<u16>(), 1..60),
            (slot_ms, used, ends, told) in (1_i64..10_000, any::<u32>(), any::<i64>(), any::<bool>()),
            learnt in prop::option::of((any::<Option<u32>>(), prop::option::of(0_u64..1_000_000), any::<Option<u32>>())),
            closed in prop::option::of((any::<i64>(), any::<bool>())),
        ) {
            let slots: Vec<_> = slots.into_iter().map(|(slot, count)| (slot, u32::from(count))).collect();
            let counters = Counters {
                revision: 3,
                slot_ms,
                newest: slots.last().expect("some").0,
                total: slots.iter().map(|(_, count)| count).sum(),
                slots,
                day: Day { used, ends: Millis(ends), told },
                learnt: learnt.map(|(burst, interval, daily)| {
                    Learnt { burst, interval: interval.map(Duration::from_millis), daily }
                }),
                closed: closed.map(|(until, daily)| {
                    Closed { until: Millis(until), by: if daily { LimitKind::Daily } else { LimitKind::Burst } }
                }),
                packed: true,
            };
            prop_assert_eq!(from_text(&to_text(&counters), 3), Some(counters));
        }
    }
}
