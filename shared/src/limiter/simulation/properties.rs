//! Properties of all worlds, and of the decisions that a run is made of.

use std::time::Duration;

use proptest::prelude::*;

use super::START;
use super::store::Store;
use super::world::{Arrival, Record, World};
use crate::domain::clock::Millis;
use crate::domain::limits::Limits;
use crate::limiter::counters::{ClosedEndpoints, Counters, Day};
use crate::limiter::decision::{Plan, plan};
use crate::limiter::memory::Memory;
use crate::limiter::snapshot::Snapshot;
use crate::limiter::window::Window;
use crate::table::Write;

prop_compose! {
    fn worlds()(
        burst in 1_u32..12,
        share in 1_u32..6,
        interval in prop::sample::select(vec![1_000_u64, 1_700, 10_000]),
        processes in 1_usize..6,
        // The skew of the clocks, in percent of the clock tolerance.
        skew in 0_i64..=100,
        latency in 0_i64..120,
        (lost, forgetful) in (0_u32..30, 0_u32..40),
        (patient, shared) in any::<(bool, bool)>(),
        seed in any::<u64>(),
        moves in prop::collection::vec((0_u32..60, 1_u32..30), 0..5),
    )(
        arrivals in prop::collection::vec(
            (0_i64..interval.cast_signed() * 6, 0..processes, any::<bool>())
                .prop_map(move |(at, process, within)| Arrival { at, process, within_share: shared && within }),
            1..150,
        ),
        clocks in {
            let most = Window::new(Duration::from_millis(interval)).clock_tolerance_ms() * skew / 200;
            prop::collection::vec(-most..=most, processes)
        },
        stated in Just(moves.iter().scan(0, |at, (gap, burst)| {
            *at += i64::from(*gap) * interval.cast_signed() / 10;
            Some((*at, *burst))
        }).collect::<Vec<_>>()),
        limits in Just(Limits { burst, interval: Duration::from_millis(interval), daily: 200_000 }),
        (share, latency, lost, forgetful, patient, seed) in Just((share, latency, lost, forgetful, patient, seed)),
    ) -> World {
        World { limits, stated, share, clocks, arrivals, latency, lost, forgetful, patient, seed }
    }
}

prop_compose! {
    /// Worlds in which processes call steadily, with limits of which permits are taken ahead of need.
    fn steady_worlds()(
        burst in 200_u32..400,
        interval in prop::sample::select(vec![5_000_u64, 10_000]),
        every in prop::collection::vec(20_usize..190, 1..5),
        skew in 0_i64..=100,
        latency in 0_i64..120,
        (lost, forgetful) in (0_u32..10, 0_u32..5),
        seed in any::<u64>(),
        moves in prop::collection::vec((5_u32..30, 50_u32..500), 0..3),
        // One process stops and goes on, and one volley uses up the window.
        (pause, volley) in (0_i64..3_000, 0_i64..20_000),
    )(
        clocks in {
            let most = Window::new(Duration::from_millis(interval)).clock_tolerance_ms() * skew / 200;
            prop::collection::vec(-most..=most, every.len())
        },
        arrivals in Just({
            let steady = every.iter().enumerate().flat_map(move |(process, every)| {
                let runs = move |at: &i64| process > 0 || at % (2_000 + pause) < 2_000;
                (0..15_000).step_by(*every).filter(runs).map(move |at| Arrival { at, process, within_share: false })
            });
            let volley = (0..burst).map(move |_| Arrival { at: volley, process: 0, within_share: false });
            steady.chain(volley).collect::<Vec<_>>()
        }),
        stated in Just(moves.iter().scan(0, |at, (gap, burst)| {
            *at += i64::from(*gap) * interval.cast_signed() / 10;
            Some((*at, *burst))
        }).collect::<Vec<_>>()),
        limits in Just(Limits { burst, interval: Duration::from_millis(interval), daily: 200_000 }),
        (latency, lost, forgetful, seed) in Just((latency, lost, forgetful, seed)),
    ) -> World {
        World { limits, stated, share: 10, clocks, arrivals, latency, lost, forgetful, patient: false, seed }
    }
}

/// The promise to the platform in one world, in which permits may be used for `ahead` milliseconds longer than usual.
fn keeps_the_limit(world: &World, ahead: i64) -> Result<Record, TestCaseError> {
    let record = world.run();
    let interval = i64::try_from(world.limits.interval.as_millis()).expect("short");
    // A permit is used up to two slots after its write was sent, by a clock that may differ.
    let late = ahead + 4 * Window::new(world.limits.interval).slot_ms() + world.latency;
    prop_assert_eq!(record.first_above_limit(interval, late), None);
    if world.stated.is_empty() {
        let most = record.most_in_any(interval);
        prop_assert!(most <= world.limits.burst as usize, "{most} in an interval");
    }
    Ok(record)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// The same with permits that are taken ahead of need.
    #[test]
    fn never_more_than_the_limit_with_permits_ahead(world in steady_worlds()) {
        keeps_the_limit(&world, 1_000)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// The promises to the platform and about shares hold with lost answers, lost memories and limits that the platform
    /// moves, as long as the clocks agree to within the clock tolerance.
    #[test]
    fn never_more_than_the_limit_in_any_interval(world in worlds()) {
        let record = keeps_the_limit(&world, 0)?;
        prop_assert!(record.most_of_share() <= world.share as usize, "{record:?}");
    }

    /// The promise to callers: a refused one gets a permit at `retry_at` and none before, from a process with a memory
    /// and from one without.
    #[test]
    fn refused_until_exactly_the_promised_instant(
        burst in 1_u32..12,
        daily in 1_u32..40,
        gaps in prop::collection::vec(0_i64..1_500, 1..60),
    ) {
        let limits = Limits { burst, interval: Duration::from_secs(10), daily };
        let (mut store, mut memory, mut now) = (Store::default(), Memory::new(limits.into()), START);
        let is_refused = |memory: &Memory, now| plan(memory, Millis(now), Duration::ZERO, 1).is_none();
        for gap in gaps {
            now += gap;
            if !is_refused(&memory, now) && admit(&mut store, &mut memory, Millis(now)) {
                continue;
            }
            prop_assert!(is_refused(&memory, now), "refused by the store, but not by the memory of its answer");
            let next = memory.snapshot(Millis(now)).expect("known").next_available(0, Millis(now)).at;
            prop_assert!(next.0 > now);
            prop_assert!(is_refused(&memory, next.0 - 1));
            prop_assert!(!admit(&mut store, &mut Memory::new(limits.into()), Millis(next.0 - 1)));
            now = next.0;
            if gap % 2 == 1 {
                memory = Memory::new(limits.into());
            }
            prop_assert!(admit(&mut store, &mut memory, next), "it was promised");
        }
    }

    /// A rewrite, also one into slots of another length, makes no permit expire early.
    #[test]
    fn a_rewrite_keeps_every_live_permit(
        counts in prop::collection::btree_map(0_i64..80, 1_u32..5, 1..60),
        slot_ms in prop::sample::select(vec![125_i64, 100, 30, 1_200]),
        age in 0_i64..15_000,
    ) {
        let limits = Limits { burst: 1_000, interval: Duration::from_secs(10), daily: 200_000 };
        let first = START / slot_ms;
        let slots: Vec<_> = counts.iter().map(|(slot, count)| (first + slot, *count)).collect();
        let (newest, _) = *slots.last().expect("some");
        let now = Millis((newest + 1) * slot_ms - 1 + age);
        let counted = counts.values().sum();
        // A day that is over causes a rewrite where slots of the same length would not.
        let ends = if slot_ms == 125 { now } else { now + Duration::from_hours(1) };
        let seen = Counters {
            revision: 1,
            slot_ms,
            newest,
            slots,
            counted,
            background: None,
            day: Day { used: counted, ends, end_confirmed: true },
            observed: None,
            proposal: None,
            lowered_at: Some(now),
            closed: None,
            closed_endpoints: ClosedEndpoints::new(),
        };
        let mut memory = Memory::new(limits.into());
        memory.saw(Some(seen.clone()), now);
        let planned = plan(&memory, now, Duration::ZERO, 1);
        let Some(Plan::Rewrite(rewrite)) = planned else { panic!("{planned:?}") };
        let window = Window::new(limits.interval);
        let next = Snapshot::of(Some(rewrite.next.clone()), limits.into(), now);
        let mut at = now;
        while at < now + Duration::from_secs(12) {
            let due: u32 = seen.slots.iter().filter(|(slot, _)| {
                // A request may leave until the end of the slot after its own.
                (slot + 2) * slot_ms + 10_300 > at.0
            }).map(|(_, count)| count).sum();
            let kept = next.live(at);
            let own = u32::from(window.expires_at(rewrite.permits.slot) > at);
            prop_assert!(kept >= due + own, "{kept} of {due} and {own} at {at}");
            at = at + Duration::from_millis(50);
        }
        prop_assert_eq!(rewrite.next.lowered_at, seen.lowered_at);
        prop_assert_eq!(rewrite.next.counted, rewrite.next.slots.iter().map(|(_, count)| count).sum::<u32>());
    }
}

/// True if a permit is available at `now`, in as many writes as it takes.
fn admit(store: &mut Store, memory: &mut Memory, now: Millis) -> bool {
    while let Some(plan) = plan(memory, now, Duration::ZERO, 1) {
        match store.apply(&plan) {
            Write::Applied(counters) => {
                memory.saw(Some(counters), now);
                return true;
            }
            conflict @ (Write::Conflict(_) | Write::NotFound) => {
                memory.saw(conflict.into_item(), now);
            }
        }
    }
    false
}
