//! Functions as child processes: the sandbox starts, watches, restarts, freezes and kills them, and leaves none behind.

use std::{
    collections::BTreeMap,
    ops::Deref,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    task::JoinHandle,
};

use crate::{
    events::{Event, EventBus},
    lock::lock,
    runtime_api::RuntimeApi,
    server::StartError,
};

/// AWS region of everything in the sandbox.
pub const REGION: &str = "us-east-1";
/// AWS account of everything in the sandbox.
pub const ACCOUNT: &str = "000000000000";

/// The program of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// This binary, as `<binary> function <name>`. The process ends when its standard input closes, so it cannot
    /// outlive us.
    Itself,
    /// The bootstrap of a function that was built earlier, or any program that speaks the Runtime API.
    Path(PathBuf),
    /// A bootstrap that runs under a tool such as valgrind. The tool's command line ends with the path of the
    /// bootstrap.
    Under {
        /// The tool.
        tool: String,
        /// Arguments of the tool.
        arguments: Vec<String>,
        /// The bootstrap.
        path: PathBuf,
    },
}

/// The description of a worker's process.
#[derive(Debug, Clone)]
pub struct WorkerSpec {
    /// Name of the function.
    pub function: String,
    /// Name of this worker, unique among the workers of the function.
    pub worker: String,
    /// The program to run.
    pub program: Program,
    /// Environment besides Lambda's own variables. The process inherits only `PATH`.
    pub environment: BTreeMap<String, String>,
    /// True if the process is started again after it ended by itself or was killed.
    pub restart: bool,
}

/// A signal for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// `SIGKILL`: the process ends at once, in the middle of its work.
    Kill,
    /// `SIGSTOP`: the process freezes. Lambda also freezes environments, but a test can do so at any moment.
    Stop,
    /// `SIGCONT`: the process continues.
    Continue,
    /// `SIGTERM`: the process is asked to end.
    Terminate,
}

/// A line of a worker's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Name of the function.
    pub function: String,
    /// Name of the worker.
    pub worker: String,
    /// The line, without its line end.
    pub line: String,
}

/// All output of the workers, for a test to search.
#[derive(Debug, Clone, Default)]
pub struct LogBook(Arc<Mutex<Vec<LogLine>>>);

/// The most lines that are kept. A sandbox that runs for days drops its oldest lines; no test writes so many.
const MOST_LINES: usize = 200_000;

impl LogBook {
    fn write(&self, line: LogLine) {
        let mut lines = lock(&self.0);
        if lines.len() == MOST_LINES {
            lines.drain(..MOST_LINES / 10);
        }
        lines.push(line);
    }

    /// Returns all lines of all workers, in the order in which they were read.
    pub fn lines(&self) -> Vec<LogLine> {
        lock(&self.0).clone()
    }
}

/// The parts of the sandbox that a worker uses.
#[derive(Debug, Clone)]
pub struct WorkerContext {
    /// Gives invocations to the worker.
    pub runtime: RuntimeApi,
    /// Receives the starts, ends and lines of the worker.
    pub bus: EventBus,
    /// Stores the lines of the worker.
    pub logs: LogBook,
}

/// A running worker; dropping it kills the process.
#[derive(Debug)]
pub struct Worker {
    handle: Handle,
    supervisor: JoinHandle<()>,
}

/// A handle with which code that does not own a worker can inspect it and send it signals.
#[derive(Debug, Clone)]
pub struct Handle {
    function: String,
    name: String,
    life: Arc<Life>,
}

impl Deref for Worker {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

/// State that a worker shares with its supervisor.
#[derive(Debug)]
struct Life {
    /// Id of the current process; 0 while no process runs.
    pid: AtomicU32,
    starts: AtomicU64,
    /// True if the process is started again after it ends.
    restart: AtomicBool,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Aborting the supervisor drops the child, and dropping the child kills the process.
        self.supervisor.abort();
    }
}

impl Worker {
    /// Starts a worker and watches it.
    ///
    /// # Errors
    /// The program does not start.
    pub fn start(spec: WorkerSpec, context: WorkerContext) -> Result<Self, StartError> {
        let (function, name) = (spec.function.clone(), spec.worker.clone());
        let first = spawn(&spec, &context.runtime)?;
        let life = Arc::new(Life {
            pid: AtomicU32::new(first.id().unwrap_or_default()),
            starts: AtomicU64::new(1),
            restart: AtomicBool::new(spec.restart),
        });
        let supervisor = tokio::spawn(supervise(first, spec, context, Arc::clone(&life)));
        Ok(Self { handle: Handle { function, name, life }, supervisor })
    }

    /// Kills the process, does not start it again, and waits until the process is gone. Dropping a worker also kills
    /// the process, but does not wait.
    pub async fn end(mut self) {
        self.handle.life.restart.store(false, Ordering::SeqCst);
        // The signal is sent repeatedly, because a process that is just starting has no known id yet.
        while !self.supervisor.is_finished() {
            self.signal(Signal::Kill).await;
            let _ended = tokio::time::timeout(PATIENCE, &mut self.supervisor).await;
        }
    }

    /// Returns a handle that does not own the worker. Dropping the handle does not end the worker.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Handle {
    /// Returns the name of the function.
    pub fn function(&self) -> &str {
        &self.function
    }

    /// Returns the name of the worker.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the id of the current process; `None` while no process runs.
    pub fn pid(&self) -> Option<u32> {
        Some(self.life.pid.load(Ordering::SeqCst)).filter(|&pid| pid != 0)
    }

    /// Returns the number of times that the process was started.
    pub fn starts(&self) -> u64 {
        self.life.starts.load(Ordering::SeqCst)
    }

    /// Sends a signal to the current process. Returns `false` if no process runs.
    pub async fn signal(&self, signal: Signal) -> bool {
        let Some(pid) = self.pid() else { return false };
        let name = match signal {
            Signal::Kill => "KILL",
            Signal::Stop => "STOP",
            Signal::Continue => "CONT",
            Signal::Terminate => "TERM",
        };
        // The shell's built-in `kill` is available even where the program `kill` is not installed.
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {pid}")).stderr(Stdio::null()).status().await;
        sent.is_ok_and(|status| status.success())
    }
}

const PATIENCE: Duration = Duration::from_millis(100);
const LONGEST_PATIENCE: Duration = Duration::from_secs(5);

async fn supervise(mut child: Child, spec: WorkerSpec, context: WorkerContext, life: Arc<Life>) {
    let mut patience = PATIENCE;
    let tell = |what: String| context.bus.publish(worker_event(&spec, what));
    loop {
        let began = Instant::now();
        // A worker ends when its standard input closes. We hold our end of the pipe as long as the child lives.
        let _stdin = child.stdin.take();
        tell(format!("started, process {}", life.pid.load(Ordering::SeqCst)));
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let reading = async { tokio::join!(read(out, &spec, &context), read(err, &spec, &context)) };
        let (ended, _) = tokio::join!(child.wait(), reading);
        let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
        life.pid.store(0, Ordering::SeqCst);
        context.runtime.worker_ended(&spec.function, &spec.worker, &how);
        tell(format!("ended, {how}"));
        patience = if began.elapsed() > LONGEST_PATIENCE { PATIENCE } else { (patience * 2).min(LONGEST_PATIENCE) };
        child = loop {
            if !life.restart.load(Ordering::SeqCst) {
                return;
            }
            tokio::time::sleep(patience).await;
            if !life.restart.load(Ordering::SeqCst) {
                return;
            }
            match spawn(&spec, &context.runtime) {
                Ok(again) => break again,
                Err(error) => tell(error.to_string()),
            }
        };
        life.pid.store(child.id().unwrap_or_default(), Ordering::SeqCst);
        life.starts.fetch_add(1, Ordering::SeqCst);
    }
}

fn worker_event(spec: &WorkerSpec, what: String) -> Event {
    Event::Worker { function: spec.function.clone(), worker: spec.worker.clone(), what }
}

fn spawn(spec: &WorkerSpec, runtime: &RuntimeApi) -> Result<Child, StartError> {
    let failed = |what: &str, error: std::io::Error| StartError::System(format!("{what}: {error}"));
    let mut command = match &spec.program {
        Program::Path(path) => Command::new(path),
        Program::Under { tool, arguments, path } => {
            let mut command = Command::new(tool);
            command.args(arguments).arg(path);
            command
        }
        Program::Itself => {
            let itself = std::env::current_exe().map_err(|error| failed("the sandbox does not find itself", error))?;
            let mut command = Command::new(itself);
            command.args(["function", &spec.function]);
            command
        }
    };
    command
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        // `LLVM_PROFILE_FILE` names the file to which a coverage run writes its counts.
        .envs(std::env::var_os("LLVM_PROFILE_FILE").map(|path| ("LLVM_PROFILE_FILE", path)))
        .envs(lambda_environment(&spec.function, &spec.worker))
        .env("AWS_LAMBDA_RUNTIME_API", runtime.url_for(&spec.function, &spec.worker))
        .envs(&spec.environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command.spawn().map_err(|error| failed(&format!("{:?} of {} does not start", spec.program, spec.function), error))
}

/// Region and credentials of an account that does not exist.
pub(crate) fn account() -> [(&'static str, &'static str); 7] {
    [
        ("AWS_REGION", REGION),
        ("AWS_DEFAULT_REGION", REGION),
        ("AWS_ACCESS_KEY_ID", "sandbox"),
        ("AWS_SECRET_ACCESS_KEY", "sandbox"),
        // These settings keep a developer's own AWS profile from leading the sandbox to a real account.
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
    ]
}

/// Returns the variables that Lambda itself puts into a function's environment.
pub fn lambda_environment(function: &str, worker: &str) -> BTreeMap<String, String> {
    [
        ("AWS_LAMBDA_FUNCTION_NAME", function),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/sandbox"),
        ("AWS_LAMBDA_LOG_STREAM_NAME", worker),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"),
        ("AWS_EXECUTION_ENV", "AWS_Lambda_provided.al2023"),
        ("TZ", ":UTC"),
    ]
    .into_iter()
    .chain(account())
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

async fn read(stream: Option<impl AsyncRead + Unpin>, spec: &WorkerSpec, context: &WorkerContext) {
    let Some(stream) = stream else { return };
    let mut reader = BufReader::new(stream);
    let mut bytes = Vec::new();
    // Reads bytes instead of `lines()`, because a line that is not UTF-8 must not end the reading.
    while reader.read_until(b'\n', &mut bytes).await.is_ok_and(|read| read > 0) {
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        bytes.clear();
        let (function, worker) = (spec.function.clone(), spec.worker.clone());
        context.logs.write(LogLine { function: function.clone(), worker: worker.clone(), line: line.clone() });
        context.bus.publish(Event::Log { function, worker, line });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str, restart: bool) -> (Worker, WorkerContext) {
        let bus = EventBus::default();
        let context = WorkerContext {
            runtime: RuntimeApi::start(bus.clone()).await.expect("starts"),
            bus,
            logs: LogBook::default(),
        };
        let directory = std::env::temp_dir().join(format!("worker-{}", shared::domain::random::hex::<8>()));
        std::fs::create_dir(&directory).expect("made");
        let path = directory.join("bootstrap");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).expect("may be run");
        let spec = WorkerSpec {
            function: "relay".into(),
            worker: "relay-1".into(),
            program: Program::Path(path),
            environment: BTreeMap::from([("GIVEN".to_owned(), "yes".to_owned())]),
            restart,
        };
        (Worker::start(spec, context.clone()).expect("starts"), context)
    }

    async fn line_of(context: &WorkerContext, wanted: &str) {
        let mut events = context.bus.subscribe();
        while !context.logs.lines().iter().any(|line| line.line == wanted) {
            let _next = tokio::time::timeout(Duration::from_secs(10), events.recv()).await.expect("something happens");
        }
    }

    #[tokio::test]
    async fn a_worker_gets_its_environment_restarts_after_a_kill_and_ends_on_drop() {
        let script = r#"echo "$GIVEN $AWS_LAMBDA_FUNCTION_NAME ${HOME:-homeless}"; exec sleep 600"#;
        let (worker, context) = shell(script, true).await;
        line_of(&context, "yes relay homeless").await;
        let first = worker.pid().expect("runs");
        let mut events = context.bus.subscribe();
        assert!(worker.signal(Signal::Kill).await);
        while worker.starts() < 2 {
            let _next = tokio::time::timeout(Duration::from_secs(10), events.recv()).await.expect("something happens");
            tokio::task::yield_now().await;
        }
        let second = worker.pid().expect("runs again");
        assert_ne!(first, second);
        drop(worker);
        let gone = async {
            while std::path::Path::new(&format!("/proc/{second}/exe")).exists() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the process is gone");
    }
}
