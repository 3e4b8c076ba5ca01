//! The built binary reports all missing variables at once, and does not start.

use std::process::Command;

#[test]
fn an_empty_environment_is_refused_with_the_names_of_all_missing_variables() {
    let output = Command::new(env!("CARGO_BIN_EXE_callback")).env_clear().output().expect("the binary can be run");
    assert!(!output.status.success(), "it must not start");
    let log = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    let required = ["TABLE_NAME", "APP_SECRET_ID", "SEALING_SECRET_ID"];
    let named = |line: &&str| required.iter().all(|name| line.contains(name));
    let line = log.lines().find(named).unwrap_or_else(|| panic!("no line names {required:?}: {log}"));
    let entry: serde_json::Value = serde_json::from_str(line).expect("the line is JSON");
    assert_eq!(entry["level"], "ERROR", "{entry}");
}
