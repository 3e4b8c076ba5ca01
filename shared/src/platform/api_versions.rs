//! The version of the API for each of the system's own calls.
//!
//! With `PLATFORM_API=auto` a call begins with v2. If the platform says that the call does not exist in a version, the
//! other version is tried. The version that the platform accepts is remembered in memory and for all processes.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use crate::domain::api_version::{ApiVersion, OwnCall, PlatformApi};

/// The versions that the platform has accepted, as far as they are remembered.
pub type Remembered = Vec<(OwnCall, ApiVersion)>;

/// A future of [`VersionMemory`].
pub type Remembering<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

/// The place where accepted versions are remembered for all processes. This room is below the table's.
pub trait VersionMemory: Send + Sync {
    /// The remembered versions. The error says why they cannot be read.
    fn load(&self) -> Remembering<'_, Remembered>;

    /// Remembers that the platform accepts `call` in `version`.
    fn store(&self, call: OwnCall, version: ApiVersion) -> Remembering<'_, ()>;
}

/// The versions for the system's own calls.
pub struct ApiVersions {
    setting: PlatformApi,
    memory: Option<Arc<dyn VersionMemory>>,
    is_loaded: OnceCell<()>,
    calls: Mutex<[Known; OwnCall::ALL.len()]>,
}

#[derive(Clone, Copy)]
struct Known {
    current: ApiVersion,
    /// True if the other version was refused, and the platform has not accepted the current one yet.
    is_trial: bool,
    /// The version that all processes remember.
    stored: ApiVersion,
}

impl ApiVersions {
    /// With `PlatformApi::Auto`, accepted versions are remembered in `memory`.
    pub fn new(setting: PlatformApi, memory: Option<Arc<dyn VersionMemory>>) -> Self {
        let first = match setting {
            PlatformApi::Auto => ApiVersion::V2,
            PlatformApi::Only(version) => version,
        };
        let known = Known { current: first, is_trial: false, stored: first };
        let memory = memory.filter(|_| setting == PlatformApi::Auto);
        Self { setting, memory, is_loaded: OnceCell::new(), calls: Mutex::new([known; OwnCall::ALL.len()]) }
    }

    /// The version in which `call` is sent now. The first call of a process reads what other processes remember. If that
    /// fails, the next call reads it again.
    pub(super) async fn current(&self, call: OwnCall) -> ApiVersion {
        if let Some(memory) = &self.memory {
            let load = async || {
                for (call, version) in memory.load().await? {
                    let mut calls = self.calls();
                    let known = &mut calls[call as usize];
                    known.stored = version;
                    if !known.is_trial {
                        known.current = version;
                    }
                }
                Ok::<_, String>(())
            };
            if let Err(error) = self.is_loaded.get_or_try_init(load).await {
                tracing::warn!(error, "the versions of the platform's API that work cannot be read");
            }
        }
        self.calls()[call as usize].current
    }

    /// The version to try if the platform has refused `version`; `None` if no other one is allowed.
    pub(super) fn alternative(&self, version: ApiVersion) -> Option<ApiVersion> {
        (self.setting == PlatformApi::Auto).then(|| version.other())
    }

    /// The platform says that `call` does not exist in `version`. True if the call should be sent again, in
    /// [`ApiVersions::current`]. False if both versions were refused.
    pub(super) fn refused(&self, call: OwnCall, version: ApiVersion) -> bool {
        let Some(other) = self.alternative(version) else { return false };
        let mut calls = self.calls();
        let known = &mut calls[call as usize];
        // Another request has found out already.
        if known.current != version {
            return true;
        }
        known.current = other;
        known.is_trial = !known.is_trial;
        known.is_trial
    }

    /// The platform accepts `call` in `version`.
    pub(super) async fn accepted(&self, call: OwnCall, version: ApiVersion) {
        if self.setting != PlatformApi::Auto {
            return;
        }
        let is_new = {
            let mut calls = self.calls();
            let known = &mut calls[call as usize];
            (known.current, known.is_trial) = (version, false);
            std::mem::replace(&mut known.stored, version) != version
        };
        if is_new {
            tracing::info!(
                call = call.as_str(),
                version = version.as_str(),
                "the platform accepts this version of its API"
            );
            if let Some(memory) = &self.memory
                && let Err(error) = memory.store(call, version).await
            {
                tracing::warn!(error, "the version of the platform's API that works is not stored");
            }
        }
    }

    fn calls(&self) -> MutexGuard<'_, [Known; OwnCall::ALL.len()]> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ApiVersion::{V2, V3};
    use OwnCall::{List, Mint};

    /// A memory that counts.
    #[derive(Default)]
    struct Counting {
        stored: Mutex<Remembered>,
        loads: Mutex<usize>,
    }

    impl VersionMemory for Counting {
        fn load(&self) -> Remembering<'_, Remembered> {
            *self.loads.lock().expect("a lock") += 1;
            let stored = self.stored.lock().expect("a lock").clone();
            Box::pin(async move { Ok(stored) })
        }

        fn store(&self, call: OwnCall, version: ApiVersion) -> Remembering<'_, ()> {
            self.stored.lock().expect("a lock").push((call, version));
            Box::pin(async { Ok(()) })
        }
    }

    #[tokio::test]
    async fn the_other_version_is_tried_once_and_remembered_when_it_works() {
        let memory = Arc::new(Counting::default());
        let process = || ApiVersions::new(PlatformApi::Auto, Some(memory.clone()));
        let versions = process();
        assert_eq!(versions.current(Mint).await, V2);
        versions.accepted(Mint, V2).await;
        assert_eq!(*memory.stored.lock().expect("a lock"), [], "the first version needs no memory");
        assert!(versions.refused(Mint, V2));
        assert!(versions.refused(Mint, V2), "a request that was on its way");
        assert_eq!((versions.current(Mint).await, versions.current(List).await), (V3, V2));
        versions.accepted(Mint, V3).await;
        versions.accepted(Mint, V3).await;
        assert_eq!(*memory.stored.lock().expect("a lock"), [(Mint, V3)], "stored once");
        assert_eq!(*memory.loads.lock().expect("a lock"), 1, "read once");

        let other = process();
        assert_eq!((other.current(Mint).await, other.current(List).await), (V3, V2));
        assert!(other.refused(Mint, V3), "the platform's word counts in both directions");
        other.accepted(Mint, V2).await;
        assert_eq!(memory.stored.lock().expect("a lock").last(), Some(&(Mint, V2)));
    }

    #[tokio::test]
    async fn if_both_versions_are_refused_the_caller_hears_of_it() {
        let versions = ApiVersions::new(PlatformApi::Auto, None);
        assert!(versions.refused(Mint, V2));
        assert!(!versions.refused(Mint, V3));
        assert_eq!(versions.current(Mint).await, V2);
        assert!(versions.refused(Mint, V2), "the next request tries both again");
    }

    #[tokio::test]
    async fn a_version_that_is_set_is_the_only_one() {
        for version in [V2, V3] {
            let memory = Arc::new(Counting::default());
            memory.stored.lock().expect("a lock").push((Mint, version.other()));
            let versions = ApiVersions::new(PlatformApi::Only(version), Some(memory.clone()));
            assert_eq!(versions.current(Mint).await, version);
            assert!(!versions.refused(Mint, version));
            assert_eq!((versions.current(Mint).await, versions.alternative(version)), (version, None));
            assert_eq!(*memory.loads.lock().expect("a lock"), 0);
        }
    }
}
