//! Digests that identify a text.

use aws_lc_rs::digest::{SHA256, digest};

/// The SHA-256 of these bytes, in hexadecimal. It identifies a secret and does not reveal it.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
}
