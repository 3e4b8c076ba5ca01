//! What a command says: a table or sentences for people, one JSON value for programs.

use std::io::Write as _;

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};

use crate::ending::Failure;

/// In which form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out {
    pub(crate) json: bool,
}

impl Out {
    /// One value; `people` read `text` instead.
    pub(crate) fn value(self, value: &Value, text: &str) {
        if self.json {
            line(&format!("{value:#}"));
        } else {
            line(text);
        }
    }

    /// A list as `{"<name>":[…]}`, or as a table with these headings.
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

/// A table without lines, so that it can be cut and searched.
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

/// Names and values below each other.
pub(crate) fn members(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let rows: Vec<_> = rows.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    rows.join("\n")
}

/// How it ended, on standard error; as JSON for programs.
pub(crate) fn failure(failure: &Failure, as_json: bool) {
    let text = if as_json {
        json!({ "error": failure.to_string(), "exit_code": failure.number() }).to_string()
    } else {
        format!("ops: {failure}")
    };
    note(&text);
}

/// A line for people beside what is printed: on standard error.
pub(crate) fn note(text: &str) {
    let _reader_gone = writeln!(std::io::stderr(), "{text}");
}

fn line(text: &str) {
    let _reader_gone = writeln!(std::io::stdout(), "{text}");
}
