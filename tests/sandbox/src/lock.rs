//! Locks that ignore poisoning: after a failed assertion in one test, later locks must not panic too.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks the mutex, even if a holder panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
