//! What the system costs, measured against raw baselines in the same run.
//!
//! Two kinds of figures: what is *counted* is the same on every machine, and a miss fails the run; what is *timed* is
//! a ratio of system to raw baseline, measured in turns, and a miss is shown.

mod counts;
mod footprint;
mod options;
mod pairs;
mod peers;
mod permits;
mod platform;
mod pressure;
mod refreshes;
mod relayed;
mod report;
mod schedule;
mod start;
mod store;
mod system;
mod wire;

use std::process::ExitCode;

use clap::Parser as _;

use crate::options::{Command, Engines, Options};
use crate::report::Report;
use crate::store::Store;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(Command::Caller(caller)) = options.command {
        pressure::call(caller).await;
        return ExitCode::SUCCESS;
    }
    let mut report = Report::default();
    if let Err(why) = Box::pin(measure(&options, &mut report)).await {
        report::say(&why);
        return ExitCode::FAILURE;
    }
    report.print();
    if let Some(path) = &options.json {
        let text = format!("{:#}\n", report.to_json(&options::machine()));
        if let Err(error) = std::fs::write(path, text) {
            report::say(&format!("{}: {error}", path.display()));
            return ExitCode::FAILURE;
        }
    }
    if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn measure(options: &Options, report: &mut Report) -> Result<(), String> {
    let quick = options.quick;
    if options.wants("schedule") {
        report.add(schedule::simulate(quick));
    }
    let functions = options.functions()?;
    let bare = options::bare()?;
    if options.wants("size") {
        report.add(footprint::size(&functions));
    }
    let mut stores = Vec::new();
    if options.engine != Engines::Local {
        stores.push(Store::embedded().await);
    }
    if options.engine != Engines::Embedded {
        match Store::local().await {
            Some(local) => stores.push(local),
            None => report.missing("DynamoDB Local", "needs Java 17 and its jar; .ci/run installs it"),
        }
    }
    for (number, store) in stores.iter().enumerate() {
        if options.wants("permit.latency") {
            report.add(permits::latency(store, quick).await);
        }
        if options.wants("permit.throughput") {
            report.add(permits::throughput(store, quick).await);
        }
        if options.wants("permit.group") {
            report.add(permits::group(store, quick).await);
        }
        if options.wants("calls.admitted") {
            report.add(counts::admitted(store, quick).await);
        }
        if options.wants("calls.refusal") {
            report.add(counts::refused(store).await);
        }
        if options.wants("pressure") {
            report.add(pressure::pressure(store, quick).await);
        }
        if options.wants("relayed.counts") {
            report.add(relayed::counts(store, &functions, quick).await);
        }
        if options.wants("relayed.latency") {
            report.add(relayed::latency(store, &functions, &bare, quick).await);
        }
        if options.wants("refresh") {
            report.add(Box::pin(refreshes::rate_of_one(store, &functions, quick)).await);
        }
        if options.wants("peers") && !quick && store.is_local() {
            peers::measure(store, &options::peers()?, report).await;
        }
        // The rest does not depend on the engine.
        if number > 0 {
            continue;
        }
        if options.wants("start.poll") {
            report.add(start::poll(store, &functions, &bare, quick).await);
        }
        if options.wants("start.answer") {
            report.add(start::answer(store, &functions, quick).await);
        }
        if options.wants("memory") {
            report.add(footprint::memory(store, &functions, quick).await);
        }
    }
    Ok(())
}
