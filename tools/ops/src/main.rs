//! The operator's commands: `cargo run -p ops -- --help`.
//!
//! Thin like the functions: arguments in, an operation of `shared`, a table or JSON out. What a command changes is
//! changed by the same conditional writes that the functions use.

mod arguments;
mod callers;
mod doctor;
mod ending;
mod installations;
mod print;
mod progress;
mod sandbox;
mod sealing;
mod stack;
mod stop;

use std::process::ExitCode;

use clap::Parser as _;

use crate::arguments::{Arguments, Command};
use crate::ending::Failure;
use crate::stack::Stack;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.json;
    match Box::pin(run(arguments)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            print::failure(&failure, json);
            failure.code()
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    if let Some(address) = &arguments.sandbox {
        return Err(sandbox::start_again_in(address).await);
    }
    let Arguments { command, json, .. } = arguments;
    let out = print::Out { json };
    if let Command::Doctor = command {
        return doctor::run(out).await;
    }
    let stack = Stack::from_env().await?;
    match command {
        Command::List(which) => installations::list(&stack, out, &which).await,
        Command::Show { resource } => installations::show(&stack, out, &resource).await,
        Command::Quota { resource } => installations::quota(&stack, out, &resource).await,
        Command::Refresh { resource, if_due } => installations::refresh(&stack, out, &resource, !if_due).await,
        Command::Revoke { resource, yes } => installations::revoke(&stack, out, &resource, yes).await,
        Command::Resume { forget } => stop::resume(&stack, out, forget).await,
        Command::Callers(command) => callers::run(&stack, out, command).await,
        Command::Sealing(command) => sealing::run(&stack, out, command).await,
        Command::Doctor => unreachable!("it ran without a stack"),
    }
}
