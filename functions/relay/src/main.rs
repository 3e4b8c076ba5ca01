//! The bootstrap of the `relay` function.

fn main() -> std::process::ExitCode {
    shared::lambda::process::run(relay::run())
}
