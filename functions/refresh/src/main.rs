//! The bootstrap of the `refresh` function.

fn main() -> std::process::ExitCode {
    shared::lambda::process::run(refresh::run())
}
