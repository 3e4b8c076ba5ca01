//! The bootstrap of the `webhook` function.

fn main() -> std::process::ExitCode {
    shared::lambda::process::run(webhook::run())
}
