//! The calls of AWS services that the functions make, as seen on their connections.
//!
//! Each system appends its calls to `target/observed/`. After all end-to-end tests, `tests/template/observed.py` compares
//! the calls with the permissions of the template.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The calls of all functions of a system, without duplicates. Each is a line of JSON.
#[derive(Clone, Debug, Default)]
pub(super) struct Observed(Arc<Mutex<BTreeSet<String>>>);

impl Observed {
    /// Begins to observe the connections of a function to a service. Returns the URL that the function must use.
    pub(super) async fn watch(&self, function: &str, url: &str) -> String {
        let server = url.strip_prefix("http://").expect("http").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (observed, function) = (self.clone(), function.to_owned());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(observed.clone().carry(function.clone(), stream, server.clone()));
            }
        });
        format!("http://{address}")
    }

    async fn carry(self, function: String, mut near: TcpStream, server: String) {
        let Ok(mut far) = TcpStream::connect(server).await else { return };
        let _without = (near.set_nodelay(true), far.set_nodelay(true));
        let ((mut near_in, mut near_out), (mut far_in, mut far_out)) = (near.split(), far.split());
        let requests = async {
            let (mut seen, mut buffer) = (Vec::new(), vec![0; 16 * 1024]);
            loop {
                let count = near_in.read(&mut buffer).await?;
                if count == 0 {
                    return Ok::<_, std::io::Error>(());
                }
                seen.extend_from_slice(&buffer[..count]);
                self.read(&function, &mut seen);
                far_out.write_all(&buffer[..count]).await?;
            }
        };
        tokio::select! {
            _closed = requests => {}
            _closed = tokio::io::copy(&mut far_in, &mut near_out) => {}
        }
    }

    /// Notes and removes the whole requests at the beginning of `seen`.
    fn read(&self, function: &str, seen: &mut Vec<u8>) {
        while let Some(end) = seen.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&seen[..end]).into_owned();
            let header = |name: &str| {
                let mut lines = head.lines().filter_map(|line| line.split_once(':'));
                lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
            };
            let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            let Some(body) = seen.get(end + 4..end + 4 + length) else { return };
            let body: Value = serde_json::from_slice(body).unwrap_or_default();
            if let Some(target) = header("x-amz-target") {
                let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                calls.extend(calls_of(function, &target, &body));
            }
            seen.drain(..end + 4 + length);
        }
    }

    /// Appends the calls to the file of this process.
    pub(super) fn keep(&self) {
        let calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = calls.iter().fold(String::new(), |text, call| text + call + "\n");
        let test = std::env::current_exe().expect("the test's own path");
        let folder: PathBuf = test.ancestors().nth(3).expect("the target folder").join("observed");
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join(format!("{}.jsonl", std::process::id()));
        let mut file = std::fs::File::options().create(true).append(true).open(file).expect("a file");
        file.write_all(lines.as_bytes()).expect("written");
    }
}

/// The permissions that a call needs, one for each leading key.
fn calls_of(function: &str, target: &str, body: &Value) -> Vec<String> {
    let (service, operation) = target.split_once('.').unwrap_or((target, ""));
    let service = match service {
        "DynamoDB_20120810" => "dynamodb",
        "AmazonSQS" => "sqs",
        "AWSEvents" => "events",
        other => other,
    };
    let index = body["IndexName"].as_str();
    let resource = match service {
        "dynamodb" => index.map_or_else(|| "Table".to_owned(), |index| format!("Table/index/{index}")),
        "secretsmanager" => body["SecretId"].as_str().unwrap_or_default().to_owned(),
        "sqs" => {
            let queue = body["QueueUrl"].as_str().or_else(|| body["QueueName"].as_str());
            queue.and_then(|queue| queue.rsplit('/').next()).unwrap_or_default().to_owned()
        }
        _ => "bus".to_owned(),
    };
    // A batch needs the permission of the single operation.
    let action = format!("{service}:{}", operation.strip_suffix("Batch").unwrap_or(operation));
    let keys = leading_keys(body);
    let line = |key: Option<String>| {
        json!({ "function": function, "action": action, "resource": resource, "key": key }).to_string()
    };
    if keys.is_empty() { vec![line(None)] } else { keys.into_iter().map(|key| line(Some(key))).collect() }
}

/// The partition keys in a request of `DynamoDB`, each without the part that differs from item to item.
fn leading_keys(body: &Value) -> BTreeSet<String> {
    let text = |key: &Value| key["pk"]["S"].as_str().map(kind_of);
    if let Some(condition) = body["KeyConditionExpression"].as_str() {
        let placeholder = condition.split(['=', ' ']).find(|word| word.starts_with(':')).unwrap_or_default();
        let value = body["ExpressionAttributeValues"][placeholder]["S"].as_str();
        // A company's id is no kind of key.
        return value.filter(|_| body["IndexName"] != "company").map(str::to_owned).into_iter().collect();
    }
    let batch = body["RequestItems"].as_object().into_iter().flat_map(|tables| tables.values());
    let batch = batch.filter_map(|table| table["Keys"].as_array()).flatten().filter_map(text);
    batch.chain(text(&body["Key"])).collect()
}

fn kind_of(key: &str) -> String {
    let parts = if key.starts_with("app#") { 2 } else { 1 };
    match key.match_indices('#').nth(parts - 1) {
        Some((end, _)) => key[..=end].to_owned(),
        None => key.to_owned(),
    }
}
