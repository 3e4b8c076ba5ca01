//! The bootstrap of the `callback` function.

use shared::config::Function;

fn main() -> std::process::ExitCode {
    shared::process::run(Function::Callback, callback::run())
}
