//! Several processes on one item, by the rules of [`decision`](super::decision): a store that answers late or not at
//! all, clocks that differ, memories that are lost; and the oracle that counts what left for the platform, and when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use proptest::prelude::*;

use super::counters::{Counters, FURTHEST_DAY, Standing};
use super::decision::{Known, MOST_SLOTS, Plan, Room, plan};
use super::limits::Limits;
use super::memory::{Memory, Seen};
use super::window::Window;
use crate::clock::Millis;

const START: i64 = 1_800_000_000_000;

/// The item that an applied write left, or the one that did not agree with its condition.
type Answer = Result<Counters, Box<Option<Counters>>>;

/// What [`super::item`] makes DynamoDB do, in memory.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) item: Option<Counters>,
    pub(crate) calls: usize,
}

impl Store {
    /// `Ok` if the condition held.
    pub(crate) fn apply(&mut self, plan: &Plan) -> Answer {
        self.calls += 1;
        match plan {
            Plan::Take(take) => {
                let Some(item) = &mut self.item else { return Err(Box::default()) };
                let held = i64::from(item.total) + i64::from(take.permits) - i64::from(take.dropped());
                let known = |known: Known| item.day.used <= known.used_at_most && item.day.ends == known.day_ends;
                let by_sum = held <= i64::from(take.limits.burst);
                let unseen = item.slots.len() <= MOST_SLOTS
                    && item.day.used + take.permits <= take.limits.daily
                    && item.day.ends > take.now
                    && item.day.ends <= take.now + FURTHEST_DAY
                    && item.closed.is_none_or(|closed| closed.until <= take.now);
                let room = match take.room {
                    Room::Sum => by_sum && unseen,
                    Room::Known(bound) => known(bound) && item.closed.is_none(),
                    Room::Either(bound) => (by_sum || known(bound)) && unseen,
                };
                let holds = room
                    && !item.packed
                    && if take.is_later { item.newest <= take.slot } else { item.newest == take.slot }
                    && item.slot_ms == take.slot_ms
                    && item.learnt == take.learnt
                    && take.drops.iter().all(|drop| item.slots.contains(drop));
                if !holds {
                    return Err(Box::new(Some(item.clone())));
                }
                item.slots.retain(|slot| !take.drops.contains(slot));
                match item.slots.iter_mut().find(|(slot, _)| *slot == take.slot) {
                    Some((_, count)) => *count += take.permits,
                    None => item.slots.push((take.slot, take.permits)),
                }
                item.slots.sort_unstable();
                if take.is_later {
                    item.newest = take.slot;
                }
                item.total = u32::try_from(held).expect("never less than nothing");
                item.day.used += take.permits;
                item.revision += 1;
                Ok(item.clone())
            }
            Plan::Rewrite(rewrite) => {
                let same =
                    self.item.as_ref().map(|item| item.revision) == rewrite.seen.as_ref().map(|seen| seen.revision);
                if !same {
                    return Err(Box::new(self.item.clone()));
                }
                self.item = Some(rewrite.next.clone());
                Ok(rewrite.next.clone())
            }
            Plan::Wait(_) => panic!("nothing to write"),
        }
    }
}

/// A world to simulate. Times in milliseconds.
#[derive(Clone, Debug)]
struct World {
    limits: Limits,
    /// How far each process's clock is ahead.
    clocks: Vec<i64>,
    /// Requests: when, and of which process.
    arrivals: Vec<(i64, usize)>,
    /// Longest way to the store and back.
    latency: i64,
    /// Of a hundred answers of the store, how many are lost; of a hundred takes, how many begin without a memory.
    lost: u32,
    forgetful: u32,
    /// Whether those who are refused wait.
    patient: bool,
    /// Undisturbed writes after which a process takes itself to be alone.
    alone_after: u32,
    seed: u64,
}

#[derive(Debug)]
struct Process {
    memory: Memory,
    queue: usize,
    writing: Option<Plan>,
    answer: Option<Answer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    Applied,
    Answered,
    Woken,
}

#[derive(Debug, Default)]
struct Tally {
    /// When requests left, in true time, ascending.
    sent: Vec<i64>,
    refused: usize,
    calls: usize,
    failed: usize,
}

impl Tally {
    /// The most requests that left in any `interval`.
    fn most_in_any(&self, interval: i64) -> usize {
        let within = |(i, at): (usize, &i64)| i + 1 - self.sent.partition_point(|sent| *sent <= at - interval);
        self.sent.iter().enumerate().map(within).max().unwrap_or(0)
    }

    #[expect(clippy::cast_precision_loss, reason = "a ratio of small numbers")]
    fn calls_per_admitted(&self) -> f64 {
        self.calls as f64 / self.sent.len() as f64
    }
}

impl World {
    fn run(&self) -> Tally {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let (mut store, mut tally) = (Store::default(), Tally::default());
        let mut processes: Vec<Process> = self
            .clocks
            .iter()
            .map(|_| Process {
                memory: Memory::alone_after(self.alone_after, Millis(START)),
                queue: 0,
                writing: None,
                answer: None,
            })
            .collect();
        let arrivals = self.arrivals.iter().map(|&(at, process)| Reverse((START + at, Event::Arrival, process)));
        let mut events: BinaryHeap<_> = arrivals.collect();
        while let Some(Reverse((at, event, number))) = events.pop() {
            assert!(at < START + 3_600_000 && store.calls < 100_000, "it never ends");
            let process = &mut processes[number];
            let now = Millis(at + self.clocks[number]);
            let on_the_way = random.i64(0..=self.latency / 2);
            match event {
                Event::Arrival => process.queue += 1,
                Event::Woken => {}
                Event::Applied => {
                    let answer = store.apply(process.writing.as_ref().expect("a write"));
                    tally.failed += usize::from(answer.is_err());
                    process.answer = Some(answer);
                    events.push(Reverse((at + on_the_way, Event::Answered, number)));
                    continue;
                }
                Event::Answered => {
                    let (written, answer) = (process.writing.take(), process.answer.take());
                    let lost = random.u32(0..100) < self.lost;
                    let answer = answer.expect("an answer");
                    let written = written.expect("a write");
                    match answer {
                        _ if lost => process.queue = 0,
                        Err(found) => process.memory.refused(*found, now),
                        Ok(counters) => {
                            let (permits, slot) = written.permits().expect("a wait is not written");
                            let send_by = Standing::of(Some(&counters), self.limits, now).window.send_by(slot);
                            process.memory.applied(&written, counters, now);
                            if now <= send_by {
                                process.queue -= permits as usize;
                                for _ in 0..permits {
                                    tally.sent.push(random.i64(now.0..=send_by.0) - self.clocks[number]);
                                }
                            }
                        }
                    }
                }
            }
            if process.writing.is_some() || process.queue == 0 {
                continue;
            }
            if random.u32(0..100) < self.forgetful {
                process.memory = Memory::alone_after(self.alone_after, now);
            }
            let wanted = u32::try_from(process.queue).expect("few");
            match plan(&process.memory, self.limits, now, Duration::ZERO, wanted) {
                Plan::Wait(opening) if self.patient => {
                    events.push(Reverse((opening.at.0 - self.clocks[number], Event::Woken, number)));
                }
                Plan::Wait(_) => {
                    tally.refused += process.queue;
                    process.queue = 0;
                }
                plan => {
                    process.writing = Some(plan);
                    events.push(Reverse((at + on_the_way, Event::Applied, number)));
                }
            }
        }
        tally.sent.sort_unstable();
        tally.calls = store.calls;
        tally
    }
}

prop_compose! {
    fn worlds()(
        burst in 1_u32..12,
        interval in prop::sample::select(vec![1_000_u64, 1_700, 10_000]),
        processes in 1_usize..6,
        // What is left of the slack is what two clocks may differ by.
        skew in 0_i64..=50,
        latency in 0_i64..120,
        (lost, forgetful) in (0_u32..30, 0_u32..40),
        patient in any::<bool>(),
        alone_after in prop::sample::select(vec![1_u32, 3, 32]),
        seed in any::<u64>(),
    )(
        arrivals in prop::collection::vec((0_i64..interval.cast_signed() * 6, 0..processes), 1..150),
        clocks in {
            let most = (interval.cast_signed() / 100).min(skew);
            prop::collection::vec(-most..=most, processes)
        },
        limits in Just(Limits { burst, interval: Duration::from_millis(interval), daily: 200_000 }),
        (latency, lost, forgetful) in Just((latency, lost, forgetful)),
        (patient, alone_after, seed) in Just((patient, alone_after, seed)),
    ) -> World {
        World { limits, clocks, arrivals, latency, lost, forgetful, patient, alone_after, seed }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// The promise to the platform, whatever happens to processes, and as long as clocks agree to what is left of the slack.
    #[test]
    fn never_more_than_the_limit_in_any_interval(world in worlds()) {
        let tally = world.run();
        let interval = i64::try_from(world.limits.interval.as_millis()).expect("short");
        prop_assert!(tally.most_in_any(interval) <= world.limits.burst as usize, "{tally:?}");
    }

    /// The promise to callers: nothing before the instant, something at it, for a process with a memory and for one
    /// without.
    #[test]
    fn refused_until_exactly_the_promised_instant(
        burst in 1_u32..12,
        daily in 1_u32..40,
        gaps in prop::collection::vec(0_i64..1_500, 1..60),
    ) {
        let limits = Limits { burst, interval: Duration::from_secs(10), daily };
        let (mut store, mut memory, mut now) = (Store::default(), Memory::new(Millis(START)), START);
        for gap in gaps {
            now += gap;
            let planned = plan(&memory, limits, Millis(now), Duration::ZERO, 1);
            if !matches!(planned, Plan::Wait(_)) && admit(&mut store, &mut memory, limits, Millis(now)) {
                continue;
            }
            let Plan::Wait(opening) = plan(&memory, limits, Millis(now), Duration::ZERO, 1) else {
                panic!("refused, and nothing is known that refuses")
            };
            prop_assert!(opening.at.0 > now);
            let before = Millis(opening.at.0 - 1);
            prop_assert!(matches!(plan(&memory, limits, before, Duration::ZERO, 1), Plan::Wait(_)));
            prop_assert!(!admit(&mut store, &mut Memory::new(before), limits, before));
            now = opening.at.0;
            if gap % 2 == 1 {
                memory = Memory::new(opening.at);
            }
            prop_assert!(admit(&mut store, &mut memory, limits, opening.at), "it was promised");
        }
    }

    /// A rewrite, also one into slots of another length, frees no permit before it was due.
    #[test]
    fn a_rewrite_keeps_every_live_permit(
        counts in prop::collection::btree_map(0_i64..80, 1_u32..5, 1..60),
        slot_ms in prop::sample::select(vec![200_i64, 100, 30, 1_200]),
        age in 0_i64..15_000,
        (packed, alone) in any::<(bool, bool)>(),
    ) {
        let limits = Limits { burst: 1_000, interval: Duration::from_secs(10), daily: 200_000 };
        let first = START / slot_ms;
        let slots: Vec<_> = counts.iter().map(|(slot, count)| (first + slot, *count)).collect();
        let (newest, _) = *slots.last().expect("some");
        let now = Millis((newest + 1) * slot_ms - 1 + age);
        let total = counts.values().sum();
        let day = super::counters::Day { used: total, ends: now + Duration::from_hours(1), told: true };
        let seen = Counters { revision: 1, slot_ms, newest, slots, total, day, learnt: None, closed: None, packed };
        // Days that are over force a rewrite where equal slots would not.
        let seen = if slot_ms == 200 { Counters { day: super::counters::Day { ends: now, ..day }, ..seen } } else { seen };
        let mut memory = if alone { Memory::alone_after(0, now) } else { Memory::new(now) };
        memory.saw(Seen::Item(seen.clone()), now);
        let planned = plan(&memory, limits, now, Duration::ZERO, 1);
        let Plan::Rewrite(rewrite) = planned else { panic!("{planned:?}") };
        prop_assert_eq!(rewrite.next.packed, alone);
        let window = Window::new(limits.interval);
        let mut at = now;
        while at < now + Duration::from_secs(12) {
            let due: u32 = seen.slots.iter().filter(|(slot, _)| {
                (slot + 1) * slot_ms + 10_500 > at.0
            }).map(|(_, count)| count).sum();
            let kept = Standing::of(Some(&rewrite.next), limits, at).held();
            let own = u32::from(window.dies_at(rewrite.slot) > at);
            prop_assert!(kept >= due + own, "{kept} of {due} and {own} at {at}");
            at = at + Duration::from_millis(50);
        }
        prop_assert_eq!(rewrite.next.total, rewrite.next.slots.iter().map(|(_, count)| count).sum::<u32>());
    }
}

/// Whether there is a permit at `now`, in as many writes as it takes.
fn admit(store: &mut Store, memory: &mut Memory, limits: Limits, now: Millis) -> bool {
    loop {
        let plan = plan(memory, limits, now, Duration::ZERO, 1);
        if matches!(plan, Plan::Wait(_)) {
            return false;
        }
        match store.apply(&plan) {
            Ok(counters) => {
                memory.applied(&plan, counters, now);
                return true;
            }
            Err(found) => memory.refused(*found, now),
        }
    }
}

const TEN_SECONDS: Limits = Limits { burst: 100, interval: Duration::from_secs(10), daily: 200_000 };

fn four_processes(arrivals: Vec<(i64, usize)>, patient: bool) -> World {
    let (limits, clocks) = (TEN_SECONDS, vec![0; 4]);
    World { limits, clocks, arrivals, latency: 6, lost: 0, forgetful: 0, patient, alone_after: 32, seed: 11 }
}

/// Which of four processes a request comes to.
#[derive(Clone, Copy, PartialEq)]
enum Choice {
    InTurns,
    ByChance,
    /// One process, but for this part of the requests.
    MostlyOne(f64),
}

/// Requests at `per_second`, evenly or by chance, over four processes.
fn traffic(per_second: f64, seconds: f64, choice: Choice) -> Vec<(i64, usize)> {
    let mut random = fastrand::Rng::with_seed(5);
    let (mut at, mut arrivals) = (0.0, Vec::new());
    while at < seconds {
        at += if choice == Choice::InTurns { 1.0 } else { -(1.0 - random.f64()).ln() } / per_second;
        let process = match choice {
            Choice::InTurns => arrivals.len() % 4,
            Choice::ByChance => random.usize(0..4),
            Choice::MostlyOne(others) => {
                if random.f64() < others {
                    random.usize(1..4)
                } else {
                    0
                }
            }
        };
        arrivals.push((Duration::from_secs_f64(at).as_millis().try_into().expect("short"), process));
    }
    arrivals
}

#[test]
fn an_admitted_request_costs_little_more_than_one_call() {
    for (name, per_second, choice, most) in [
        ("sparse, even", 8.0, Choice::InTurns, 1.01),
        ("sparse, by chance", 8.0, Choice::ByChance, 1.05),
        ("near the limit, even", 9.5, Choice::InTurns, 1.05),
        ("near the limit, by chance", 9.5, Choice::ByChance, 1.10),
        ("a few", 0.3, Choice::ByChance, 1.05),
        // Where it is wrong most often that a process is alone.
        ("mostly one, 1 of 10 others", 8.0, Choice::MostlyOne(0.1), 1.05),
        ("mostly one, 1 of 33 others", 8.0, Choice::MostlyOne(0.03), 1.05),
        ("mostly one, 1 of 100 others", 8.0, Choice::MostlyOne(0.01), 1.05),
    ] {
        let by_chance = choice != Choice::InTurns;
        let tally = four_processes(traffic(per_second, 300.0, choice), false).run();
        let calls = tally.calls_per_admitted();
        assert!(calls <= most, "{name}: {calls:.3} calls, {} failed", tally.failed);
        assert!(tally.most_in_any(10_000) <= 100, "{name}");
        assert!(by_chance || tally.refused * 50 < tally.sent.len(), "{name}: {} refused", tally.refused);
    }
}

#[test]
fn under_pressure_nearly_all_that_may_leave_does() {
    let tally = four_processes((0..400_u16).map(|i| (i64::from(i / 10), usize::from(i % 4))).collect(), true).run();
    let first = tally.sent[0];
    let in_25_seconds = tally.sent.iter().filter(|&&at| at < first + 25_000).count();
    assert_eq!((in_25_seconds, tally.most_in_any(10_000)), (300, 100));
    assert!(tally.failed > 0, "nobody was in anybody's way");

    // Evenly spread, a permit that is held for 10.5 to 10.7 s instead of 10 leaves about 94 of 100.
    let steady = four_processes(traffic(12.0, 120.0, Choice::InTurns), false).run();
    assert!(steady.sent.len() >= 1_120, "{} of 1200", steady.sent.len());
    assert!(steady.most_in_any(10_000) <= 100);
}
