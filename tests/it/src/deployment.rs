//! An emulated AWS account in the state after `sam deploy`. `tests/template/deploy.py` reads `template.yaml` and
//! creates the table on DynamoDB Local, and the secrets and queues on moto. Both emulators are third-party software.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::Deserialize;

use crate::dynamo::{Engine, Kind, skip, variable};

/// Programs of the Python environment that `.ci/requirements.txt` makes.
#[derive(Clone, Debug)]
pub struct Tools(PathBuf);

impl Tools {
    /// Finds the programs in the folder `PYTHON_TOOLS`, or where `.ci/run` installs them. `None` if they are not there;
    /// `test` is then recorded as skipped.
    ///
    /// # Panics
    /// If `test` would be skipped although `CI=true`.
    pub fn find(test: &str) -> Option<Self> {
        let usual = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/venv/bin");
        let folder = variable("PYTHON_TOOLS").map_or_else(usual, PathBuf::from);
        if folder.join("moto_server").exists() {
            return Some(Self(folder));
        }
        skip(test, "no moto: set PYTHON_TOOLS to the bin folder of an environment with .ci/requirements.txt");
        None
    }

    /// A program of the environment.
    fn command(&self, program: &str) -> Command {
        self.command_at(self.0.join(program))
    }

    /// A command for any program. The programs of the environment are on its path.
    fn command_at(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let paths = std::env::join_paths([self.0.clone(), "/usr/bin".into(), "/bin".into()]).expect("paths");
        command.env("PATH", paths).envs(ACCOUNT);
        command
    }
}

/// Credentials that give access to nothing.
const ACCOUNT: [(&str, &str); 5] = [
    ("AWS_REGION", "us-east-1"),
    ("AWS_DEFAULT_REGION", "us-east-1"),
    ("AWS_ACCESS_KEY_ID", "test"),
    ("AWS_SECRET_ACCESS_KEY", "test"),
    ("AWS_EC2_METADATA_DISABLED", "true"),
];

/// The account. Dropping it ends the emulators.
#[derive(Debug)]
pub struct Deployment {
    output: DeployOutput,
    tools: Tools,
    moto: Moto,
    engine: Engine,
}

/// The output of `deploy.py`.
#[derive(Debug, Deserialize)]
struct DeployOutput {
    environment: BTreeMap<String, BTreeMap<String, String>>,
    outputs: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Moto {
    address: SocketAddr,
    process: Child,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Moto {
    async fn start(tools: &Tools) -> Self {
        // As for DynamoDB Local, the port is below the ports that outgoing connections use.
        let address = loop {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(20_000..30_000)));
            if tokio::net::TcpListener::bind(address).await.is_ok() {
                break address;
            }
        };
        let mut command = tools.command("moto_server");
        command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("moto starts");
        let mut moto = Self { address, process };
        let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
        while tokio::net::TcpStream::connect(address).await.is_err() {
            assert_eq!(moto.process.try_wait().expect("a child"), None, "moto ended at once");
            assert!(tokio::time::Instant::now() < deadline, "moto does not listen");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        moto
    }
}

impl Deployment {
    /// Deploys with these parameters; `api` is the base URL of the HTTP API. `None` if an emulator is not installed;
    /// `test` is then recorded as skipped.
    ///
    /// # Panics
    /// If an installed emulator or `deploy.py` fails.
    pub async fn make(test: &str, parameters: &[(&str, &str)], api: &str) -> Option<Self> {
        let tools = Tools::find(test)?;
        let engine = Engine::start(Kind::Local, test).await?;
        let moto = Moto::start(&tools).await;
        let mut command = tools.command("python");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../template/deploy.py"));
        command.args(["--dynamodb", &engine.url(), "--moto", &format!("http://{}", moto.address), "--api", api]);
        for (name, value) in parameters {
            command.args(["--parameter", &format!("{name}={value}")]);
        }
        let done = tokio::process::Command::from(command).output().await.expect("python starts");
        assert!(done.status.success(), "deploy.py: {}", String::from_utf8_lossy(&done.stderr));
        let output = serde_json::from_slice(&done.stdout).expect("deploy.py prints JSON");
        Some(Self { output, tools, moto, engine })
    }

    /// Base URL of the store.
    pub fn store(&self) -> String {
        self.engine.url()
    }

    /// The table's name.
    pub fn table(&self) -> &str {
        self.output("TableName")
    }

    /// The environment of a function as the template sets it, with the addresses of the emulators.
    ///
    /// # Panics
    /// If the template has no such function.
    pub fn environment(&self, function: &str) -> BTreeMap<String, String> {
        let own = self.output.environment.get(function).expect("a function of the template").clone();
        own.into_iter().chain(self.endpoints()).collect()
    }

    /// The environment in the output `OperatorEnvironment`, with the addresses of the emulators.
    ///
    /// # Panics
    /// If the output is not of the documented form.
    pub fn operators_environment(&self) -> BTreeMap<String, String> {
        let pairs = self.output("OperatorEnvironment").split(' ').map(|pair| pair.split_once('=').expect("NAME=VALUE"));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).chain(self.endpoints()).collect()
    }

    fn endpoints(&self) -> impl Iterator<Item = (String, String)> {
        let moto = format!("http://{}", self.moto.address);
        [
            ("AWS_ENDPOINT_URL_DYNAMODB", self.engine.url()),
            ("AWS_ENDPOINT_URL_SECRETS_MANAGER", moto.clone()),
            ("AWS_ENDPOINT_URL_SQS", moto),
        ]
        .into_iter()
        .chain(ACCOUNT.map(|(name, value)| (name, value.to_owned())))
        .map(|(name, value)| (name.to_owned(), value))
    }

    /// An output of the stack.
    ///
    /// # Panics
    /// If the stack has no output of that name.
    pub fn output(&self, name: &str) -> &str {
        self.output.outputs.get(name).unwrap_or_else(|| panic!("no output {name}"))
    }

    /// Runs a command line as somebody would type it into bash, with the AWS CLI on the path. Returns the printed text.
    ///
    /// # Panics
    /// If the command fails.
    pub async fn type_in(&self, line: &str, input: &str) -> String {
        use tokio::io::AsyncWriteExt as _;
        let mut command = self.tools.command_at("bash");
        command.envs(self.endpoints());
        command.args(["-c", line]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut typed = tokio::process::Command::from(command).spawn().expect("bash starts");
        let mut stdin = typed.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).await.expect("it reads");
        drop(stdin);
        let done = typed.wait_with_output().await.expect("it ends");
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).expect("UTF-8")
    }
}
