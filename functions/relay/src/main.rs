//! The bootstrap of the `relay` function.

use shared::config::Function;

fn main() -> std::process::ExitCode {
    shared::process::run(Function::Relay, relay::run())
}
