//! The built binary reports all missing variables at once, and does not start.

#[path = "../../../tests/smoke.rs"]
mod smoke;

#[test]
fn an_empty_environment_is_refused_with_the_names_of_all_missing_variables() {
    smoke::expect_named(
        env!("CARGO_BIN_EXE_relay"),
        &["TABLE_NAME", "APP_SECRET_ID", "SEALING_SECRET_ID", "CALLERS_SECRET_ID"],
    );
}
