//! Unpredictable random bytes, for keys, nonces and unique ids.

use aws_lc_rs::rand;

/// Random bytes of the cryptographic library's generator.
///
/// # Panics
/// If the system's random number generator fails.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system's random numbers");
    bytes
}

/// Random bytes as `2 * N` lower-case hexadecimal digits.
///
/// # Panics
/// If the system's random number generator fails.
pub fn hex<const N: usize>() -> String {
    ::hex::encode(bytes::<N>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_are_hexadecimal() {
        let (one, other) = (hex::<16>(), hex::<16>());
        assert_ne!(one, other);
        assert_eq!((one.len(), ::hex::decode(&one).map(|bytes| bytes.len())), (32, Ok(16)));
    }
}
