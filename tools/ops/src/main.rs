//! The operator's command-line program: `cargo run -p ops -- --help`.
//!
//! A command reads its arguments, calls an operation of `shared`, and prints a table or JSON. Commands change the table
//! by the same conditional writes as the functions.

mod arguments;
mod breaker;
mod callers;
mod calls;
mod doctor;
mod error;
mod installations;
mod logs;
mod moving;
mod print;
mod progress;
mod quota;
mod redrive;
mod replay;
mod sandbox;
mod sealing;
mod stack;
mod stack_outputs;
mod uninstall;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};

use crate::arguments::{Arguments, Command};
use crate::error::CommandError;
use crate::stack::Stack;

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().collect();
    if words.windows(2).any(|pair| pair[0] == "--sandbox" && pair[1].contains("://")) {
        let fault = Arguments::command().error(ErrorKind::InvalidValue, "write the address after =: --sandbox=URL");
        fault.exit();
    }
    let arguments = Arguments::parse();
    let json = arguments.json;
    match Box::pin(run(arguments)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print::error(&error, json);
            error.exit_code()
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), CommandError> {
    if let Some(address) = &arguments.sandbox {
        return Err(sandbox::start_again_in(address).await);
    }
    if let Some(stack) = &arguments.stack {
        return Err(stack_outputs::start_again_with(stack));
    }
    let Arguments { command, json, .. } = arguments;
    let out = print::Out { json };
    if let Command::Doctor { quick } = command {
        return doctor::run(out, quick).await;
    }
    let stack = Stack::from_env().await?;
    match command {
        Command::List(which) => installations::list(&stack, out, &which).await,
        Command::Show { resource } => installations::show(&stack, out, &resource).await,
        Command::Quota { resource: Some(resource) } => quota::show(&stack, out, &resource).await,
        Command::Quota { resource: None } => quota::list(&stack, out).await,
        Command::Refresh { resource, if_due } => installations::refresh(&stack, out, &resource, !if_due).await,
        Command::Revoke { resource, yes } => installations::revoke(&stack, out, &resource, yes).await,
        Command::Uninstall { resource, reason, while_paused, yes } => {
            uninstall::run(&stack, out, &resource, &reason, yes, while_paused).await
        }
        Command::Logs { resource, hours } => logs::run(&stack, out, &resource, hours).await,
        Command::Tick => installations::tick(&stack, out).await,
        Command::Redrive => redrive::run(&stack, out).await,
        Command::Pause => breaker::pause(&stack, out).await,
        Command::Resume { forget, yes } => breaker::resume(&stack, out, forget, yes).await,
        Command::Import(import) => moving::import::run(&stack, out, &import).await,
        Command::Export(export) => moving::export::run(&stack, out, &export).await,
        Command::Replay(replay) => replay::run(&stack, out, &replay).await,
        Command::Callers(command) => callers::run(&stack, out, command).await,
        Command::Calls(command) => calls::run(&stack, out, command).await,
        Command::Sealing(command) => sealing::run(&stack, out, command).await,
        Command::Doctor { .. } => unreachable!("doctor runs above, without a stack"),
    }
}
