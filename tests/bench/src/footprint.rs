//! The size of a function: on disk, and in memory after many calls.

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use crate::pairs::float;
use crate::report::{Row, Target};
use crate::store::Store;
use crate::system::{Distances, Functions, System, Through, location, request};

const MIB: f64 = 1_048_576.0;

/// The size of the bootstrap on disk.
pub(crate) fn size(functions: &Functions) -> Vec<Row> {
    let path = functions.bootstrap("relay");
    let bytes = std::fs::read(&path).expect("the function is built");
    // An ELF file that was not stripped has a symbol table section of this name.
    let stripped = !bytes.windows(9).any(|window| window == b"\0.symtab\0");
    let size = float(bytes.len()) / 1e6;
    let what = "relay bootstrap, MB (10^6 bytes)";
    // A file with a symbol table is no release build.
    let target = if stripped { Target::AtMost(8.0) } else { Target::Told };
    vec![Row::count("size.bootstrap", "none", what, target, size).with_remark(if stripped {
        "stripped"
    } else {
        "not stripped"
    })]
}

/// The memory after many calls for one resource, and for many resources.
pub(crate) async fn memory(store: &Store, functions: &Functions, quick: bool) -> Vec<Row> {
    let calls = if quick { 1_000 } else { 10_000 };
    let system = System::new(store, functions, Through::Nothing, Distances::default()).await;
    system.install(&location(0), 0).await;
    let relay = system.start_function("relay");
    let peak = || peak(relay.pid().expect("it runs"));
    let payload = request(&location(0));
    for _ in 0..calls {
        system.relay(&payload).await;
    }
    let after_calls = peak();

    let installed = &system;
    let install = |number| async move { installed.install(&location(number), number).await };
    stream::iter(1..calls).for_each_concurrent(8, install).await;
    let mut halfway = 0.0;
    for from in (0..calls).step_by(50) {
        let requests: Vec<Value> = (from..from + 50)
            .map(|number| json!({ "resource": { "location": location(number).id() }, "method": "GET", "path": "/contacts/x" }))
            .collect();
        let answer = system.invoke("relay", Bytes::from(json!({ "requests": requests }).to_string())).await;
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        let all = answer["responses"].as_array().expect("a list");
        assert!(all.iter().all(|one| one["status"] == 200), "{answer}");
        if from < calls / 2 {
            halfway = peak();
        }
    }
    let after_resources = peak();
    let row = |name, what: String, target, measured: f64| {
        Row::count(name, store.name, &what, target, measured / MIB).with_remark(format!("{calls} of each"))
    };
    let mut rows = vec![
        row("memory.calls", format!("relay's peak memory after {calls} calls, MiB"), Target::AtMost(24.0), after_calls),
        row("memory.resources", format!("after {calls} different resources, MiB"), Target::Told, after_resources),
    ];
    // The process would remember all of a smaller number of resources.
    if !quick {
        let what = "of that, by the second half of the resources, MiB".to_owned();
        rows.push(row("memory.bounded", what, Target::AtMost(1.0), after_resources - halfway));
    }
    rows
}

/// The highest memory use of a process so far, in bytes.
fn peak(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("in kB");
    line.trim().trim_end_matches("kB").trim().parse::<f64>().expect("a number") * 1024.0
}
