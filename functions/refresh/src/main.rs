//! The bootstrap of the `refresh` function.

fn main() -> std::process::ExitCode {
    shared::process::run(refresh::run())
}
