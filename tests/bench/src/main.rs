//! Measures the costs of the system against raw baselines in the same run.
//!
//! A *counted* figure is the same on every machine, and a miss fails the run. A *timed* figure is a ratio of the system
//! to a raw baseline, measured in turns, and a miss is only shown.

mod cgroup;
mod counts;
mod footprint;
mod instructions;
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
mod webhooks;
mod wire;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cgroup::Cgroup;
use crate::options::{Command, Engines, Options};
use crate::report::Report;
use crate::store::Store;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(command) = options.command {
        match command {
            Command::Caller(caller) => pressure::call(caller).await,
            Command::Taker(taker) => instructions::take(taker).await,
        }
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
            Ok(local) => stores.push(local),
            Err(why) => report.missing("DynamoDB Local, and the peers on it", &why),
        }
    }
    for (number, store) in stores.iter().enumerate() {
        if options.wants("permit.latency") {
            report.part("permit.latency", async || permits::latency(store, quick).await).await;
        }
        if options.wants("permit.throughput") {
            report.part("permit.throughput", async || permits::throughput(store, quick).await).await;
        }
        if options.wants("permit.group") {
            report.part("permit.group", async || permits::group(store, quick).await).await;
        }
        if options.wants("calls.admitted") {
            report.part("calls.admitted", async || counts::admitted(store, quick).await).await;
        }
        if options.wants("calls.refusal") {
            report.part("calls.refusal", async || counts::refused(store).await).await;
        }
        if options.wants("pressure") {
            report.part("pressure", async || pressure::pressure(store, quick).await).await;
        }
        if options.wants("overload") {
            report.part("overload", async || pressure::overload(store, quick).await).await;
        }
        if options.wants("relayed.counts") {
            report.part("relayed.counts", async || relayed::counts(store, &functions, quick).await).await;
        }
        if options.wants("relayed.latency") {
            report.part("relayed.latency", async || relayed::latency(store, &functions, &bare, quick).await).await;
        }
        if options.wants("relayed.distant") {
            report.part("relayed.distant", async || relayed::distant(store, &functions, quick).await).await;
        }
        if options.wants("refresh") {
            report.part("refresh", async || Box::pin(refreshes::rate_of_one(store, &functions, quick)).await).await;
        }
        if options.wants("peers") && !quick && store.is_local() {
            peers::measure(store, &options::peers()?, report).await;
        }
        // The remaining benchmarks do not depend on the engine.
        if number > 0 {
            continue;
        }
        if options.wants("start.poll") {
            report.part("start.poll", async || start::poll(store, &functions, &bare, quick).await).await;
        }
        if options.wants("start.answer") {
            report.part("start.answer", async || start::answer(store, &functions, quick).await).await;
        }
        if options.wants("start.throttled") {
            match Cgroup::with_processor(start::PROCESSOR) {
                Ok(group) => {
                    let throttled = async || start::throttled(store, &functions, &bare, &group, quick).await;
                    report.part("start.throttled", throttled).await;
                }
                Err(why) => report.missing("start to first relayed answer with a part of a processor", &why),
            }
        }
        if options.wants("webhooks") {
            report.part("webhooks", async || webhooks::rate_of_one(store, &functions, &bare, quick).await).await;
        }
        if options.wants("instructions") && !quick {
            instructions::measure(store, &functions, &bare, report).await;
        }
        if options.wants("memory") {
            report.part("memory", async || footprint::memory(store, &functions, quick).await).await;
        }
    }
    Ok(())
}
