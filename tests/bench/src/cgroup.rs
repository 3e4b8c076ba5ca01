//! A control group that gives a process a part of one processor, as Lambda does after a function's initialization.

use std::path::{Path, PathBuf};

/// The length of the period of a quota, in microseconds. It is short, so that the quota also binds for a first call, which
/// takes some milliseconds of processor time.
const PERIOD: u32 = 20_000;

/// A control group. Dropping this value removes the group, whose processes must have ended.
#[derive(Debug)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// A group that may use this part of one processor, in percent. The error is the reason why the machine refuses.
    pub(crate) fn with_processor(percent: u32) -> Result<Self, String> {
        let name = format!("bench-{}", shared::domain::random::hex::<8>());
        let quota = PERIOD / 100 * percent;
        let (version_1, version_2) = (Path::new("/sys/fs/cgroup/cpu"), Path::new("/sys/fs/cgroup"));
        if version_1.join("cpu.cfs_quota_us").is_file() {
            let group = Self::new(version_1.join(name))?;
            group.write("cpu.cfs_period_us", &PERIOD.to_string())?;
            group.write("cpu.cfs_quota_us", &quota.to_string())?;
            return Ok(group);
        }
        let has_cpu = |file: &str| {
            let controllers = std::fs::read_to_string(version_2.join(file)).unwrap_or_default();
            controllers.split_whitespace().any(|controller| controller == "cpu")
        };
        if !has_cpu("cgroup.subtree_control") {
            return Err("needs a cgroup with the controller cpu".to_owned());
        }
        let group = Self::new(version_2.join(name))?;
        group.write("cpu.max", &format!("{quota} {PERIOD}"))?;
        Ok(group)
    }

    fn new(folder: PathBuf) -> Result<Self, String> {
        std::fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Self(folder))
    }

    /// Moves a process with all its threads into the group.
    pub(crate) fn add(&self, process: u32) -> Result<(), String> {
        self.write("cgroup.procs", &process.to_string())
    }

    /// The number of periods in which the quota has stopped the group's processes.
    pub(crate) fn throttled(&self) -> u64 {
        let statistics = std::fs::read_to_string(self.0.join("cpu.stat")).unwrap_or_default();
        let count = statistics.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    fn write(&self, file: &str, value: &str) -> Result<(), String> {
        let path = self.0.join(file);
        std::fs::write(&path, value).map_err(|error| format!("{}: {error}", path.display()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _remains = std::fs::remove_dir(&self.0);
    }
}
