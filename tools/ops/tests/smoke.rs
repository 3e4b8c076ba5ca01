//! The built program reports all missing variables at once, and exits with the documented code.

use std::process::Command;

#[test]
fn an_empty_environment_is_refused_with_the_names_of_all_missing_variables() {
    let output = Command::new(env!("CARGO_BIN_EXE_ops")).env_clear().arg("list").output().expect("it can be run");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    for name in ["TABLE_NAME", "APP_SECRET_ID", "SEALING_SECRET_ID", "CALLERS_SECRET_ID"] {
        assert!(stderr.contains(name), "{name} is not named: {stderr}");
    }
}
