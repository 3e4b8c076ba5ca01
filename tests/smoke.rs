//! The assertion of the test `smoke` of each function. Cargo gives the path of a built binary only to tests of the
//! binary's own package, and builds the binary with them.

use std::process::Command;

/// Asserts that the binary does not start with an empty environment, and that one line of its log names all of
/// `required`.
pub(crate) fn expect_named(binary: &str, required: &[&str]) {
    let output = Command::new(binary).env_clear().output().expect("the binary can be run");
    assert!(!output.status.success(), "it must not start");
    let log = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(!log.contains("panicked"), "{log}");
    let named = |line: &&str| required.iter().all(|name| line.contains(name));
    let line = log.lines().find(named).unwrap_or_else(|| panic!("no line names {required:?}: {log}"));
    let entry: serde_json::Value = serde_json::from_str(line).expect("the line is JSON");
    assert_eq!(entry["level"], "ERROR", "{entry}");
}
