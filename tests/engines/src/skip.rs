//! Tests that this machine cannot run.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

/// Variable with the path of the file to which each skipped test appends one line. `tests/run` sets it, and prints the
/// file at the end.
const LIST: &str = "SKIPPED_TESTS";

/// Records that `test` is skipped because this machine has `missing`, such as "no Java". The caller then returns.
///
/// The line goes to the file that `SKIPPED_TESTS` names, and to standard error: the test harness captures the output of
/// `print!`, but not what is written to standard error directly.
///
/// # Panics
/// If `CI=true`, because continuous integration must be able to run every test. If the file cannot be written.
pub fn skip(test: &str, missing: &str) {
    assert!(crate::variable("CI").as_deref() != Some("true"), "{test} cannot run: this machine has {missing}");
    let _written = writeln!(std::io::stderr(), "skipped: {test} ({missing})");
    if let Some(list) = crate::variable(LIST) {
        append(Path::new(&list), test, missing);
    }
}

fn append(list: &Path, test: &str, missing: &str) {
    let mut list = OpenOptions::new().create(true).append(true).open(list).expect("the list of skipped tests opens");
    // One write for each line, because several processes append to the file at the same time.
    list.write_all(format!("{missing}\t{test}\n").as_bytes()).expect("the list of skipped tests is written");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_are_skipped_at_the_same_time_have_a_whole_line_each() {
        let list = std::env::temp_dir().join(format!("skipped-tests-{:016x}", fastrand::u64(..)));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let list = &list;
                scope.spawn(move || (0..50).for_each(|n| append(list, &format!("test {thread} {n}"), "no Java")));
            }
        });
        let text = std::fs::read_to_string(&list).expect("the list");
        std::fs::remove_file(&list).expect("the list is removed");
        let whole = text.lines().filter(|line| line.starts_with("no Java\ttest ") && line.matches("test").count() == 1);
        assert_eq!((text.lines().count(), whole.count()), (200, 200));
    }
}
