//! Sliding window counter: the burst limit's window, cut into sub-buckets ("slots").
//!
//! A permit is counted in the slot in which it is taken. Its request leaves at the latest one slot after the end of
//! that slot ([`Window::send_by`]). The permit expires an interval and the clock tolerance later
//! ([`Window::expires_at`]). So an interval and the clock tolerance lie between a request and the first request that
//! can take its place, as long as the clocks of all processes agree to within [`Window::clock_tolerance_ms`].
//!
//! Every length derives from [`SLOTS`]. At an interval of 10 s a slot is 125 ms, the clock tolerance is 300 ms, and a
//! permit is counted for 10.4 to 10.6 s. Shorter slots would make the item larger than one capacity unit; longer slots
//! would count permits for longer than the platform does.

use std::time::Duration;

use crate::domain::clock::Millis;

/// Number of a slot: its start since the Unix epoch in slot lengths.
pub(crate) type Slot = i64;

/// Slots in an interval. Every other length is derived from this one.
const SLOTS: u16 = 80;
/// The clock tolerance in hundredths of the interval.
const TOLERANCE: u16 = 3;
/// Slots that can be live at once: those of an interval, the slot in which a request may still leave, those of the
/// clock tolerance, and the slot that has begun.
const LIVE_SLOTS: usize = (SLOTS + 1 + (TOLERANCE * SLOTS).div_ceil(100) + 1) as usize;
/// Bytes of an entry: key 3, count up to 99 2, overhead 1. Larger counts have a byte more.
const ENTRY_BYTES: usize = 6;
/// The most bytes of all other attributes, with one more for each of 20 large counts.
const OTHER_BYTES: usize = 260;
/// Entries that the map of slots may have before a rewrite must drop expired ones: so many that a write of the item
/// costs one unit.
pub(crate) const MOST_SLOTS: usize = (1_024 - OTHER_BYTES) / ENTRY_BYTES - 1;
/// Slot keys are three characters of six bits.
const KEY_BITS: u32 = 18;
const KEYS: Slot = 1 << KEY_BITS;
const KEY_CHARACTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Facts that the rest of the project relies on and that follow from [`SLOTS`].
const _: () = {
    let documented = Window { interval: 10_000 };
    assert!(
        documented.slot_ms() == 125 && documented.clock_tolerance_ms() == 300,
        "docs/decisions/sliding-window.md and docs/reliability.md say so"
    );
    assert!(LIVE_SLOTS < MOST_SLOTS, "a rewrite that drops the expired slots leaves room for further ones");
    assert!(MOST_SLOTS + 1 < 1 << KEY_BITS, "two slots of an item never share a key");
};

/// A burst window of some length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    interval: i64,
}

impl Window {
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval: i64::try_from(interval.as_millis()).unwrap_or(i64::MAX / 4).max(1) }
    }

    /// The length of the window.
    pub(crate) const fn interval(self) -> Duration {
        Duration::from_millis(self.interval.unsigned_abs())
    }

    /// The length of a slot in milliseconds: never more than [`SLOTS`] in an interval.
    pub(crate) const fn slot_ms(self) -> i64 {
        (self.interval + SLOTS as i64 - 1) / SLOTS as i64
    }

    /// The limit holds as long as the clocks of any two processes differ by at most this, in milliseconds.
    pub(crate) const fn clock_tolerance_ms(self) -> i64 {
        (self.interval * TOLERANCE as i64 + 99) / 100
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

    /// The instant at which the permits of `slot` expire: other requests can take their places.
    pub(crate) fn expires_at(self, slot: Slot) -> Millis {
        Millis(self.send_by(slot).0.saturating_add(self.interval + self.clock_tolerance_ms()))
    }

    /// The last instant at which a request may leave on a permit of `slot`.
    pub(crate) fn send_by(self, slot: Slot) -> Millis {
        Millis(self.end(slot).0.saturating_add(self.slot_ms()))
    }
}

/// The key of `slot` in the item's map. It is short, so that an item with a full map stays below 1 KB and a write costs
/// one unit. Keys repeat after 2^18 slots: 9.1 hours at an interval of 10 s.
pub(crate) fn slot_key(slot: Slot) -> String {
    let number = slot.rem_euclid(KEYS);
    [12, 6, 0]
        .into_iter()
        .map(|shift| char::from(KEY_CHARACTERS[usize::try_from((number >> shift) & 63).unwrap_or_default()]))
        .collect()
}

/// The slot that `key` names in an item whose newest slot is `newest`; `None` if it is no key.
///
/// An entry that is older than 2^18 slots is read as a later slot. That can only count a permit for longer.
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
    fn ten_seconds_have_slots_of_125_ms() {
        let window = Window::new(Duration::from_secs(10));
        assert_eq!(window.slot_ms(), 125);
        let slot = window.slot_at(Millis(1_000_374));
        assert_eq!((window.start(slot), window.end(slot)), (Millis(1_000_250), Millis(1_000_375)));
        assert_eq!(window.send_by(slot), Millis(1_000_500));
        assert_eq!(window.expires_at(slot), Millis(1_010_800));
        assert_eq!(window.clock_tolerance_ms(), 300);
        assert_eq!(
            (window.round_up(Millis(1_000_250)), window.round_up(Millis(1_000_251))),
            (Millis(1_000_250), Millis(1_000_375))
        );
    }

    #[test]
    fn an_interval_and_the_clock_tolerance_lie_between_two_requests_that_use_one_place() {
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
    fn a_key_is_read_as_the_newest_slot_that_has_it() {
        for newest in [8_500_000_000_i64, 262_143, 262_144, 0] {
            for back in [0, 1, 53, KEYS - 1] {
                assert_eq!(slot_of_key(&slot_key(newest - back), newest), Some(newest - back));
            }
            assert_eq!(slot_of_key(&slot_key(newest - KEYS), newest), Some(newest), "keys repeat");
        }
        assert_eq!(slot_of_key("A", 5), None);
        assert_eq!(slot_of_key("A.A", 5), None);
    }
}
