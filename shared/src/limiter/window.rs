//! The burst limit's sliding window, cut into sub-buckets ("slots").
//!
//! A permit is counted in a slot, and expires at `slot end + interval + one slot + clock tolerance`. A request leaves
//! at the latest one slot after the end of its permit's slot ([`Window::send_by`]). So between that request and the
//! first one that can take its place lie a full interval and the clock tolerance, as long as the clocks of all
//! processes agree to within the clock tolerance: [`Window::clock_tolerance_ms`], 300 ms at an interval of 10 s.
//!
//! All lengths derive from [`SLOTS`]. At an interval of 10 s a slot is 200 ms, and a permit is counted for 10.5 to 10.7
//! s. Shorter slots would make the item larger; longer slots would count permits longer than the platform does.

use std::time::Duration;

use crate::domain::clock::Millis;

/// Number of a slot: its start since the Unix epoch in slot lengths.
pub(crate) type Slot = i64;

/// Slots in an interval. Every other length is derived from this one.
const SLOTS: u16 = 50;
/// Slots that can be live at once: an interval, the slot in which a request may still leave, the clock tolerance of one
/// and a half slots, and the slot that has begun.
const LIVE_SLOTS: usize = SLOTS as usize + 1 + 2 + 1;
/// Entries that the map of slots may have before expired ones must go. With that many, an item stays below 1 KB; and
/// from one compaction to the next passes a whole interval at least.
pub(crate) const MOST_SLOTS: usize = 2 * LIVE_SLOTS;
/// Slot keys are three characters of six bits.
const KEYS: Slot = 1 << 18;
const KEY_CHARACTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A burst window of some length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    interval: i64,
}

impl Window {
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval: i64::try_from(interval.as_millis()).unwrap_or(i64::MAX / 4).max(1) }
    }

    /// The length of a slot in milliseconds: never more than [`SLOTS`] in an interval.
    pub(crate) fn slot_ms(self) -> i64 {
        (self.interval + i64::from(SLOTS) - 1) / i64::from(SLOTS)
    }

    /// The limit holds as long as the clocks of any two processes differ by at most this, in milliseconds.
    pub(crate) fn clock_tolerance_ms(self) -> i64 {
        self.slot_ms() * 3 / 2
    }

    /// The slot that `instant` lies in.
    pub(crate) fn slot_at(self, instant: Millis) -> Slot {
        instant.0.div_euclid(self.slot_ms())
    }

    /// The first instant of `slot`.
    pub(crate) fn start(self, slot: Slot) -> Millis {
        Millis(slot.saturating_mul(self.slot_ms()))
    }

    /// The first instant after `slot`.
    pub(crate) fn end(self, slot: Slot) -> Millis {
        self.start(slot.saturating_add(1))
    }

    /// The first start of a slot that is not before `instant`.
    pub(crate) fn round_up(self, instant: Millis) -> Millis {
        let start = self.start(self.slot_at(instant));
        if start == instant { start } else { self.end(self.slot_at(instant)) }
    }

    /// The instant at which the permits of `slot` expire: they are free again.
    pub(crate) fn expires_at(self, slot: Slot) -> Millis {
        Millis(self.send_by(slot).0.saturating_add(self.interval + self.clock_tolerance_ms()))
    }

    /// The last instant at which a request may leave on a permit of `slot`.
    pub(crate) fn send_by(self, slot: Slot) -> Millis {
        Millis(self.end(slot).0.saturating_add(self.slot_ms()))
    }
}

/// The name of `slot` in the item: short, so that an item with a full map stays under 1 KB and a write costs one unit.
/// Names repeat after 2^18 slots, 14.5 hours at an interval of 10 s.
pub(crate) fn slot_key(slot: Slot) -> String {
    let number = slot.rem_euclid(KEYS);
    [12, 6, 0]
        .into_iter()
        .map(|shift| char::from(KEY_CHARACTERS[usize::try_from((number >> shift) & 63).unwrap_or_default()]))
        .collect()
}

/// The slot that `key` names in an item whose newest slot is `newest`; `None` if it is no key.
///
/// A key that has been left for longer than names last is taken for a later slot than it was, which can only hold a
/// permit back and never free one.
pub(crate) fn slot_of_key(key: &str, newest: Slot) -> Option<Slot> {
    if key.len() != 3 {
        return None;
    }
    let mut number: Slot = 0;
    for byte in key.bytes() {
        number = (number << 6) | Slot::from(digit(byte)?);
    }
    Some(newest - (newest - number).rem_euclid(KEYS))
}

/// The index of `byte` in [`KEY_CHARACTERS`].
fn digit(byte: u8) -> Option<u8> {
    Some(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'-' => 62,
        b'_' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_seconds_are_cut_as_documented() {
        let window = Window::new(Duration::from_secs(10));
        assert_eq!(window.slot_ms(), 200);
        let slot = window.slot_at(Millis(1_000_399));
        assert_eq!((window.start(slot), window.end(slot)), (Millis(1_000_200), Millis(1_000_400)));
        assert_eq!(window.send_by(slot), Millis(1_000_600));
        assert_eq!(window.expires_at(slot), Millis(1_010_900));
        assert_eq!(window.clock_tolerance_ms(), 300);
        assert_eq!(
            (window.round_up(Millis(1_000_200)), window.round_up(Millis(1_000_201))),
            (Millis(1_000_200), Millis(1_000_400))
        );
    }

    #[test]
    fn at_any_interval_an_interval_and_the_clock_tolerance_lie_between_two_requests_of_one_place() {
        for interval in (1..2_000).chain([10_000, 33_333, 600_000]) {
            let window = Window::new(Duration::from_millis(interval));
            let interval = i64::try_from(interval).expect("short");
            let slot = window.slot_at(Millis(1_800_000_000_123));
            let apart = window.expires_at(slot).0 - window.send_by(slot).0;
            assert_eq!(apart, interval + window.clock_tolerance_ms());
            let live = (0..200).filter(|back| window.expires_at(slot - back) > window.start(slot)).count();
            assert!(live <= LIVE_SLOTS, "{live} live slots at {interval} ms");
        }
    }

    #[test]
    fn keys_name_the_newest_slots_that_they_can() {
        for newest in [8_500_000_000_i64, 262_143, 262_144, 0] {
            for back in [0, 1, 53, KEYS - 1] {
                assert_eq!(slot_of_key(&slot_key(newest - back), newest), Some(newest - back));
            }
            assert_eq!(slot_of_key(&slot_key(newest - KEYS), newest), Some(newest), "names repeat");
        }
        assert_eq!(slot_of_key("A", 5), None);
        assert_eq!(slot_of_key("A.A", 5), None);
    }
}
