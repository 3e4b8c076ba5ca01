use super::*;

const SECOND: i64 = 1_000;

fn at(seconds: i64) -> Millis {
    Millis(1_800_000_000_000 + seconds * SECOND)
}

/// Sends requests of this priority as early as possible until `end`. Returns their times in seconds.
fn run(pace: &mut Pace, priority: Priority, ceiling: Option<u32>, end: i64) -> Vec<i64> {
    let (mut times, mut now) = (Vec::new(), at(0));
    while now <= at(end) {
        let limit = pace.limit(ceiling, now).expect("a limit");
        let earliest = pace.earliest(priority, limit, now);
        if earliest > now {
            now = earliest;
            continue;
        }
        *pace = pace.sent_one(priority, limit, now);
        times.push((now.0 - at(0).0) / SECOND);
    }
    times
}

#[test]
fn no_minute_has_more_than_the_limit_whoever_sends_and_when() {
    let mut random = fastrand::Rng::with_seed(7);
    for limit in [1, 2, 3, 5, 10, 30, 31, 47, 100, 601, 6_000] {
        let (mut pace, mut now, mut left) = (Pace::default(), at(0), Vec::new());
        let all = usize::try_from(limit * 3).expect("few").min(2_000);
        while left.len() < all {
            now = now + Duration::from_millis(random.u64(..=120_000 / u64::from(limit)));
            let priority = random.choice(Priority::ALL).expect("one");
            if pace.earliest(priority, limit, now) <= now {
                pace = pace.sent_one(priority, limit, now);
                // The request leaves at any time of its permit's life.
                left.push(now + PERMIT_LIFE.mul_f64(random.f64()));
                assert!(pace.sent.len() <= MOST_REMEMBERED as usize, "{limit}");
            }
        }
        left.sort();
        let most = left
            .iter()
            .map(|from| left.iter().filter(|at| **at >= *from && **at < *from + Duration::from_mins(1)).count());
        assert!(most.max().unwrap_or(0) <= limit as usize, "{limit}");
    }
}

#[test]
fn the_schedule_is_spaced_and_uses_the_whole_limit() {
    let mut pace = Pace::default();
    assert_eq!(run(&mut pace, Priority::Schedule, Some(5), 75), [0, 11, 23, 34, 49, 61, 73]);
    let mut pace = Pace::default();
    assert_eq!(run(&mut pace, Priority::Schedule, Some(600), 25).len(), 245);
}

#[test]
fn a_lost_answer_finds_a_place_within_its_grace_whatever_was_sent_before() {
    for priority in [Priority::Schedule, Priority::Exchange, Priority::Caller] {
        for limit in [2, 3, 5, 12, 30, 100] {
            for end in 0..130 {
                let mut pace = Pace::default();
                run(&mut pace, priority, Some(limit), end);
                let now = at(end);
                let wait = pace.earliest(Priority::Replay, limit, now).since(now);
                assert!(wait <= REPLAY_WAIT, "{priority:?} at {limit} a minute, after {end} s: {wait:?}");
            }
        }
    }
    let mut pace = Pace::default();
    assert_eq!(run(&mut pace, Priority::Caller, Some(5), 70), [0, 0, 0, 0, 49, 61, 61, 61]);
}

#[test]
fn two_thousand_due_renewals_use_the_whole_pace_and_hold_up_no_urgent_request() {
    const STEP: Duration = Duration::from_millis(500);
    let (mut random, limit) = (fastrand::Rng::with_seed(3), PUBLISHED);
    let (mut pace, mut now, mut due, mut sent) = (Pace::default(), at(0), 2_000, Vec::new());
    // The requests that wait, and since when.
    let mut urgent: Vec<(Priority, Millis)> = Vec::new();
    let mut longest = [Duration::ZERO; Priority::ALL.len()];
    while due > 0 || !urgent.is_empty() {
        now = now + STEP;
        for (priority, one_in) in [(Priority::Caller, 400), (Priority::Exchange, 900), (Priority::Replay, 600)] {
            if random.u32(..one_in) == 0 {
                urgent.push((priority, now));
            }
        }
        // The processes come in any order. The pace alone decides whose turn it is.
        let mut waiting = std::mem::take(&mut urgent);
        waiting.extend((due > 0).then_some((Priority::Schedule, now)));
        random.shuffle(&mut waiting);
        for (priority, since) in waiting {
            let earliest = pace.earliest(priority, limit, now);
            if earliest <= now {
                pace = pace.sent_one(priority, limit, now);
                sent.push(now);
                due -= u32::from(priority == Priority::Schedule);
                longest[priority as usize] = longest[priority as usize].max(now.since(since));
            } else {
                pace = pace.announced(priority, earliest, now).unwrap_or(pace);
                urgent.extend((priority != Priority::Schedule).then_some((priority, since)));
            }
        }
    }
    for window in sent.windows(limit as usize + 1) {
        assert!(window[limit as usize].since(window[0]) > Duration::from_mins(1));
    }
    let least = WINDOW / limit * u32::try_from(sent.len()).expect("few");
    assert!(now.since(at(0)) < least.mul_f64(1.1), "{now} after {least:?}");
    assert!(longest[Priority::Replay as usize] <= Duration::from_secs(25), "{longest:?}");
    assert!(longest[Priority::Caller as usize] <= WINDOW, "{longest:?}");
}

#[test]
fn lower_priorities_leave_the_next_place_to_a_request_that_waits() {
    let mut pace = Pace::default();
    run(&mut pace, Priority::Schedule, Some(5), 50);
    let now = at(51);
    let free = pace.earliest(Priority::Caller, 5, now);
    assert_eq!(free, at(0) + WINDOW);
    assert_eq!(pace.announced(Priority::Schedule, free, now), None, "the schedule never announces");
    let pace = pace.announced(Priority::Caller, free, now).expect("news");
    assert_eq!(pace.announced(Priority::Caller, free, now), None, "known");
    assert_eq!(pace.announced(Priority::Exchange, free, now), None, "a higher priority waits");
    for priority in [Priority::Schedule, Priority::Exchange] {
        assert!(pace.earliest(priority, 5, now) >= free + ANNOUNCED, "{priority:?}");
    }
    for priority in [Priority::Caller, Priority::Replay] {
        assert_eq!(pace.earliest(priority, 5, now), free, "{priority:?}");
    }
    let served = pace.sent_one(Priority::Caller, 5, free);
    assert_eq!(served.waiting, None);
    let higher = pace.announced(Priority::Replay, free, now).expect("news");
    assert_eq!(higher.sent_one(Priority::Caller, 5, now).waiting, higher.waiting, "the replay waits on");
}

#[test]
fn the_first_429_sets_the_published_limit_and_a_pause() {
    let now = at(0);
    assert_eq!(Pace::default().limit(None, now), None);
    for (retry_after, ceiling, limit, pause) in [
        (None, None, 5, WINDOW),
        (Some(10), None, 5, Duration::from_secs(11)),
        (Some(36_000), None, 5, LONGEST_PAUSE + ROUNDING),
        (None, Some(3), 3, WINDOW),
    ] {
        let retry_after = retry_after.map(Duration::from_secs);
        let throttle = |pace: &Pace, at: Millis| pace.throttled(Priority::Schedule, at, retry_after, ceiling, at);
        let pace = throttle(&Pace::default(), now).expect("news");
        assert_eq!(pace.limit(ceiling, now), Some(limit), "{retry_after:?}");
        assert_eq!(pace.earliest(Priority::Caller, limit, now), now + pause, "{retry_after:?}");
        let of_replay = pace.earliest(Priority::Replay, limit, now);
        assert_eq!(of_replay, now + REPLAY_PAUSE, "the grace of a lost answer may end before the pause");
        let under_way = throttle(&pace, now + SAME_MOMENT).unwrap_or(pace.clone());
        assert_eq!((under_way.learnt, under_way.throttled_at), (pace.learnt, now), "nothing new, except a pause");
        assert_eq!(pace.limit(None, now + LAPSE), None, "a day without need");
    }
    let (limit, later) = (5, now + Duration::from_hours(20));
    let busy = (0..3).fold(slowed(None), |pace, _| pace.sent_one(Priority::Caller, limit, later));
    assert_eq!(busy.limit(None, now + LAPSE), Some(5), "more than half of a minute was used");
}

/// A pace whose limit was learnt at `at(0)`.
fn slowed(ceiling: Option<u32>) -> Pace {
    let now = at(0);
    Pace::default().throttled(Priority::Schedule, now, Some(Duration::ZERO), ceiling, now).expect("news")
}

#[test]
fn a_429_to_a_limit_that_is_hardly_used_changes_no_limit() {
    let learnt = LearntLimit { limit: 40, proven: 40, raise_after: at(0), lapses_at: at(90_000) };
    let unused = Pace { learnt: Some(learnt), ..Pace::default() };
    let paused = unused.throttled(Priority::Schedule, at(0), None, None, at(0)).expect("news");
    assert_eq!((paused.learnt, paused.paused_until), (Some(learnt), at(0) + WINDOW));
    let used = Pace { sent: (0..20).map(|second| at(second - 20)).collect(), ..unused };
    let slower = used.throttled(Priority::Schedule, at(0), None, None, at(0)).expect("news");
    assert!(slower.learnt.is_some_and(|learnt| learnt.limit < 40), "{slower:?}");
}

#[test]
fn minting_counts_only_after_it_was_answered_429_itself() {
    let (now, later) = (at(0), at(1));
    assert_eq!(Pace::default().throttled(Priority::Minting, now, None, None, now), None, "no pace, nothing to count");
    let pace = slowed(None);
    assert_eq!((pace.limit_of(Priority::Minting, None, now), pace.limit(None, now)), (None, Some(5)));
    let counted = pace.throttled(Priority::Minting, now, Some(WINDOW), None, now).expect("news");
    assert_eq!(counted.limit_of(Priority::Minting, None, now), Some(5));
    assert_eq!((counted.learnt, counted.paused_until), (pace.learnt, pace.paused_until), "nothing else is learnt");
    let closed = counted.throttled(Priority::Minting, later, Some(WINDOW), None, later).expect("news");
    assert!(closed.paused_until > later + WINDOW, "a minting that counted teaches as any other request");
    assert_eq!(counted.limit_of(Priority::Minting, None, now + MINTING_COUNTS), None);
}

#[test]
fn a_limit_that_is_used_up_is_raised_until_the_platform_answers_429() {
    let mut pace = slowed(None);
    let mut now = at(2);
    let mut limits = Vec::new();
    // The platform takes 23 a minute, and answers 429 to all others.
    let (mut taken, mut refused) = (Vec::new(), Vec::new());
    while now < at(30 * 60) {
        let limit = pace.limit(None, now).expect("a limit");
        if limits.last() != Some(&limit) {
            limits.push(limit);
        }
        let earliest = pace.earliest(Priority::Schedule, limit, now);
        if earliest > now {
            match pace.raised(None, now) {
                Some(raised) => pace = raised,
                None => now = (now + Duration::from_secs(1)).min(earliest),
            }
            continue;
        }
        pace = pace.sent_one(Priority::Schedule, limit, now);
        taken.retain(|at| *at + Duration::from_mins(1) > now);
        if taken.len() < 23 {
            taken.push(now);
        } else {
            refused.push(now);
            pace = pace.throttled(Priority::Schedule, now, None, None, now).unwrap_or(pace);
        }
    }
    assert_eq!(limits, [5, 10, 20, 40, 20, 40, 20]);
    assert_eq!(refused.len(), 2, "one in a quarter of an hour: {refused:?}");
    assert!(refused[0] < at(900) && refused[1] >= refused[0] + RETRY_RAISE);
}

#[test]
fn a_limit_is_raised_although_spaced_requests_leave_some_places_unused() {
    let (limit, now) = (160, at(100));
    let learnt = LearntLimit { limit, proven: limit, raise_after: at(0), lapses_at: at(90_000) };
    for (apart, is_raised) in [(450, true), (900, false)] {
        let sent = (0..30).rev().map(|n| now - Duration::from_millis(n * apart)).collect();
        let pace = Pace { learnt: Some(learnt), sent, ..Pace::default() };
        assert_eq!(pace.raised(None, now).is_some(), is_raised, "a request each {apart} ms");
    }
}

#[test]
fn a_ceiling_holds_without_any_429_and_above_all_raises() {
    let now = at(0);
    assert_eq!(Pace::default().limit(Some(7), now), Some(7));
    let mut pace = slowed(Some(7));
    let times = run(&mut pace, Priority::Schedule, Some(7), 400);
    assert!(times.len() > 30);
    assert_eq!(pace.limit(Some(3), now), Some(3), "a ceiling below the learnt limit");
    let raised = pace.raised(Some(7), at(400)).expect("a raise");
    assert_eq!(raised.learnt.map(|learnt| learnt.limit), Some(7));
    let unused = Pace { sent: Vec::new(), ..pace };
    assert_eq!(unused.raised(Some(7), at(400)), None, "a limit that is not used up proves nothing");
}

#[test]
fn five_a_minute_carry_five_thousand_installations() {
    assert_eq!(installations_carried(PUBLISHED), 5_040);
}
