//! The bootstrap of the `relay` function.

fn main() -> std::process::ExitCode {
    shared::process::run(relay::run())
}
