//! Four processes with 25 callers each take as many permits as they can get, for 25 s of real time.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use shared::domain::clock::{Clock, Millis};
use shared::domain::limits::Limits;
use shared::domain::resource::Resource;
use shared::limiter::{Limiter, LimiterError};
use shared::table::Table;
use tokio::process::Command;

use crate::pairs::float;
use crate::report::{Row, Target, say};
use crate::store::{self, Store};
use crate::wire::{Upstreams, Wire};

const LIMITS: Limits = Limits { burst: 100, interval: Duration::from_secs(10), daily: 200_000 };
const PROCESSES: usize = 4;
const CALLERS: usize = 25;

/// The arguments of one of the processes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Caller {
    /// The URL of DynamoDB.
    #[arg(long)]
    url: String,
    /// The table.
    #[arg(long)]
    table: String,
    /// The start time, in milliseconds since 1970.
    #[arg(long)]
    begin: i64,
    /// The end time, in milliseconds since 1970.
    #[arg(long)]
    end: i64,
}

/// The task of one process: takes permits, and prints the instants at which each could be used.
pub(crate) async fn call(told: Caller) {
    let table = Table { client: store::client(&told.url).await, name: told.table.into() };
    let clock = Clock::system();
    let limiter = Limiter::new(table, clock.clone(), LIMITS);
    let resource = Resource::location("benchLocation").expect("an id");
    let (begin, end) = (Millis(told.begin), Millis(told.end));
    tokio::time::sleep(begin.since(clock.now())).await;
    let mut callers = Vec::new();
    for number in 0..CALLERS {
        let (limiter, clock, resource) = (limiter.clone(), clock.clone(), resource.clone());
        callers.push(tokio::spawn(async move {
            let (mut sent, mut refused) = (Vec::new(), 0);
            while clock.now() < end {
                // Half of the callers wait in the waiter queue. The other half try again at the instant that a refusal
                // states.
                match limiter.take(&resource, (number % 2 == 0).then_some(end)).await {
                    Ok(permit) if clock.now() <= permit.send_by => sent.push(clock.now().0),
                    Ok(_) => {}
                    Err(LimiterError::Refused(refusal)) => {
                        refused += 1;
                        tokio::time::sleep(refusal.retry_at.min(end).since(clock.now())).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            (sent, refused)
        }));
    }
    let (mut sent, mut refused) = (Vec::new(), 0);
    for caller in callers {
        let (theirs, refusals) = caller.await.expect("no panic");
        sent.extend(theirs);
        refused += refusals;
    }
    say(&json!({ "sent": sent, "refused": refused }).to_string());
}

/// Starts the processes and adds up their results.
pub(crate) async fn pressure(store: &Store, quick: bool) -> Vec<Row> {
    let lasts = Duration::from_secs(if quick { 13 } else { 25 });
    let wire = Wire::to(Upstreams { dynamodb: store.url(), ..Upstreams::default() }).await;
    let table = store.table().await;
    let begin = Clock::system().now() + Duration::from_millis(500);
    let itself = std::env::current_exe().expect("this program");
    let mut processes = Vec::new();
    for _ in 0..PROCESSES {
        let (begin, end) = (begin.0.to_string(), (begin + lasts).0.to_string());
        let arguments = ["caller", "--url", &wire.url(), "--table", &table.name, "--begin", &begin, "--end", &end];
        let mut command = Command::new(&itself);
        command.args(arguments).stdout(Stdio::piped()).kill_on_drop(true);
        processes.push(command.spawn().expect("a process"));
    }
    let (mut sent, mut refused): (Vec<i64>, u64) = (Vec::new(), 0);
    for process in processes {
        let output = process.wait_with_output().await.expect("it ends");
        let told: Value = serde_json::from_slice(&output.stdout).expect("what it prints");
        sent.extend(told["sent"].as_array().into_iter().flatten().filter_map(Value::as_i64));
        refused += told["refused"].as_u64().unwrap_or_default();
    }
    sent.sort_unstable();
    let most = most_in_any(&sent, 10_000);
    let intervals = usize::try_from(lasts.as_secs() / 10 + 1).expect("few");
    let ideal = intervals * 100;
    let calls = wire.count();
    vec![
        Row::time(
            "pressure.admitted",
            store.name,
            "admitted of the ideal, 4 processes with 25 callers each",
            Target::AtLeast(0.97),
            float(sent.len()) / float(ideal),
        )
        .with_remark(format!(
            "{} of {ideal} in {} s, {calls} calls, {refused} refusals",
            sent.len(),
            lasts.as_secs()
        )),
        Row::count("pressure.most", store.name, "the same: most in any 10 s", Target::AtMost(100.0), float(most)),
    ]
}

/// The highest number of instants in any `interval` milliseconds. The instants are sorted.
pub(crate) fn most_in_any(sent: &[i64], interval: i64) -> usize {
    (0..sent.len()).map(|i| i + 1 - sent.partition_point(|at| *at <= sent[i] - interval)).max().unwrap_or(0)
}
