//! The bootstrap of the `callback` function.

fn main() -> std::process::ExitCode {
    shared::process::run(callback::run())
}
