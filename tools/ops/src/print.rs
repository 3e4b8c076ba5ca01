//! The output of a command: a table or sentences for people, one JSON value for programs.

use std::io::Write as _;

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};

use crate::error::CommandError;

/// The form of the output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out {
    pub(crate) json: bool,
}

impl Out {
    /// Prints one value: as JSON, or as `text`.
    pub(crate) fn value(self, value: &Value, text: &str) {
        if self.json {
            line(&format!("{value:#}"));
        } else {
            line(text);
        }
    }

    /// Prints a list: as JSON `{"<name>":[…]}`, or as a table with these headings.
    pub(crate) fn list(self, name: &str, values: &[Value], headings: &[&str], rows: Vec<Vec<String>>) {
        if self.json {
            return line(&format!("{:#}", json!({ name: values })));
        }
        if rows.is_empty() {
            return line("none");
        }
        line(&table(headings, rows));
    }
}

/// Formats a table without rules, so that `cut` and `grep` work on it.
pub(crate) fn table(headings: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().map(|heading| heading.to_uppercase()));
    table.add_rows(rows);
    table
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Formats names and values in two columns.
pub(crate) fn members(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let rows: Vec<_> = rows.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    rows.join("\n")
}

/// Prints the error of a command on standard error: as JSON, or as text.
pub(crate) fn error(error: &CommandError, as_json: bool) {
    let text = if as_json {
        json!({ "error": error.to_string(), "exit_code": error.exit_number() }).to_string()
    } else {
        format!("ops: {error}")
    };
    note(&text);
}

/// Prints a note for people on standard error.
pub(crate) fn note(text: &str) {
    let _reader_gone = writeln!(std::io::stderr(), "{text}");
}

fn line(text: &str) {
    let _reader_gone = writeln!(std::io::stdout(), "{text}");
}
