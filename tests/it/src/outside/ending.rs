//! The end of a system: stops its processes and searches everything that they logged for secrets.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::PoisonError;

use aws_sdk_dynamodb::types::AttributeValue;
use sandbox::process::{Program, Signal, Worker, WorkerSpec};
use sandbox::whole::{APP_SECRET, SEALING_SECRET, TABLE};
use serde_json::Value;

use super::{System, until};
use crate::emf;
use crate::redaction::{Search, forms};

impl System {
    /// Everything in the embedded table, texts and bytes alike, as one text.
    ///
    /// # Panics
    /// If the table cannot be read.
    pub async fn stored(&self) -> String {
        let scan = self.sandbox.dynamo.client().scan().table_name(TABLE).send().await.expect("read");
        let mut text = String::new();
        for item in scan.items() {
            print_attributes(item, &mut text);
        }
        text
    }

    /// Every secret that this system has used.
    pub fn secrets(&self) -> Vec<String> {
        let mut secrets: BTreeSet<String> = self.further_secrets.lock().unwrap_or_else(PoisonError::into_inner).clone();
        secrets.extend(self.sandbox.marketplace.every_secret());
        let texts = |secret: &str| -> Value {
            serde_json::from_str(&self.sandbox.secrets.get(secret).unwrap_or_default()).unwrap_or_default()
        };
        secrets.extend(texts(APP_SECRET)["client_secret"].as_str().map(str::to_owned));
        secrets.extend(texts(SEALING_SECRET)["k1"].as_str().map(str::to_owned));
        secrets.into_iter().filter(|secret| !secret.is_empty()).collect()
    }

    /// Ends all processes and checks their output: every line is JSON, no process has panicked, no line contains a
    /// secret.
    ///
    /// # Panics
    /// If a check fails.
    pub async fn end(self) {
        for worker in &self.workers {
            assert!(worker.pid().is_some(), "{} has ended by itself: {:?}", worker.name(), self.last_lines());
            assert!(worker.signal(Signal::Terminate).await, "{} is told to end", worker.name());
        }
        // The supervisor reports a process as ended only after it has read all of the process's output.
        assert!(until(|| self.workers.iter().all(|worker| worker.pid().is_none())).await, "they end when told to");
        self.observed.keep();
        let lines = self.sandbox.logs.lines();
        assert!(!lines.is_empty(), "nothing was read from any process");
        for line in &lines {
            let is_json = serde_json::from_str::<Value>(&line.line).is_ok_and(|value| value.is_object());
            assert!(is_json, "{} wrote a line that is no JSON: {}", line.worker, line.line);
            assert!(!line.line.contains("panicked"), "{} has panicked: {}", line.worker, line.line);
        }
        let secrets = self.secrets();
        assert!(secrets.len() >= 3, "client secret, sealing key and caller key at least");
        let search = Search::for_secrets(&secrets);
        for line in &lines {
            if let Some(found) = search.find(&line.line) {
                panic!("{} has logged {found}: {}", line.worker, line.line);
            }
            // Every metric in the line must have a form that CloudWatch accepts.
            let _metrics = emf::metrics(&serde_json::from_str(&line.line).expect("seen to be JSON"));
        }
        self.expect_found_if_written(&secrets).await;
    }

    /// The positive control of the search: a process writes the secrets, and the same search must find each of them.
    async fn expect_found_if_written(&self, secrets: &[String]) {
        // At most a hundred secrets, the number that fits into an environment, each in all its forms.
        let some = || secrets.iter().rev().take(100).flat_map(|secret| forms(secret));
        let environment = some().enumerate().map(|(number, form)| (format!("S{number}"), format!("a{form}z")));
        let spec = WorkerSpec {
            function: "control".to_owned(),
            worker: "control-1".to_owned(),
            program: Program::Path(PathBuf::from("env")),
            environment: environment.collect(),
            restart: false,
        };
        let control = Worker::start(spec, self.sandbox.worker_context()).expect("env is everywhere");
        assert!(until(|| control.pid().is_none()).await, "env ends by itself");
        let search = Search::for_secrets(secrets);
        let lines = self.sandbox.logs.lines();
        let written: Vec<_> = lines.iter().filter(|line| line.worker == "control-1").collect();
        for form in some() {
            let found =
                written.iter().filter(|line| line.line.contains(&form)).any(|line| search.find(&line.line).is_some());
            assert!(found, "the search does not find {form}");
        }
    }
}

fn print_attributes(attributes: &HashMap<String, AttributeValue>, text: &mut String) {
    for (name, value) in attributes {
        print_attribute(name, value, text);
    }
}

fn print_attribute(name: &str, value: &AttributeValue, text: &mut String) {
    use std::fmt::Write as _;
    let _infallible = match value {
        AttributeValue::S(value) | AttributeValue::N(value) => writeln!(text, "{name} {value}"),
        AttributeValue::B(value) => writeln!(text, "{name} {}", String::from_utf8_lossy(value.as_ref())),
        AttributeValue::M(map) => {
            print_attributes(map, text);
            Ok(())
        }
        other => writeln!(text, "{name} {other:?}"),
    };
}
