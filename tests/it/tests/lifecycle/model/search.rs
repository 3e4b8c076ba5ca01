//! The exhaustive search; the product's design, which the search proves right; and designs that it proves wrong.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher as _};

use super::item::Design;
use super::provider::Mode;

use super::{Budget, World};

/// Searches every order of events, breadth first. Returns the number of states, or the shortest way to a violation.
///
/// Only the hash of a known state is kept: the chance that two of a million states share a 64-bit hash is one in ten
/// million. All workers are alike, so states that differ only by the order of the workers are searched once.
fn search(design: Design, mode: Mode, budget: Budget) -> Result<usize, String> {
    let mut known = HashSet::new();
    let mut trail = vec![(0, "begin")];
    let mut frontier = VecDeque::from([(World::new(mode, budget), 0)]);
    while let Some((world, from)) = frontier.pop_front() {
        for (name, is_write, mut after) in world.steps(design) {
            if let Some(violation) = world.violation(is_write, &after) {
                return Err(story(&trail, from, name, violation));
            }
            after.workers.sort_by_cached_key(hash);
            if known.insert(hash(&after)) {
                trail.push((from, name));
                frontier.push_back((after, trail.len() - 1));
            }
        }
    }
    Ok(trail.len())
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The names of the steps that lead to a violation.
fn story(trail: &[(usize, &'static str)], from: usize, last: &str, violation: &str) -> String {
    let (mut at, mut names) = (from, vec![last]);
    while at > 0 {
        names.push(trail[at].1);
        at = trail[at].0;
    }
    names.reverse();
    format!("{violation}: {}", names.join(" → "))
}

const NONE: Budget = Budget {
    claims: 0,
    crashes: 0,
    lost: 0,
    ghosts: 0,
    odd: 0,
    ambiguous: 0,
    rescues: 0,
    installs: 0,
    uninstalls: 0,
    ticks: 0,
};
/// Faults of the network.
const NETWORK: Budget = Budget { claims: 3, crashes: 1, lost: 2, ghosts: 1, ambiguous: 1, ticks: 2, ..NONE };
/// Unknown answers of the platform.
const ODD: Budget = Budget { claims: 3, crashes: 1, lost: 1, odd: 2, ticks: 2, ..NONE };
/// Customers who install and uninstall during refreshes.
const PEOPLE: Budget = Budget { claims: 2, ambiguous: 1, installs: 2, uninstalls: 1, ticks: 1, ..NONE };
/// A table that fails after the platform has granted a pair.
const RESCUE: Budget = Budget { claims: 2, rescues: 2, installs: 1, uninstalls: 1, ticks: 2, ..NONE };
/// Three workers that hold a grant of the same generation, and a standby pair.
const THREE: Budget = Budget { claims: 4, ticks: 3, ..NONE };
const ALL: [Budget; 5] = [NETWORK, ODD, PEOPLE, RESCUE, THREE];
const MODES: [Mode; 4] = [Mode::Strict, Mode::FamilyRevoking, Mode::Forgiving, Mode::Reissuing];

/// Asserts for every order of events: no write discards the last live token, only a newer install revives an
/// installation, and no installation with a live grant is marked.
fn holds(mode: Mode, budgets: &[Budget]) {
    for &budget in budgets {
        match search(Design::ByVersion, mode, budget) {
            Ok(states) => assert!(states > 500, "{budget:?}: only {states} states"),
            Err(story) => panic!("{budget:?}: {story}"),
        }
    }
}

#[test]
fn holds_with_a_strict_platform() {
    holds(Mode::Strict, &ALL);
}

#[test]
fn holds_with_a_forgiving_platform() {
    holds(Mode::Forgiving, &ALL);
}

/// Races only, without lost answers: in this mode a lost answer kills a pair that was granted before, and the holder of
/// that pair cannot know it.
#[test]
fn holds_with_a_platform_that_answers_another_token_each_time() {
    holds(Mode::Reissuing, &[Budget { odd: 1, ..THREE }, PEOPLE, RESCUE]);
}

#[test]
fn holds_with_a_platform_that_revokes_families() {
    holds(Mode::FamilyRevoking, &ALL);
}

/// The shortest ways in which a design fails, one for each platform mode and budget in which it fails.
fn failures(design: Design) -> Vec<String> {
    MODES
        .into_iter()
        .flat_map(|mode| [NETWORK, PEOPLE, RESCUE].map(|budget| search(design, mode, budget).err()))
        .flatten()
        .collect()
}

#[test]
fn a_blind_write_revives_what_was_uninstalled_and_discards_live_tokens() {
    let failures = failures(Design::BlindWrite);
    assert!(failures.iter().any(|story| story.starts_with("an uninstalled")), "{failures:#?}");
    assert!(failures.iter().any(|story| story.starts_with("a write discards")), "{failures:#?}");
}

#[test]
fn a_commit_only_by_the_holder_of_the_lease_discards_a_live_token_without_any_crash() {
    let calm = Budget { claims: 2, ticks: 1, ..NONE };
    let failure = search(Design::ByLeaseHolder, Mode::Strict, calm).expect_err("it is known to fail");
    assert!(failure.starts_with("a write discards the last live token"), "{failure}");
    assert_eq!(search(Design::ByVersion, Mode::Strict, calm).err(), None);
}

#[test]
fn giving_up_after_unanswered_tries_marks_a_live_grant() {
    let failure = search(Design::GivesUpUnanswered, Mode::Strict, NETWORK).expect_err("it is known to fail");
    assert!(failure.starts_with("marked for a new authorization"), "{failure}");
}

#[test]
fn dropping_the_pair_that_comes_second_discards_the_live_one() {
    let failure = search(Design::DropsTheSecond, Mode::Reissuing, NETWORK).expect_err("it is known to fail");
    assert!(failure.starts_with("a write discards the last live token"), "{failure}");
}

/// Three processes are granted a pair for the same token. Room for one standby pair is then too little, with any
/// platform that answers another pair each time.
#[test]
fn room_for_one_standby_pair_discards_the_live_one_of_three() {
    let failure = search(Design::OneStandby, Mode::Reissuing, THREE).expect_err("it is known to fail");
    assert!(failure.starts_with("a write discards the last live token"), "{failure}");
}

#[test]
fn a_pair_that_comes_after_a_standby_pair_took_over_is_not_history() {
    let failure = search(Design::ForgetsTheGrantor, Mode::Reissuing, THREE).expect_err("it is known to fail");
    assert!(failure.starts_with("a write discards the last live token"), "{failure}");
}
