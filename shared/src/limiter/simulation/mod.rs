//! Several processes on one resource, and on one share of it, by the rules of [`decision`](super::decision): a store
//! that answers late or not at all, clocks that differ, memories that are lost; and the oracle that counts what left
//! for the platform, and when.

mod engines;
mod store;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;

use self::store::{Answer, Store};
use super::counters::{ClosedEndpoints, Counters, Day};
use super::decision::{Permits, Plan, plan, renewal};
use super::snapshot::{Memory, Snapshot};
use super::window::Window;
use crate::domain::clock::Millis;
use crate::domain::limits::Limits;

const START: i64 = 1_800_000_000_000;

/// A request that comes to a process.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    /// Milliseconds after the start.
    at: i64,
    process: usize,
    /// True if it needs a part of the share too.
    within_share: bool,
}

/// A world to simulate. Times in milliseconds.
#[derive(Clone, Debug)]
struct World {
    limits: Limits,
    /// The burst of the share, in 10 s.
    share: u32,
    /// The lead of each process's clock.
    clocks: Vec<i64>,
    arrivals: Vec<Arrival>,
    /// Longest way to the store and back.
    latency: i64,
    /// Of a hundred answers of the store, how many are lost; of a hundred takes, how many begin without a memory.
    lost: u32,
    forgetful: u32,
    /// True if requests that are refused wait.
    patient: bool,
    seed: u64,
}

/// The two items that a request may need permits of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    Resource,
    Share,
}

/// The waiter queue of one process for one item.
#[derive(Debug, Default)]
struct Queue {
    memory: Memory,
    waiting: VecDeque<usize>,
    writing: Option<Plan>,
    answer: Option<Answer>,
}

/// A request on its way.
#[derive(Debug, Default)]
struct Request {
    part: Option<Permits>,
    /// The resource's permit, while the share's part is exchanged for one of the present.
    permit: Option<Permits>,
    exchange: Option<(Plan, Option<Answer>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival(usize),
    Applied(usize, Of),
    Answered(usize, Of),
    Woken(usize, Of),
    Exchanged(usize),
    ExchangeAnswered(usize),
    GivenBack(i64),
}

/// A request that left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sent {
    /// In true time.
    at: i64,
    within_share: bool,
}

#[derive(Debug, Default)]
struct Tally {
    sent: Vec<Sent>,
    refused: usize,
    calls: usize,
    failed: usize,
    /// Parts of the share that were too old to send on, and were exchanged.
    exchanged: usize,
    /// Permits of the resource that were counted.
    counted: u32,
}

/// The most of `sent`, ascending, that left in any `interval`.
fn most_in_any(interval: i64, sent: impl Iterator<Item = Sent>) -> usize {
    let sent: Vec<i64> = sent.map(|sent| sent.at).collect();
    let within = |(i, at): (usize, &i64)| i + 1 - sent.partition_point(|sent| *sent <= at - interval);
    sent.iter().enumerate().map(within).max().unwrap_or(0)
}

impl Tally {
    fn most_in_any(&self, interval: i64) -> usize {
        most_in_any(interval, self.sent.iter().copied())
    }

    fn most_of_share(&self) -> usize {
        most_in_any(10_000, self.sent.iter().copied().filter(|sent| sent.within_share))
    }

    #[expect(clippy::cast_precision_loss, reason = "a ratio of small numbers")]
    fn calls_per_admitted(&self) -> f64 {
        self.calls as f64 / self.sent.len() as f64
    }
}

/// A world that runs.
struct Run<'a> {
    world: &'a World,
    random: fastrand::Rng,
    stores: BTreeMap<Of, Store>,
    queues: BTreeMap<(usize, Of), Queue>,
    requests: Vec<Request>,
    events: BinaryHeap<Reverse<(i64, Event)>>,
    /// True time.
    at: i64,
    tally: Tally,
}

impl World {
    fn run(&self) -> Tally {
        let arrivals = self.arrivals.iter().enumerate();
        let processes = 0..self.clocks.len();
        let mut run = Run {
            world: self,
            random: fastrand::Rng::with_seed(self.seed),
            stores: [Of::Resource, Of::Share].map(|of| (of, Store::default())).into(),
            queues: processes.flat_map(|p| [Of::Resource, Of::Share].map(|of| ((p, of), Queue::default()))).collect(),
            requests: arrivals.clone().map(|_| Request::default()).collect(),
            events: arrivals.map(|(request, it)| Reverse((START + it.at, Event::Arrival(request)))).collect(),
            at: START,
            tally: Tally::default(),
        };
        while let Some(Reverse((at, event))) = run.events.pop() {
            let calls: usize = run.stores.values().map(|store| store.calls).sum();
            assert!(at < START + 3_600_000 && calls < 100_000, "it never ends");
            run.at = at;
            run.handle(event);
        }
        run.tally.sent.sort_unstable();
        run.tally.calls = run.stores.values().map(|store| store.calls).sum();
        run.tally.counted = run.stores[&Of::Resource].item.as_ref().map_or(0, |item| item.day.used);
        run.tally
    }
}

impl Run<'_> {
    fn clock(&self, process: usize) -> Millis {
        Millis(self.at + self.world.clocks[process])
    }

    fn limits(&self, of: Of) -> Limits {
        match of {
            Of::Resource => self.world.limits,
            Of::Share => Limits { burst: self.world.share, interval: Duration::from_secs(10), daily: u32::MAX },
        }
    }

    fn on_the_way(&mut self) -> i64 {
        self.random.i64(0..=self.world.latency / 2)
    }

    fn is_lost(&mut self) -> bool {
        self.random.u32(0..100) < self.world.lost
    }

    fn later(&mut self, event: Event) {
        let at = self.at + self.on_the_way();
        self.events.push(Reverse((at, event)));
    }

    fn queue(&mut self, process: usize, of: Of) -> &mut Queue {
        self.queues.get_mut(&(process, of)).expect("made at the start")
    }

    fn store(&mut self, of: Of) -> &mut Store {
        self.stores.get_mut(&of).expect("made at the start")
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrival(request) => {
                let Arrival { process, within_share, .. } = self.world.arrivals[request];
                let of = if within_share { Of::Share } else { Of::Resource };
                self.queue(process, of).waiting.push_back(request);
                self.advance(process, of);
            }
            Event::Woken(process, of) => self.advance(process, of),
            Event::Applied(process, of) => {
                let written = self.queue(process, of).writing.clone().expect("a write");
                let answer = self.store(of).apply(&written);
                self.tally.failed += usize::from(answer.is_err());
                self.queue(process, of).answer = Some(answer);
                self.later(Event::Answered(process, of));
            }
            Event::Answered(process, of) => {
                self.answered(process, of);
                self.advance(process, of);
            }
            Event::Exchanged(request) => {
                let (plan, _) = self.requests[request].exchange.take().expect("an exchange");
                let answer = self.store(Of::Share).apply(&plan);
                self.requests[request].exchange = Some((plan, Some(answer)));
                self.later(Event::ExchangeAnswered(request));
            }
            Event::ExchangeAnswered(request) => self.exchanged(request),
            Event::GivenBack(slot) => {
                let slot_ms = Window::new(Duration::from_secs(10)).slot_ms();
                let _ = self.store(Of::Share).give_back(slot, slot_ms);
            }
        }
    }

    /// Does a batcher's work: writes for the requests that wait, or waits or refuses.
    fn advance(&mut self, process: usize, of: Of) {
        let (now, limits) = (self.clock(process), self.limits(of));
        let forgets = self.random.u32(0..100) < self.world.forgetful;
        let patient = self.world.patient;
        let queue = self.queue(process, of);
        if queue.writing.is_some() || queue.waiting.is_empty() {
            return;
        }
        if forgets {
            queue.memory = Memory::default();
        }
        let wanted = u32::try_from(queue.waiting.len()).expect("few");
        match plan(queue.memory.snapshot(), limits, now, Duration::ZERO, wanted) {
            Plan::Wait if patient => {
                let at = queue.memory.snapshot().expect("known to be full").next_available(0, now).at;
                let at = at.0 - self.world.clocks[process];
                self.events.push(Reverse((at, Event::Woken(process, of))));
            }
            Plan::Wait => {
                let refused = std::mem::take(&mut queue.waiting);
                self.tally.refused += refused.len();
                for request in refused {
                    self.give_back_part(request);
                }
            }
            plan => {
                queue.writing = Some(plan);
                self.later(Event::Applied(process, of));
            }
        }
    }

    fn answered(&mut self, process: usize, of: Of) {
        let (now, limits, is_lost) = (self.clock(process), self.limits(of), self.is_lost());
        let queue = self.queue(process, of);
        let written = queue.writing.take().expect("a write");
        match queue.answer.take().expect("an answer") {
            _ if is_lost => queue.waiting.clear(),
            Err(found) => queue.memory.saw(*found, limits, now),
            Ok(counters) => {
                queue.memory.saw(Some(counters), limits, now);
                let permits = written.permits().expect("a wait is not written");
                for _ in 0..permits.count {
                    self.grant(process, of, permits);
                }
            }
        }
    }

    /// A permit for the first request that waits.
    fn grant(&mut self, process: usize, of: Of, permit: Permits) {
        if self.clock(process) > permit.send_by {
            return;
        }
        let Some(request) = self.queue(process, of).waiting.pop_front() else { return };
        match of {
            Of::Share => {
                self.requests[request].part = Some(permit);
                self.queue(process, Of::Resource).waiting.push_back(request);
                self.advance(process, Of::Resource);
            }
            Of::Resource if self.world.arrivals[request].within_share => {
                self.requests[request].permit = Some(permit);
                self.send_or_exchange(request);
            }
            Of::Resource => self.send(request, permit.send_by),
        }
    }

    /// With both parts in hand: sends, or exchanges the share's part if it is too old.
    fn send_or_exchange(&mut self, request: usize) {
        let process = self.world.arrivals[request].process;
        let now = self.clock(process);
        let Request { part: Some(part), permit: Some(permit), .. } = self.requests[request] else { panic!("no parts") };
        if now <= part.send_by {
            self.send(request, part.send_by.min(permit.send_by));
            return;
        }
        let share = self.limits(Of::Share);
        match renewal(self.queue(process, Of::Share).memory.snapshot(), share, now, part.slot) {
            Plan::Wait => {
                self.give_back_part(request);
                self.requests[request].permit = None;
                self.grant(process, Of::Resource, permit);
                if self.world.patient {
                    self.queue(process, Of::Share).waiting.push_back(request);
                    self.advance(process, Of::Share);
                } else {
                    self.tally.refused += 1;
                }
            }
            plan => {
                self.requests[request].exchange = Some((plan, None));
                self.later(Event::Exchanged(request));
            }
        }
    }

    fn exchanged(&mut self, request: usize) {
        let process = self.world.arrivals[request].process;
        let (now, share, is_lost) = (self.clock(process), self.limits(Of::Share), self.is_lost());
        let (plan, answer) = self.requests[request].exchange.take().expect("an exchange");
        match answer.expect("an answer") {
            _ if is_lost => return,
            Err(found) => self.queue(process, Of::Share).memory.saw(*found, share, now),
            Ok(counters) => {
                self.queue(process, Of::Share).memory.saw(Some(counters), share, now);
                self.requests[request].part = plan.permits();
                self.tally.exchanged += 1;
            }
        }
        self.send_or_exchange(request);
    }

    fn give_back_part(&mut self, request: usize) {
        if let Some(part) = self.requests[request].part.take() {
            self.later(Event::GivenBack(part.slot));
        }
    }

    /// Leaves at some instant until `send_by`, or is too late.
    fn send(&mut self, request: usize, send_by: Millis) {
        let Arrival { process, within_share, .. } = self.world.arrivals[request];
        let now = self.clock(process);
        if now <= send_by {
            let at = self.random.i64(now.0..=send_by.0) - self.world.clocks[process];
            self.tally.sent.push(Sent { at, within_share });
        }
    }
}

prop_compose! {
    fn worlds()(
        burst in 1_u32..12,
        share in 1_u32..6,
        interval in prop::sample::select(vec![1_000_u64, 1_700, 10_000]),
        processes in 1_usize..6,
        // Of the clock tolerance, in percent.
        skew in 0_i64..=100,
        latency in 0_i64..120,
        (lost, forgetful) in (0_u32..30, 0_u32..40),
        (patient, shared) in any::<(bool, bool)>(),
        seed in any::<u64>(),
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
        limits in Just(Limits { burst, interval: Duration::from_millis(interval), daily: 200_000 }),
        (share, latency, lost, forgetful, patient, seed) in Just((share, latency, lost, forgetful, patient, seed)),
    ) -> World {
        World { limits, share, clocks, arrivals, latency, lost, forgetful, patient, seed }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// The promises to the platform and about shares, whatever happens to processes, as long as clocks agree to within
    /// the clock tolerance.
    #[test]
    fn never_more_than_the_limit_in_any_interval(world in worlds()) {
        let tally = world.run();
        let interval = i64::try_from(world.limits.interval.as_millis()).expect("short");
        prop_assert!(tally.most_in_any(interval) <= world.limits.burst as usize, "{tally:?}");
        prop_assert!(tally.most_of_share() <= world.share as usize, "{tally:?}");
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
        let (mut store, mut memory, mut now) = (Store::default(), Memory::default(), START);
        let plan_at = |memory: &Memory, now| plan(memory.snapshot(), limits, now, Duration::ZERO, 1);
        for gap in gaps {
            now += gap;
            if !matches!(plan_at(&memory, Millis(now)), Plan::Wait) && admit(&mut store, &mut memory, limits, Millis(now)) {
                continue;
            }
            prop_assert!(matches!(plan_at(&memory, Millis(now)), Plan::Wait), "refused, and nothing known refuses");
            let next = memory.snapshot().expect("known").next_available(0, Millis(now)).at;
            prop_assert!(next.0 > now);
            let before = Millis(next.0 - 1);
            prop_assert!(matches!(plan_at(&memory, before), Plan::Wait));
            prop_assert!(!admit(&mut store, &mut Memory::default(), limits, before));
            now = next.0;
            if gap % 2 == 1 {
                memory = Memory::default();
            }
            prop_assert!(admit(&mut store, &mut memory, limits, next), "it was promised");
        }
    }

    /// A rewrite, also one into slots of another length, frees no permit before it was due.
    #[test]
    fn a_rewrite_keeps_every_live_permit(
        counts in prop::collection::btree_map(0_i64..80, 1_u32..5, 1..60),
        slot_ms in prop::sample::select(vec![200_i64, 100, 30, 1_200]),
        age in 0_i64..15_000,
    ) {
        let limits = Limits { burst: 1_000, interval: Duration::from_secs(10), daily: 200_000 };
        let first = START / slot_ms;
        let slots: Vec<_> = counts.iter().map(|(slot, count)| (first + slot, *count)).collect();
        let (newest, _) = *slots.last().expect("some");
        let now = Millis((newest + 1) * slot_ms - 1 + age);
        let counted = counts.values().sum();
        // Days that are over force a rewrite where equal slots would not.
        let ends = if slot_ms == 200 { now } else { now + Duration::from_hours(1) };
        let seen = Counters {
            revision: 1,
            slot_ms,
            newest,
            slots,
            counted,
            day: Day { used: counted, ends, told: true },
            observed: None,
            closed: None,
            closed_endpoints: ClosedEndpoints::new(),
        };
        let snapshot = Snapshot::of(Some(seen.clone()), limits, now);
        let planned = plan(Some(&snapshot), limits, now, Duration::ZERO, 1);
        let Plan::Rewrite(rewrite) = planned else { panic!("{planned:?}") };
        let window = Window::new(limits.interval);
        let next = Snapshot::of(Some(rewrite.next.clone()), limits, now);
        let mut at = now;
        while at < now + Duration::from_secs(12) {
            let due: u32 = seen.slots.iter().filter(|(slot, _)| {
                (slot + 1) * slot_ms + 10_500 > at.0
            }).map(|(_, count)| count).sum();
            let kept = next.live(at);
            let own = u32::from(window.expires_at(rewrite.permits.slot) > at);
            prop_assert!(kept >= due + own, "{kept} of {due} and {own} at {at}");
            at = at + Duration::from_millis(50);
        }
        prop_assert_eq!(rewrite.next.counted, rewrite.next.slots.iter().map(|(_, count)| count).sum::<u32>());
    }
}

/// True if there is a permit at `now`, in as many writes as it takes.
fn admit(store: &mut Store, memory: &mut Memory, limits: Limits, now: Millis) -> bool {
    loop {
        let plan = plan(memory.snapshot(), limits, now, Duration::ZERO, 1);
        if matches!(plan, Plan::Wait) {
            return false;
        }
        match store.apply(&plan) {
            Ok(counters) => {
                memory.saw(Some(counters), limits, now);
                return true;
            }
            Err(found) => memory.saw(*found, limits, now),
        }
    }
}

const TEN_SECONDS: Limits = Limits { burst: 100, interval: Duration::from_secs(10), daily: 200_000 };

fn four_processes(arrivals: Vec<Arrival>, patient: bool) -> World {
    let (limits, clocks) = (TEN_SECONDS, vec![0; 4]);
    World { limits, share: 10, clocks, arrivals, latency: 6, lost: 0, forgetful: 0, patient, seed: 11 }
}

/// `count` requests at the same instant, in turns over `processes`.
fn volley(at: i64, count: usize, processes: usize, within_share: bool) -> impl Iterator<Item = Arrival> + Clone {
    (0..count).map(move |i| Arrival { at, process: i % processes, within_share })
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
fn traffic(per_second: f64, seconds: f64, choice: Choice) -> Vec<Arrival> {
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
        let at = Duration::from_secs_f64(at).as_millis().try_into().expect("short");
        arrivals.push(Arrival { at, process, within_share: false });
    }
    arrivals
}

#[test]
fn an_admitted_request_costs_little_more_than_one_call() {
    let bursts = (0..20).flat_map(|i| volley(i * 11_000, 100, 4, false)).collect();
    let spread = (0..20).flat_map(|i| (0..10).flat_map(move |j| volley(i * 11_000 + j * 40, 10, 4, false))).collect();
    for (name, arrivals, most) in [
        ("sparse, even", traffic(8.0, 300.0, Choice::InTurns), 1.05),
        ("sparse, by chance", traffic(8.0, 300.0, Choice::ByChance), 1.05),
        ("near the limit, even", traffic(9.5, 300.0, Choice::InTurns), 1.05),
        ("near the limit, by chance", traffic(9.5, 300.0, Choice::ByChance), 1.10),
        ("a few", traffic(0.3, 300.0, Choice::ByChance), 1.05),
        ("mostly one, 1 of 10 others", traffic(8.0, 300.0, Choice::MostlyOne(0.1)), 1.05),
        ("mostly one, 1 of 100 others", traffic(8.0, 300.0, Choice::MostlyOne(0.01)), 1.05),
        ("bursts of 100", bursts, 1.05),
        ("bursts of 100 within half a second", spread, 1.05),
    ] {
        let is_even = name.ends_with("even");
        let tally = four_processes(arrivals, false).run();
        let calls = tally.calls_per_admitted();
        assert!(calls <= most, "{name}: {calls:.3} calls, {} failed", tally.failed);
        assert!(tally.most_in_any(10_000) <= 100, "{name}");
        assert!(!is_even || tally.refused * 50 < tally.sent.len(), "{name}: {} refused", tally.refused);
    }
}

#[test]
fn under_pressure_nearly_all_that_may_leave_does() {
    let arrivals = (0..40).flat_map(|at| volley(at, 10, 4, false)).collect();
    let tally = four_processes(arrivals, true).run();
    let first = tally.sent[0].at;
    let in_25_seconds = tally.sent.iter().filter(|sent| sent.at < first + 25_000).count();
    assert_eq!((in_25_seconds, tally.most_in_any(10_000)), (300, 100));
    assert!(tally.failed > 0, "nobody was in anybody's way");

    // Evenly spread, a permit that is counted for 10.5 to 10.7 s instead of 10 leaves about 94 of 100.
    let steady = four_processes(traffic(12.0, 120.0, Choice::InTurns), false).run();
    assert!(steady.sent.len() >= 1_120, "{} of 1200", steady.sent.len());
    assert!(steady.most_in_any(10_000) <= 100);
}

/// Two processes that always want all they can get, with clocks that are so far apart.
fn at_most_with_clocks_apart(apart: i64) -> usize {
    let arrivals = (0..60_000).step_by(5).flat_map(|at| volley(at, 2, 2, false)).collect();
    let worlds = (0..20).map(|seed| {
        let clocks = vec![-apart / 2, apart - apart / 2];
        World { clocks, latency: 40, seed, ..four_processes(Vec::clone(&arrivals), false) }
    });
    worlds.map(|world| world.run().most_in_any(10_000)).max().expect("some")
}

#[test]
fn the_limit_holds_to_the_edge_of_the_clock_tolerance_and_not_beyond() {
    let edge = Window::new(TEN_SECONDS.interval).clock_tolerance_ms();
    assert_eq!(edge, 300);
    assert_eq!(at_most_with_clocks_apart(0), 100);
    assert_eq!(at_most_with_clocks_apart(edge), 100);
    let beyond = at_most_with_clocks_apart(1_000);
    assert!(beyond > 100, "{beyond} with clocks that are 1 s apart: the oracle sees nothing");
}

#[test]
fn a_share_holds_for_requests_that_waited_behind_a_full_resource() {
    // Others use up the resource; ten of the share wait for it, and nine more wait for the share, whose first parts
    // expire 0.2 s before the resource is free.
    let full = volley(0, 100, 1, false);
    for waited in [100, 300, 1_000, 5_000, 9_000, 10_000] {
        let arrivals = full.clone().chain(volley(waited, 10, 2, true)).chain(volley(waited + 50, 9, 2, true));
        let world = World { clocks: vec![0; 2], ..four_processes(arrivals.collect(), true) };
        let tally = world.run();
        assert_eq!((tally.sent.len(), tally.most_of_share()), (119, 10), "{waited}: {tally:?}");
        assert!(tally.exchanged > 0, "{waited}: no part grew old");
    }
}

#[test]
fn a_share_wastes_nothing_of_a_resource_that_has_room() {
    let arrivals = (0..60_000).step_by(150).flat_map(|at| volley(at, 1, 3, true)).collect();
    let world = World { clocks: vec![0; 3], share: 10, ..four_processes(arrivals, false) };
    let tally = world.run();
    assert!(tally.refused > 300 && tally.sent.len() > 50, "{} sent, {} refused", tally.sent.len(), tally.refused);
    assert_eq!((tally.counted as usize, tally.most_of_share()), (tally.sent.len(), 10));
}
