//! The command line, and what a run needs: the built functions, the peers and the machine.

use std::path::PathBuf;
use std::process::Command as Process;

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::instructions::Taker;
use crate::pressure::Caller;
use crate::system::Functions;

/// Measures what the system costs, against raw baselines in the same run.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// Write all figures to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Run only benchmarks whose name begins with this, such as `permit`; can be given more than once.
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// A short run of two minutes. Counted figures are as exact as in a full run; timed figures mean little. Skips
    /// peers and instructions.
    #[arg(long)]
    pub(crate) quick: bool,
    /// The `DynamoDB` engine.
    #[arg(long, value_enum, default_value_t = Engines::Both)]
    pub(crate) engine: Engines,
    /// Folder of the built functions. Without this option the functions are built.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) functions: Option<PathBuf>,
}

/// The other tasks of this program, for processes that a benchmark starts.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// A process that takes permits.
    #[command(hide = true)]
    Caller(Caller),
    /// A process whose instructions are counted.
    #[command(hide = true)]
    Taker(Taker),
}

/// Engines to measure on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engines {
    /// Both engines.
    Both,
    /// The engine that is part of this program.
    Embedded,
    /// DynamoDB Local.
    Local,
}

impl Options {
    /// Returns true if a benchmark is to be run. `name` is the benchmark's name, or the part of the name before a dot.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.starts_with(only.as_str()))
    }

    /// The functions. They are built with the profile of this program if no folder is given.
    pub(crate) fn functions(&self) -> Result<Functions, String> {
        if let Some(folder) = &self.functions {
            return Ok(Functions(folder.clone()));
        }
        build()?;
        Ok(Functions(own_folder()?))
    }
}

/// The path of the function that does nothing. The build puts its program beside this one.
pub(crate) fn bare() -> Result<PathBuf, String> {
    let path = own_folder()?.join("bare");
    if !path.is_file() {
        build()?;
    }
    Ok(path)
}

/// The folder in which peers are installed.
pub(crate) fn peers() -> Result<PathBuf, String> {
    Ok(own_folder()?.join("peers"))
}

fn own_folder() -> Result<PathBuf, String> {
    let path = std::env::current_exe().map_err(|error| error.to_string())?;
    path.parent().map(PathBuf::from).ok_or_else(|| "this program has no folder".to_owned())
}

/// Builds the measured programs with the features of the whole workspace, as deployments do. This program has the same
/// features (see its manifest), so nothing is built twice.
fn build() -> Result<(), String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Process::new(cargo);
    build.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--workspace", "--locked"]);
    build.args(["--bin", "relay", "--bin", "refresh", "--bin", "webhook", "--bin", "bare"]);
    if let Some(target) = own_folder()?.parent() {
        build.arg("--target-dir").arg(target);
    }
    if crate::report::OPTIMIZED {
        build.arg("--release");
    }
    let status = build.status().map_err(|error| format!("cargo does not start: {error}"))?;
    if status.success() { Ok(()) } else { Err("the functions cannot be built".to_owned()) }
}

/// The machine on which the figures were measured.
pub(crate) fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let load = read("/proc/loadavg");
    json!({
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load": load.split(' ').next(),
        "at": shared::domain::clock::Clock::system().now().rfc3339(),
        "optimized": crate::report::OPTIMIZED,
    })
}
