//! The number of calls to `DynamoDB` that an admitted request costs, counted by a proxy. The benchmark sets the time
//! itself, so the pace is exact on any machine.

use std::time::Duration;

use futures_util::future::join_all;
use shared::domain::clock::{Clock, Millis};
use shared::domain::limits::Limits;
use shared::domain::resource::Resource;
use shared::limiter::{Limiter, LimiterError};
use shared::table::Table;

use crate::pairs::float;
use crate::report::{Row, Target};
use crate::store::{self, Store};
use crate::wire::{Upstreams, Wire};

const LIMITS: Limits = Limits { burst: 100, interval: Duration::from_secs(10), daily: 200_000 };
const PROCESSES: usize = 4;

struct Scene {
    wire: Wire,
    clock: Clock,
    processes: Vec<Limiter>,
    resource: Resource,
}

impl Scene {
    async fn new(store: &Store) -> Self {
        let wire = Wire::to(Upstreams { dynamodb: store.url(), ..Upstreams::default() }).await;
        let table = store.table().await;
        let clock = Clock::manual(Millis(1_800_000_000_000));
        let mut processes = Vec::new();
        for _ in 0..PROCESSES {
            let table = Table { client: store::client(&wire.url()).await, name: table.name.clone() };
            processes.push(Limiter::new(table, clock.clone(), LIMITS));
        }
        Self { wire, clock, processes, resource: Resource::location("benchLocation").expect("an id") }
    }

    /// Returns true if `process` admits a request.
    async fn admits(&self, process: usize) -> bool {
        match self.processes[process].take(&self.resource, None).await {
            Ok(_) => true,
            Err(LimiterError::Refused(_)) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Sends requests at a constant pace, each to a random process.
async fn paced(store: &Store, every: Duration, requests: usize) -> (usize, usize) {
    let scene = Scene::new(store).await;
    let mut admitted = 0;
    for _ in 0..requests {
        admitted += usize::from(scene.admits(fastrand::usize(..PROCESSES)).await);
        scene.clock.advance(every);
    }
    (scene.wire.count(), admitted)
}

/// Sends a hundred requests at once as soon as the window is free again: a quarter to each process, one after the
/// other.
async fn bursts(store: &Store, bursts: usize) -> (usize, usize) {
    let scene = Scene::new(store).await;
    let mut admitted = 0;
    for _ in 0..bursts {
        let quarter = async |process| {
            let mut admitted = 0;
            for _ in 0..25 {
                admitted += usize::from(scene.admits(process).await);
            }
            admitted
        };
        admitted += join_all((0..PROCESSES).map(quarter)).await.into_iter().sum::<usize>();
        scene.clock.advance(Duration::from_secs(11));
    }
    (scene.wire.count(), admitted)
}

/// The number of calls for each admitted request.
pub(crate) async fn admitted(store: &Store, quick: bool) -> Vec<Row> {
    let requests = if quick { 400 } else { 2_000 };
    let row = |name, what, most, (calls, admitted): (usize, usize), of: usize| {
        let what = format!("DynamoDB calls for each admitted request: {what}");
        Row::count(name, store.name, &what, Target::AtMost(most), float(calls) / float(admitted))
            .with_remark(format!("{calls} calls, {admitted} of {of} admitted"))
    };
    let sparse = paced(store, Duration::from_millis(125), requests).await;
    let near = paced(store, Duration::from_micros(105_263), requests).await;
    let together = bursts(store, requests / 100).await;
    vec![
        row("calls.sparse", "8/s over 4 processes", 1.05, sparse, requests),
        row("calls.near", "9.5/s over 4 processes", 1.05, near, requests),
        row("calls.bursts", "bursts of 100", 1.05, together, requests),
    ]
}

/// The number of calls for each refusal by a process that already knows that the limit is reached.
pub(crate) async fn refused(store: &Store) -> Vec<Row> {
    let scene = Scene::new(store).await;
    while scene.admits(0).await {}
    let (before, refusals) = (scene.wire.count(), 1_000);
    for _ in 0..refusals {
        assert!(!scene.admits(0).await, "the window is full");
    }
    let calls = scene.wire.count() - before;
    let what = "DynamoDB calls for each refusal while the process knows of it";
    let measured = float(calls) / float(refusals);
    vec![Row::count("calls.refusal", store.name, what, Target::Exactly(0.0), measured)]
}
