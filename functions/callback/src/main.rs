//! The bootstrap of the `callback` function.

fn main() -> std::process::ExitCode {
    shared::lambda::process::run(callback::run())
}
