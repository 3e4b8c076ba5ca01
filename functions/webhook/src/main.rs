//! The bootstrap of the `webhook` function.

fn main() -> std::process::ExitCode {
    shared::process::run(webhook::run())
}
