//! Real DynamoDB engines for tests, and the record of skipped tests.
//!
//! One engine runs inside the test's own process. The other is DynamoDB Local, which needs Java and its jar. This crate
//! does not depend on the project's code, so the unit tests of `shared` can use it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpListener;

mod skip;

pub use skip::skip;

/// The engine that a test uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// dynoxide, on an in-memory `SQLite`.
    Embedded,
    /// DynamoDB Local, AWS's own emulator.
    Local,
}

/// A running engine. Dropping it stops it.
#[derive(Debug)]
pub struct Engine {
    address: SocketAddr,
    _process: Option<Process>,
    _shutdown: Option<tokio::sync::oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Engine {
    /// Starts an engine. `None` if `kind` is [`Kind::Local`] and this machine has no DynamoDB Local; `test` is then
    /// recorded as skipped.
    ///
    /// # Panics
    /// If an installed engine does not start, or if `test` would be skipped although `CI=true`.
    pub async fn start(kind: Kind, test: &str) -> Option<Self> {
        match kind {
            Kind::Embedded => Some(Self::embedded().await),
            Kind::Local => {
                let Some(folder) = local_folder() else {
                    skip(test, "no DynamoDB Local: set DYNAMODB_LOCAL_DIR");
                    return None;
                };
                Some(Self::local(&folder).await)
            }
        }
    }

    async fn embedded() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let database = dynoxide::Database::memory().expect("a database in memory");
        let (shutdown, stopped) = tokio::sync::oneshot::channel::<()>();
        tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            dynoxide::server::serve_with_shutdown(listener, database, stopped).await
        });
        Self { address, _process: None, _shutdown: Some(shutdown) }
    }

    async fn local(folder: &Path) -> Self {
        // DynamoDB Local cannot take over a bound socket, so this picks a port that was free a moment ago. The port is
        // below the range of outgoing connections: a probe of a port in that range can connect to itself.
        let address = loop {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(20_000..30_000)));
            if TcpListener::bind(address).await.is_ok() {
                break address;
            }
        };
        let mut child = Command::new("java")
            .current_dir(folder)
            .args(["-Djava.library.path=./DynamoDBLocal_lib", "-jar", "DynamoDBLocal.jar", "-inMemory", "-port"])
            .arg(address.port().to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("java starts");
        let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
        while tokio::net::TcpStream::connect(address).await.is_err() {
            assert_eq!(child.try_wait().expect("a child"), None, "DynamoDB Local ended at once");
            assert!(tokio::time::Instant::now() < deadline, "DynamoDB Local does not listen");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Self { address, _process: Some(Process(child)), _shutdown: None }
    }

    /// Returns the base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Returns the folder of DynamoDB Local. `None` if this machine does not have it.
pub fn local_folder() -> Option<PathBuf> {
    let folder = variable("DYNAMODB_LOCAL_DIR").map_or_else(usual_local_folder, PathBuf::from);
    folder.join("DynamoDBLocal.jar").exists().then_some(folder)
}

/// Returns the folder in which `.ci/run` installs DynamoDB Local, unless `DYNAMODB_LOCAL_DIR` names another folder.
pub fn usual_local_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/dynamodb-local")
}

/// Returns a variable of the environment.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
