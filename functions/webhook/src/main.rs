//! The bootstrap of the `webhook` function.

use shared::config::Function;

fn main() -> std::process::ExitCode {
    shared::process::run(Function::Webhook, webhook::run())
}
