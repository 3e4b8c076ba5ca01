//! Lambda's limit on the size of an answer.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::value::RawValue;
use shared::domain::problem::{Code, Problem};

/// The largest answer of an invocation, in bytes: 6 MB (AWS Lambda quotas, "Invocation payload").
pub const LARGEST_ANSWER: usize = 6 * 1024 * 1024;
/// The room in a batch that is kept free for refusals, in bytes. An answer that does not fit is replaced by a refusal.
const FOR_REFUSALS: usize = 256 * 1024;

/// The room that is left for answers, in bytes.
#[derive(Debug)]
pub struct Room(AtomicUsize);

impl Room {
    /// Room for a single answer.
    pub fn for_one() -> Self {
        Self(AtomicUsize::new(LARGEST_ANSWER))
    }

    /// Room for the answers of a batch.
    pub fn for_batch() -> Self {
        Self(AtomicUsize::new(LARGEST_ANSWER - FOR_REFUSALS))
    }

    /// Takes room for an answer, if there is enough.
    pub fn takes(&self, answer: &RawValue) -> bool {
        let length = answer.get().len() + 1;
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(length)).is_ok()
    }
}

/// The refusal of a response that is larger than an invocation can carry.
pub fn too_large(status: ::http::StatusCode) -> Problem {
    let detail = "the platform's response is larger than an invocation can carry; ask for less at a time";
    Problem::new(Code::PayloadTooLarge, detail)
        .with("limit_bytes", LARGEST_ANSWER)
        .with("platform_status", status.as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(length: usize) -> Box<RawValue> {
        RawValue::from_string(format!("\"{}\"", "a".repeat(length - 2))).expect("a string")
    }

    #[test]
    fn answers_are_taken_until_the_room_is_used_up() {
        let (half, rest) = (text(LARGEST_ANSWER / 2), text(LARGEST_ANSWER / 2 - 2));
        let room = Room::for_one();
        assert!(room.takes(&half));
        assert!(!room.takes(&half), "with its comma it is a byte too long");
        assert!(room.takes(&rest), "what does not fit takes no room");
        assert!(!room.takes(&text(2)));
        assert!(!Room::for_batch().takes(&text(LARGEST_ANSWER - 1)), "refusals must fit, too");
    }
}
