//! `kill -9` at each point of a refresh, with a platform in each mode. The next scheduled event or the next relayed
//! call must then recover the installation.

use std::fmt;

use it::proxy::Call;
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::marketplace::grants::Rotation;
use serde_json::json;

use crate::scene::{Answered, Process, Scene, Story, now, together, until};

/// The point at which a process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// The process's claim has not reached the store.
    BeforeTheClaim,
    /// The process's claim is stored, but the process has not received the answer.
    AfterTheClaim,
    /// The process's POST has not reached the platform.
    BeforeThePost,
    /// The platform has granted a new pair, but the process has not received the answer.
    AfterThePost,
    /// The process holds the new pair, but its commit has not reached the store.
    BeforeTheCommit,
    /// The process's commit is stored, but the process has not received the answer.
    AfterTheCommit,
}

impl Point {
    const ALL: [Self; 6] = [
        Self::BeforeTheClaim,
        Self::AfterTheClaim,
        Self::BeforeThePost,
        Self::AfterThePost,
        Self::BeforeTheCommit,
        Self::AfterTheCommit,
    ];

    /// Returns true if the platform has taken the refresh token and the table does not hold the new one.
    fn leaves_the_grant_in_doubt(self) -> bool {
        matches!(self, Self::AfterThePost | Self::BeforeTheCommit)
    }

    /// Returns true if the dead process's lease is in the table.
    fn leaves_a_lease(self) -> bool {
        !matches!(self, Self::BeforeTheClaim | Self::AfterTheCommit)
    }

    /// Brings a process to this point and kills it there.
    async fn strike(self, scene: &Scene, doomed: &Process, begin: impl FnOnce() -> tokio::task::JoinHandle<Answered>) {
        let stalled = |processed| {
            scene.sandbox.marketplace.fault(Endpoint::Refresh, Fault::Stall { processed }, None);
            None
        };
        let gate = match self {
            Self::BeforeTheClaim => Some(doomed.proxy.hold(Call::Claim)),
            Self::AfterTheClaim => Some(doomed.proxy.hold_answer(Call::Claim)),
            Self::BeforeThePost => stalled(false),
            Self::AfterThePost => stalled(true),
            Self::BeforeTheCommit => Some(doomed.proxy.hold(Call::Commit)),
            Self::AfterTheCommit => Some(doomed.proxy.hold_answer(Call::Commit)),
        };
        let invocation = begin();
        match gate {
            Some(gate) => gate.reached().await,
            None => scene.has_presented(1).await,
        }
        if matches!(self, Self::AfterTheClaim | Self::AfterTheCommit) {
            // The answer reaches the gate after the store has applied the write, so the write must be visible now.
            assert_eq!(
                scene.stored().await.status().as_str(),
                if self.leaves_a_lease() { "Refreshing" } else { "Active" }
            );
        }
        doomed.dies(invocation).await;
        scene.sandbox.marketplace.clear_faults();
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BeforeTheClaim => "before the claim",
            Self::AfterTheClaim => "after the claim",
            Self::BeforeThePost => "before the POST",
            Self::AfterThePost => "after the POST",
            Self::BeforeTheCommit => "before the commit",
            Self::AfterTheCommit => "after the commit",
        })
    }
}

/// The event that recovers the installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recovery {
    /// The next scheduled event, after the death of a relayed call.
    Schedule,
    /// The next relayed call, after the death of a scheduled refresh.
    Call,
}

const MODES: [(Rotation, &str); 3] = [
    (Rotation::Strict, "strict"),
    (Rotation::AlwaysForgiving, "forgiving"),
    (Rotation::FamilyRevoking, "family-revoking"),
];

/// The outcome of a death and its recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    /// Number of presentations by the process that died.
    before: usize,
    /// Number of presentations by the process that recovered.
    after: usize,
    /// The state of the installation after the recovery.
    status: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} + {}", self.status, self.before, self.after)
    }
}

async fn story(point: Point, rotation: Rotation, recovery: Recovery) -> Outcome {
    let scene = Scene::set(rotation).await;
    let (of_doomed, of_survivor) = match recovery {
        Recovery::Schedule => ("relay", "refresh"),
        Recovery::Call => ("refresh", "relay"),
    };
    let (doomed, _relay) = tokio::join!(scene.start(of_doomed, "doomed"), scene.start("relay", "relay"));
    let _refresh = match of_survivor {
        "refresh" => Some(scene.start("refresh", "refresh").await),
        _ => None,
    };
    point.strike(&scene, &doomed, || scene.invoke(of_doomed, "doomed")).await;
    let before = scene.presented().len();
    assert_eq!(scene.stored().await.status().as_str(), if point.leaves_a_lease() { "Refreshing" } else { "Active" });

    let lost = point.leaves_the_grant_in_doubt() && rotation != Rotation::AlwaysForgiving;
    match recovery {
        Recovery::Schedule => by_schedule(&scene, point, lost).await,
        Recovery::Call => by_call(&scene, point, lost).await,
    }
    let outcome = Outcome { before, after: scene.presented().len() - before, status: scene.status().await };
    if lost {
        assert_lost(&scene).await;
    } else {
        assert_eq!(scene.stored().await.version.generation, 2, "one new pair, whoever stored it");
    }
    scene.assert_usable().await;
    scene.end();
    outcome
}

async fn by_schedule(scene: &Scene, point: Point, lost: bool) {
    if point.leaves_a_lease() {
        let summary = scene.tick().await;
        if scene.stored().await.lease().is_some_and(|lease| now() < lease.ends_at) {
            assert_eq!(summary["due"], 0, "the lease of a dead holder holds: {summary}");
        }
        scene.lease_is_over().await;
    }
    let summary = scene.tick().await;
    let expected = match point {
        Point::AfterTheCommit => (0, 0, 0),
        _ if lost => (1, 0, 1),
        _ => (1, 1, 0),
    };
    let counts = (summary["due"].clone(), summary["refreshed"].clone(), summary["failed"].clone());
    assert_eq!(counts, (json!(expected.0), json!(expected.1), json!(expected.2)), "{summary}");
}

async fn by_call(scene: &Scene, point: Point, lost: bool) {
    if point.leaves_a_lease() {
        scene.lease_is_over().await;
    }
    let (status, problem) = scene.call().await;
    assert_eq!(status, if lost { 424 } else { 200 }, "{problem}");
}

/// Asserts the consequences of the one loss that cannot be prevented: callers receive a link, the loss is counted once,
/// and the installation works again after a human has followed the link.
async fn assert_lost(scene: &Scene) {
    let presented = scene.presented();
    assert_eq!(presented.last().map(|last| last.status), Some(Some(400)), "an answered refusal");
    for _ in 0..2 {
        let (status, problem) = scene.call().await;
        assert_eq!((status, &problem["code"]), (424, &json!("reauthorization_required")), "{problem}");
        assert_eq!(problem["reinstall_url"], json!(format!("{}/oauth/install", scene.home())));
    }
    assert_eq!(scene.stored().await.schedule().due_at, None, "the schedule leaves it alone");
    assert_eq!(scene.presented().len(), presented.len(), "nothing more is presented");
    assert_eq!(scene.logged("outcome", "needs_reauthorization"), 1, "one notice");
    scene.install().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_killed_at_any_point_is_recovered_in_each_rotation_mode() {
    let mut stories: Vec<Story<Outcome>> = Vec::new();
    for point in Point::ALL {
        for (rotation, mode) in MODES {
            for recovery in [Recovery::Schedule, Recovery::Call] {
                let story = Box::pin(story(point, rotation, recovery));
                stories.push((name(point, mode, recovery), story));
            }
        }
    }
    let outcomes = together(stories).await;
    let outcome = |point, mode: &'static str, recovery| &outcomes[&name(point, mode, recovery)];
    for point in Point::ALL {
        for (rotation, mode) in MODES {
            let doubt = point.leaves_the_grant_in_doubt();
            let lost = doubt && rotation != Rotation::AlwaysForgiving;
            let expected = Outcome {
                before: usize::from(doubt || matches!(point, Point::BeforeThePost | Point::AfterTheCommit)),
                after: usize::from(point != Point::AfterTheCommit),
                status: if lost { "NeedsReauthorization" } else { "Active" }.to_owned(),
            };
            for recovery in [Recovery::Schedule, Recovery::Call] {
                assert_eq!(outcome(point, mode, recovery), &expected, "{}", name(point, mode, recovery));
            }
        }
    }
    print_table(|point, mode| outcome(point, mode, Recovery::Schedule).to_string());
}

fn name(point: Point, mode: &str, recovery: Recovery) -> String {
    format!("{point}, {mode}, {recovery:?}")
}

/// Prints the table of `docs/reliability.md`.
#[expect(clippy::print_stdout, reason = "the harness keeps it with the test's own output")]
fn print_table(outcome: impl Fn(Point, &'static str) -> String) {
    let heads: Vec<_> = MODES.iter().map(|(_, mode)| *mode).collect();
    println!("State after the recovery; presentations of the process that died + of the one that came after it:");
    println!("| killed | {} |\n|---|---|---|---|", heads.join(" | "));
    for point in Point::ALL {
        let cells: Vec<_> = heads.iter().map(|mode| outcome(point, mode)).collect();
        println!("| {point} | {} |", cells.join(" | "));
    }
}

/// If the commit was under way when its process died, the grant is not lost. The commit is a compare-and-swap on the
/// version, so it is stored whatever state the installation has received meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_arrives_after_its_process_died_restores_the_installation() {
    let scene = Scene::set(Rotation::Strict).await;
    let (doomed, _relay) = tokio::join!(scene.start("refresh", "doomed"), scene.start("relay", "relay"));
    let gate = doomed.proxy.hold(Call::Commit);
    let invocation = scene.invoke("refresh", "doomed");
    gate.reached().await;
    doomed.dies(invocation).await;
    scene.lease_is_over().await;
    assert_eq!((scene.call().await.0, scene.status().await.as_str()), (424, "NeedsReauthorization"));
    gate.open();
    assert!(until(|| async { scene.stored().await.version.generation == 2 }).await, "it is stored");
    scene.assert_usable().await;
    scene.end();
}
