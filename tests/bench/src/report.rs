//! The measured figures, as a table and as JSON.

use std::io::Write as _;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use serde_json::{Value, json};

use crate::pairs::Ratio;

/// True if this program, and with it every raw baseline, is a release build.
pub(crate) const OPTIMIZED: bool = !cfg!(debug_assertions);

/// The target of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// At most this value.
    AtMost(f64),
    /// At least this value.
    AtLeast(f64),
    /// Exactly this value.
    Exactly(f64),
    /// No target. The figure is only reported.
    Told,
}

impl Target {
    fn is_met_by(self, figure: f64) -> bool {
        match self {
            Self::AtMost(most) => figure <= most,
            Self::AtLeast(least) => figure >= least,
            Self::Exactly(wanted) => (figure - wanted).abs() < 1e-9,
            Self::Told => true,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(most) => format!("≤ {most}"),
            Self::AtLeast(least) => format!("≥ {least}"),
            Self::Exactly(wanted) => format!("= {wanted}"),
            Self::Told => "told".to_owned(),
        }
    }
}

/// The kind of a figure: a counted figure is the same on every machine, a timed one is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The figure is counted. A miss fails the run.
    Count,
    /// The figure is timed. A miss is only shown, because a busy machine can cause it.
    Time,
}

/// One figure.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    name: &'static str,
    engine: &'static str,
    what: String,
    kind: Kind,
    target: Target,
    measured: f64,
    detail: String,
    ratio: Option<Ratio>,
}

impl Row {
    /// A figure that is counted.
    pub(crate) fn count(name: &'static str, engine: &'static str, what: &str, target: Target, measured: f64) -> Self {
        let (what, detail) = (what.to_owned(), String::new());
        Self { name, engine, what, kind: Kind::Count, target, measured, detail, ratio: None }
    }

    /// A figure that is timed.
    pub(crate) fn time(name: &'static str, engine: &'static str, what: &str, target: Target, measured: f64) -> Self {
        Self { kind: Kind::Time, ..Self::count(name, engine, what, target, measured) }
    }

    /// A ratio of times or rates. Both sides have the unit `unit`.
    pub(crate) fn ratio(
        name: &'static str,
        engine: &'static str,
        what: &str,
        target: Target,
        ratio: &Ratio,
        unit: &str,
    ) -> Self {
        let Ratio { raw, system, quartiles: (low, high), pairs, .. } = ratio;
        let detail = format!(
            "{} {unit} against {}; half of {pairs} pairs within {low:.2} to {high:.2}",
            figure(*system),
            figure(*raw)
        );
        Self { detail, ratio: Some(ratio.clone()), ..Self::time(name, engine, what, target, ratio.median) }
    }

    /// Adds a remark.
    pub(crate) fn with_remark(self, detail: impl Into<String>) -> Self {
        let (detail, more) = (self.detail, detail.into());
        let detail = if detail.is_empty() { more } else { format!("{detail}; {more}") };
        Self { detail, ..self }
    }

    fn is_met(&self) -> bool {
        self.target.is_met_by(self.measured)
    }

    fn to_json(&self) -> Value {
        let ratio = self.ratio.as_ref().map(|ratio| {
            let (low, high) = ratio.quartiles;
            json!({ "raw": ratio.raw, "system": ratio.system, "quartiles": [low, high], "pairs": ratio.pairs })
        });
        json!({
            "name": self.name, "engine": self.engine, "what": self.what, "target": self.target.text(),
            "measured": self.measured, "pass": self.is_met(),
            "gates": self.kind == Kind::Count && self.target != Target::Told,
            "detail": self.detail, "ratio": ratio,
        })
    }
}

/// All figures of a run, and the figures that could not be measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    missing: Vec<String>,
    failed: Vec<&'static str>,
}

impl Report {
    /// Adds the figures of a part. A part that panics, because an answer was wrong, fails the run, but the other parts
    /// are still measured.
    pub(crate) async fn part(&mut self, name: &'static str, rows: impl AsyncFnOnce() -> Vec<Row>) {
        match AssertUnwindSafe(Box::pin(rows())).catch_unwind().await {
            Ok(rows) => self.add(rows),
            Err(_said_already) => {
                say(&format!("failed: {name}"));
                self.failed.push(name);
            }
        }
    }

    /// Adds figures, and prints them at once.
    pub(crate) fn add(&mut self, rows: impl IntoIterator<Item = Row>) {
        for row in rows {
            say(&line(&row));
            self.rows.push(row);
        }
    }

    /// Records a figure that could not be measured, and the reason.
    pub(crate) fn missing(&mut self, what: &str, why: &str) {
        say(&format!("not measured: {what}: {why}"));
        self.missing.push(format!("{what}: {why}"));
    }

    /// Returns true if every counted figure meets its target and all parts were completed.
    pub(crate) fn holds(&self) -> bool {
        self.failed.is_empty() && self.rows.iter().all(|row| row.kind == Kind::Time || row.is_met())
    }

    /// All figures as JSON, with the machine on which they were measured.
    pub(crate) fn to_json(&self, machine: &Value) -> Value {
        json!({
            "machine": machine,
            "rows": self.rows.iter().map(Row::to_json).collect::<Vec<_>>(),
            "not_measured": self.missing,
            "failed": self.failed,
        })
    }

    /// Prints the whole table once more, in one piece.
    pub(crate) fn print(&self) {
        say("");
        say("| what | engine | target | measured | |");
        say("|---|---|---|---|---|");
        for row in &self.rows {
            say(&line(row));
        }
        for missing in &self.missing {
            say(&format!("\nnot measured: {missing}"));
        }
        for row in self.rows.iter().filter(|row| row.kind == Kind::Count && !row.is_met()) {
            let Row { what, engine, target, measured, .. } = row;
            say(&format!("\nmissed: {what} ({engine}): {}, target {}", figure(*measured), target.text()));
        }
        for failed in &self.failed {
            say(&format!("\nfailed: {failed}"));
        }
        if !OPTIMIZED {
            say("\nWhat is timed says nothing here: this program, which is the raw baseline, is not optimized.");
        }
    }
}

fn line(row: &Row) -> String {
    let verdict = match (row.target, row.is_met()) {
        (Target::Told, _) => "",
        _ if row.kind == Kind::Time && !OPTIMIZED => "",
        (_, true) => "yes",
        (_, false) => "**no**",
    };
    let Row { what, engine, target, measured, detail, .. } = row;
    format!("| {what} | {engine} | {} | {} {verdict} | {detail} |", target.text(), figure(*measured))
}

/// A figure with its significant digits.
fn figure(value: f64) -> String {
    let text = if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Prints a line on standard output, because the program's result is text.
pub(crate) fn say(line: &str) {
    let _nobody_reads = writeln!(std::io::stdout(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_count_fails_the_run_and_a_missed_time_does_not() {
        let row = |kind, measured| Row { kind, ..Row::count("a", "", "b", Target::AtMost(1.0), measured) };
        for (kind, measured, holds) in [(Kind::Count, 1.0, true), (Kind::Count, 1.01, false), (Kind::Time, 2.0, true)] {
            let report = Report { rows: vec![row(kind, measured)], ..Report::default() };
            assert_eq!(report.holds(), holds, "{kind:?} {measured}");
            assert_eq!(report.to_json(&Value::Null)["rows"][0]["pass"], measured <= 1.0);
        }
    }

    #[tokio::test]
    async fn a_part_that_panics_fails_the_run_and_leaves_the_others() {
        let row = Row::count("a", "", "b", Target::Exactly(1.0), 1.0);
        let mut report = Report::default();
        report.part("good", async || vec![row.clone()]).await;
        assert!(report.holds());
        report.part("bad", async || panic!("on purpose")).await;
        report.part("good", async || vec![row.clone()]).await;
        assert!(!report.holds());
        let json = report.to_json(&Value::Null);
        assert_eq!((&json["failed"], json["rows"].as_array().map(Vec::len)), (&json!(["bad"]), Some(2)));
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([0.5, 1.0, 1.2345, 99.96, 1234.5].map(figure), ["0.5", "1", "1.234", "99.96", "1234"]);
    }
}
