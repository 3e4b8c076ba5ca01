//! The bootstrap of the `refresh` function.

use shared::config::Function;

fn main() -> std::process::ExitCode {
    shared::process::run(Function::Refresh, refresh::run())
}
