//! The pace of the token endpoint ([`crate::domain::pace`]), part of the item `app#breaker`.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

use super::mark_budget::BREAKER;
use super::{Attributes, Item, StoreError, Table, Update, Write, n, s};
use crate::domain::clock::Millis;
use crate::domain::pace::{LearntLimit, Pace, Priority};
use crate::domain::random;

impl Table {
    /// Stores `next` in place of the pace of the revision before it (compare-and-swap). A conflict returns the stored
    /// pace.
    ///
    /// # Errors
    /// [`StoreError`]: the pace may be stored.
    pub async fn write_pace(&self, next: &Pace) -> Result<Write<Pace>, StoreError> {
        let writer = random::hex::<8>();
        let mut write = Update::of(BREAKER);
        if next.revision <= 1 {
            write.when("attribute_not_exists(pace_revision)");
        } else {
            write.when_equal("pace_revision", n(next.revision - 1));
        }
        write.set("pace_revision", n(next.revision)).set("pace", attribute_of(next)).set("pace_writer", s(&*writer));
        let is_own = |item: &Item| Attributes::of(item).text("pace_writer") == Some(&writer);
        self.write(write).await?.or_applied_before(is_own).read(|item| Ok(read_pace(item)))
    }
}

fn attribute_of(pace: &Pace) -> AttributeValue {
    let Pace { learnt, sent, throttled_at, paused_until, counts_minting_until, waiting, .. } = pace;
    let mut members = HashMap::from([
        ("sent", AttributeValue::L(sent.iter().map(n).collect())),
        ("throttled_at", n(throttled_at)),
        ("paused_until", n(paused_until)),
        ("counts_minting_until", n(counts_minting_until)),
    ]);
    if let Some(LearntLimit { limit, proven, raise_after, lapses_at }) = learnt {
        members.extend([
            ("limit", n(limit)),
            ("proven", n(proven)),
            ("raise_after", n(raise_after)),
            ("lapses_at", n(lapses_at)),
        ]);
    }
    if let Some((priority, until)) = waiting {
        members.extend([("waiting", s(name(*priority))), ("waiting_until", n(until))]);
    }
    AttributeValue::M(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// The pace in the item `app#breaker`. The default if the item holds none, or none that this version can read.
pub(super) fn read_pace(item: &Item) -> Pace {
    let of_item = Attributes::of(item);
    let Some(revision) = of_item.number("pace_revision") else { return Pace::default() };
    let Some(map) = of_item.map("pace") else { return Pace { revision, ..Pace::default() } };
    let members = Attributes::of(map);
    let instant = |name| members.number(name).map(Millis);
    let learnt = || {
        Some(LearntLimit {
            limit: members.number("limit")?,
            proven: members.number("proven")?,
            raise_after: instant("raise_after")?,
            lapses_at: instant("lapses_at")?,
        })
    };
    let waiting = || {
        let waiting = members.text("waiting")?;
        let priority = Priority::ALL.into_iter().find(|priority| name(*priority) == waiting)?;
        Some((priority, instant("waiting_until")?))
    };
    let sent = members.list("sent").iter().filter_map(|at| at.as_n().ok()?.parse().ok().map(Millis));
    Pace {
        revision,
        learnt: learnt(),
        sent: sent.collect(),
        throttled_at: instant("throttled_at").unwrap_or_default(),
        paused_until: instant("paused_until").unwrap_or_default(),
        counts_minting_until: instant("counts_minting_until").unwrap_or_default(),
        waiting: waiting(),
    }
}

fn name(priority: Priority) -> &'static str {
    match priority {
        Priority::Schedule => "schedule",
        Priority::Minting => "minting",
        Priority::Exchange => "exchange",
        Priority::Caller => "caller",
        Priority::Replay => "replay",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_read_as_it_was_written() {
        let learnt = LearntLimit { limit: 10, proven: 5, raise_after: Millis(3), lapses_at: Millis(4) };
        for pace in [
            Pace { revision: 1, ..Pace::default() },
            Pace {
                revision: 7,
                learnt: Some(learnt),
                sent: vec![Millis(1), Millis(2), Millis(2)],
                throttled_at: Millis(6),
                paused_until: Millis(7),
                counts_minting_until: Millis(9),
                waiting: Some((Priority::Caller, Millis(8))),
            },
        ] {
            let item = [("pace_revision", n(pace.revision)), ("pace", attribute_of(&pace))];
            let item = item.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            assert_eq!(read_pace(&item), pace);
        }
        assert_eq!(read_pace(&Item::new()), Pace::default());
    }
}
