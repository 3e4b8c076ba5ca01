//! The number of user-space instructions of a warm call, counted by valgrind's callgrind. Unlike the time of a call,
//! this number hardly changes on a machine with other load.
//!
//! A process is warmed first. Then the same number of calls is counted twice, to show the difference between two
//! counts.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use sandbox::process::{Program, lambda_environment};
use shared::domain::clock::{Clock, Millis};
use shared::limiter::Limiter;
use shared::table::Table;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use crate::pairs::float;
use crate::permits::{RawCounter, UNLIMITED};
use crate::platform::access_token;
use crate::report::{OPTIMIZED, Report, Row, Target, say};
use crate::store::{self, Store};
use crate::system::{Distances, Functions, ONE_BY_ONE, System, Through, location, request};

/// The number of calls before the counted ones. After them, connections are open, the token is known, and all code has
/// run once.
const WARMING: usize = 40;
/// The number of calls in one count.
const CALLS: usize = 60;
/// The number of threads that Lambda's smallest sizes have, set on every machine.
const THREADS: (&str, &str) = ("TOKIO_WORKER_THREADS", "2");
/// An interval so long that all calls are in a few slots of the window, even on a slow machine.
const INTERVAL: (&str, &str) = ("BURST_INTERVAL_MS", "60000");

/// The arguments of a process whose permits, or raw writes, are counted.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Taker {
    /// The URL of DynamoDB.
    #[arg(long)]
    url: String,
    /// The table.
    #[arg(long)]
    table: String,
    /// Make raw writes to the cheapest possible shared counter instead of taking permits.
    #[arg(long)]
    raw: bool,
}

/// Reads numbers, one on each line of the input. For each, takes that many permits one after the other and then writes
/// a line.
pub(crate) async fn take(told: Taker) {
    let table = Table { client: store::client(&told.url).await, name: told.table.into() };
    let counter = RawCounter::new(&table);
    counter.create("raw#0").await;
    // The clock stands still, so all permits of a batch are in one slot.
    let clock = Clock::manual(Millis(1_800_000_000_000));
    let limiter = Limiter::new(table, clock.clone(), UNLIMITED);
    let resource = location(0);
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await.expect("readable") {
        // The next batch is in another slot. After a pause a process takes no permits ahead of need.
        clock.advance(Duration::from_secs(3));
        for _ in 0..line.parse::<usize>().expect("how many") {
            if told.raw {
                counter.take("raw#0").await;
            } else {
                limiter.take(&resource, None).await.expect("no limit");
            }
        }
        say("taken");
    }
}

/// Counts all cases, or reports the reason why they cannot be counted.
pub(crate) async fn measure(store: &Store, functions: &Functions, bare: &Path, report: &mut Report) {
    if let Err(why) = counted(store, functions, bare, report).await {
        report.missing("instructions", &why);
    }
}

async fn counted(store: &Store, functions: &Functions, bare: &Path, report: &mut Report) -> Result<(), String> {
    let callgrind = Callgrind::new().await?;
    let system = System::with_limits(store, functions, Through::Nothing, Distances::default(), ONE_BY_ONE).await;
    system.install(&location(0), 0).await;
    let table = Table { client: store::client(&store.url()).await, name: system.table.name.clone() };
    RawCounter::new(&table).create("raw#0").await;
    let url = format!("{}/contacts/sx6wyHhbFdRXh302LLNR", system.platform.url());
    let raw = [("RAW_TABLE", table.name.to_string()), ("RAW_URL", url), ("RAW_TOKEN", access_token(0))];
    let relay = functions.bootstrap("relay");

    let relayed = callgrind.function(&system, "relay", &relay, &[]).await?;
    let both = callgrind.function(&system, "raw", bare, &raw).await?;
    let nothing = callgrind.function(&system, "echo", bare, &[]).await?;
    let permit = callgrind.taker(&table, &store.url(), &[]).await?;
    let write = callgrind.taker(&table, &store.url(), &["--raw"]).await?;

    let row = |name, what, of: &OfOne| {
        let what = format!("instructions of {what}");
        Row::count(name, store.name, &what, Target::Told, of.mean().round())
            .with_remark(format!("two counts of {CALLS} calls differ by {:.2} %", of.difference() * 100.0))
    };
    // A baseline that is not optimized is useless.
    let times = |row: Row, one: &OfOne, other: &OfOne| {
        if OPTIMIZED { row.with_remark(format!("{:.2} × the next", one.mean() / other.mean())) } else { row }
    };
    report.add([
        times(row("instructions.relayed", "one warm relayed call", &relayed), &relayed, &both),
        row("instructions.raw", "the same two calls made by a bare function", &both),
        row("instructions.nothing", "an invocation that does nothing", &nothing),
        times(row("instructions.permit", "a permit taken, 1 caller", &permit), &permit, &write),
        row("instructions.write", "a raw conditional UpdateItem", &write),
    ]);
    Ok(())
}

/// The instructions of one call, from two counts.
struct OfOne([f64; 2]);

impl OfOne {
    fn mean(&self) -> f64 {
        f64::midpoint(self.0[0], self.0[1])
    }

    /// The difference between the two counts, as a fraction of their mean.
    fn difference(&self) -> f64 {
        (self.0[0] - self.0[1]).abs() / self.mean()
    }
}

/// The tool, and the folder for its output.
struct Callgrind {
    folder: PathBuf,
}

impl Drop for Callgrind {
    fn drop(&mut self) {
        let _left = std::fs::remove_dir_all(&self.folder);
    }
}

impl Callgrind {
    /// Creates the folder. Fails if valgrind is not installed.
    async fn new() -> Result<Self, String> {
        for tool in ["valgrind", "vgdb"] {
            let asked = Command::new(tool).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status();
            asked.await.map_err(|_| "needs valgrind".to_owned())?;
        }
        let folder = std::env::temp_dir().join(format!("callgrind-{}", shared::domain::random::hex::<8>()));
        std::fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Self { folder })
    }

    fn written_by(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The option for the location at which `valgrind` and `vgdb` find each other.
    fn meeting(&self) -> String {
        format!("--vgdb-prefix={}", self.folder.join("vgdb").display())
    }

    fn arguments(&self, name: &str) -> Vec<String> {
        let out = format!("--callgrind-out-file={}", self.written_by(name).display());
        vec!["-q".to_owned(), "--tool=callgrind".to_owned(), self.meeting(), out]
    }

    /// Counts two batches of calls, after a batch that warms the process.
    async fn count(
        &self,
        name: &str,
        process: u32,
        mut call: impl AsyncFnMut(usize) -> Result<(), String>,
    ) -> Result<OfOne, String> {
        call(WARMING).await?;
        self.dump(name, process, 1).await?;
        call(CALLS).await?;
        let first = self.dump(name, process, 2).await?;
        call(CALLS).await?;
        let second = self.dump(name, process, 3).await?;
        Ok(OfOne([first, second].map(|all| all / float(CALLS))))
    }

    /// The number of instructions of a process since the last dump.
    async fn dump(&self, name: &str, process: u32, number: usize) -> Result<f64, String> {
        let mut command = Command::new("vgdb");
        command.args([&self.meeting(), &format!("--pid={process}"), "dump"]).kill_on_drop(true);
        let output = command.output().await.map_err(|error| error.to_string())?;
        let path = self.written_by(&format!("{name}.{number}"));
        let text = std::fs::read(&path).map_err(|_| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("valgrind cannot be asked: {}", said.lines().last().unwrap_or_default())
        })?;
        let text = String::from_utf8_lossy(&text);
        let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
        total.and_then(|total| total.trim().parse().ok()).ok_or_else(|| "valgrind wrote no total".to_owned())
    }

    /// The instructions of a function that is invoked.
    async fn function(
        &self,
        system: &System,
        function: &str,
        path: &Path,
        own: &[(&str, String)],
    ) -> Result<OfOne, String> {
        let (tool, arguments) = ("valgrind".to_owned(), self.arguments(function));
        let under = Program::Under { tool, arguments, path: path.to_owned() };
        let fixed = [THREADS, INTERVAL].map(|(name, value)| (name, value.to_owned()));
        let worker = system.start(under, function, &[&fixed, own].concat());
        let payload = if function == "raw" { Bytes::from_static(b"{}") } else { request(&location(0)) };
        let invoke = async |calls| {
            for _ in 0..calls {
                match function {
                    "relay" => system.relay(&payload).await,
                    _ => drop(system.invoke(function, payload.clone()).await),
                }
            }
            Ok(())
        };
        self.count(function, worker.pid().ok_or("it has ended")?, invoke).await
    }

    /// The instructions of this program while the program takes permits or makes raw writes.
    async fn taker(&self, table: &Table, url: &str, more: &[&str]) -> Result<OfOne, String> {
        let name = format!("taker{}", more.concat());
        let itself = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new("valgrind");
        command.args(self.arguments(&name)).arg(itself);
        command.args(["taker", "--url", url, "--table", &table.name]).args(more);
        command.envs(lambda_environment("taker", "taker-1")).env(THREADS.0, THREADS.1).kill_on_drop(true);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|e| e.to_string())?;
        let (mut stdin, stdout) = (process.stdin.take().expect("piped"), process.stdout.take().expect("piped"));
        let mut lines = BufReader::new(stdout).lines();
        let take = async |calls: usize| {
            let failed = |error: std::io::Error| error.to_string();
            stdin.write_all(format!("{calls}\n").as_bytes()).await.map_err(failed)?;
            lines.next_line().await.map_err(failed)?.map(drop).ok_or_else(|| "it ends early".to_owned())
        };
        self.count(&name, process.id().ok_or("it has ended")?, take).await
    }
}
