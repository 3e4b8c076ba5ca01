//! Encryption of tokens at rest: AES-256-GCM (authenticated encryption) with a derived key for each item.
//!
//! The key of an item is HKDF-SHA256 (RFC 5869) of a data key, with the item's key in the table as salt. The associated
//! data are format, context, item, token version, field and id of the data key. So a ciphertext opens only where it was
//! sealed: not in another item or field, and not under another epoch or generation. The context is a constant of the
//! stack, so a table that was restored under another name opens ([`Binding`]).

mod keys;
pub mod pair;
pub mod vault;

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf;

pub use self::keys::{DataKeys, MalformedKeys};
use crate::domain::random;
use crate::domain::redacted::Redacted;

/// The number of the format, which is the first byte of every sealed value.
const FORMAT: u8 = 1;

/// The place of a sealed value. It is authenticated with the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The item's key in the table.
    pub item: &'a str,
    /// The epoch of the installation.
    pub epoch: u64,
    /// The generation of the token pair.
    pub generation: u64,
    /// The attribute.
    pub field: Field,
}

/// The kind of a sealed value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The access token.
    Access,
    /// The refresh token.
    Refresh,
    /// The access token of a standby pair.
    StandbyAccess,
    /// The refresh token of a standby pair.
    StandbyRefresh,
    /// A whole pair on the rescue queue.
    Rescue,
    /// The recorded answer to a keyed request.
    Answer,
}

impl Field {
    /// The name in the associated data. A changed name would make all sealed values of the field unreadable.
    fn name(self) -> &'static str {
        match self {
            Self::Access => "access_token",
            Self::Refresh => "refresh_token",
            Self::StandbyAccess => "alternate.access_token",
            Self::StandbyRefresh => "alternate.refresh_token",
            Self::Rescue => "rescue",
            Self::Answer => "answer",
        }
    }
}

/// The reason why a value does not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The value is sealed under a data key that was not in the secret when it was last read.
    #[error("the data key {0:?} is not known")]
    UnknownKey(String),
    /// The value is not sealed, was sealed for another place, or was changed.
    #[error("the sealed value does not open at this place")]
    DoesNotOpen,
}

/// The deployment that sealed values are bound to. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Binding {
    context: Arc<str>,
    table: Arc<str>,
}

impl Binding {
    /// Values are sealed for `context`. Values that were sealed for the name of the table, as without a context, open, too.
    pub fn new(context: &str, table: &str) -> Self {
        Self { context: context.into(), table: table.into() }
    }

    /// Values are sealed for the name of the table.
    pub fn to_table(table: &str) -> Self {
        Self::new(table, table)
    }
}

/// Seals and opens values with one version of the sealing secret. Cheap to clone.
#[derive(Clone)]
pub struct Sealer {
    binding: Binding,
    keys: Arc<DataKeys>,
}

impl Sealer {
    /// A sealer for the items of one deployment.
    pub fn new(binding: Binding, keys: Arc<DataKeys>) -> Self {
        Self { binding, keys }
    }

    /// Seals under the current data key.
    ///
    /// # Panics
    /// If the system's random number generator fails.
    pub fn seal(&self, place: Place<'_>, secret: &str) -> Vec<u8> {
        let id = self.keys.current();
        let nonce: [u8; NONCE_LEN] = random::bytes();
        let mut text = secret.as_bytes().to_vec();
        record_key(self.keys.key(id).expect("the current key is one of them"), place.item)
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                aad(&self.binding.context, place, id),
                &mut text,
            )
            .expect("an item is shorter than AES-GCM's limit");
        let mut sealed = Vec::with_capacity(2 + id.len() + NONCE_LEN + text.len());
        sealed.push(FORMAT);
        sealed.push(u8::try_from(id.len()).expect("ids are at most 64 bytes"));
        sealed.extend_from_slice(id.as_bytes());
        sealed.extend_from_slice(&nonce);
        sealed.append(&mut text);
        sealed
    }

    /// Opens a value that [`Sealer::seal`] made for the same place.
    pub fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Redacted, SealError> {
        let (id, nonce, text) = parts(sealed).ok_or(SealError::DoesNotOpen)?;
        let key = self.keys.key(id).ok_or_else(|| SealError::UnknownKey(id.to_owned()))?;
        let key = record_key(key, place.item);
        let open = |context: &str| {
            let mut text = text.to_vec();
            let nonce = Nonce::assume_unique_for_key(nonce);
            let length = key.open_in_place(nonce, aad(context, place, id), &mut text).ok()?.len();
            text.truncate(length);
            String::from_utf8(text).map(Redacted::from).ok()
        };
        let Binding { context, table } = &self.binding;
        let opened = open(context).or_else(|| if context == table { None } else { open(table) });
        opened.ok_or(SealError::DoesNotOpen)
    }
}

fn aad(context: &str, place: Place<'_>, key_id: &str) -> Aad<String> {
    let Place { item, epoch, generation, field } = place;
    Aad::from(format!("v{FORMAT}|{context}|{item}|{epoch}|{generation}|{}|{key_id}", field.name()))
}

/// The id of the data key that a value is sealed under. `None` if the value is not sealed.
pub fn key_id(sealed: &[u8]) -> Option<&str> {
    parts(sealed).map(|(id, ..)| id)
}

fn parts(sealed: &[u8]) -> Option<(&str, [u8; NONCE_LEN], &[u8])> {
    let (&[FORMAT, length], rest) = sealed.split_first_chunk::<2>()? else { return None };
    let (id, rest) = rest.split_at_checked(usize::from(length))?;
    let (nonce, text) = rest.split_first_chunk()?;
    Some((std::str::from_utf8(id).ok()?, *nonce, text))
}

fn record_key(data_key: &Redacted, item: &str) -> LessSafeKey {
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, item.as_bytes()).extract(data_key.expose().as_bytes());
    let okm = prk.expand(&[b"hoopai-relay token"], &AES_256_GCM).expect("32 bytes are within HKDF's limit");
    LessSafeKey::new(UnboundKey::from(okm))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place<'static> =
        Place { item: "installation#location#L1", epoch: 3, generation: 7, field: Field::Refresh };

    fn keys(json: &str) -> DataKeys {
        DataKeys::parse(json).expect("well formed")
    }

    fn k1() -> DataKeys {
        keys(r#"{"current":"k1","k1":"0123456789abcdef0123456789abcdef"}"#)
    }

    fn sealer(table: &str, keys: DataKeys) -> Sealer {
        Sealer::new(Binding::to_table(table), keys.into())
    }

    #[test]
    fn opens_only_where_it_was_sealed() {
        let here = sealer("table", k1());
        let sealed = here.seal(PLACE, "secret-token");
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        assert_eq!(here.open(PLACE, &sealed).expect("the same place").expose(), "secret-token");
        let elsewhere = [
            Place { item: "installation#location#L2", ..PLACE },
            Place { epoch: 4, ..PLACE },
            Place { generation: 6, ..PLACE },
            Place { field: Field::Access, ..PLACE },
        ];
        for other in elsewhere {
            assert_eq!(here.open(other, &sealed).err(), Some(SealError::DoesNotOpen), "{other:?}");
        }
        let other_table = sealer("other", k1());
        assert_eq!(other_table.open(PLACE, &sealed).err(), Some(SealError::DoesNotOpen));
    }

    #[test]
    fn a_context_opens_under_any_name_of_the_table_and_what_is_bound_to_the_name_only_under_that() {
        let named = |table: &str| Sealer::new(Binding::new("stack", table), k1().into());
        let (before, after) = (named("table"), named("restored"));
        let sealed = before.seal(PLACE, "secret-token");
        assert_eq!(after.open(PLACE, &sealed).expect("the same context").expose(), "secret-token");
        let other = Sealer::new(Binding::new("another stack", "table"), k1().into());
        assert_eq!(other.open(PLACE, &sealed).err(), Some(SealError::DoesNotOpen));
        let of_table = sealer("table", k1()).seal(PLACE, "an-older-token");
        assert_eq!(before.open(PLACE, &of_table).expect("the same name").expose(), "an-older-token");
        assert_eq!(after.open(PLACE, &of_table).err(), Some(SealError::DoesNotOpen));
    }

    #[test]
    fn every_bit_is_authenticated() {
        let here = sealer("table", k1());
        let sealed = here.seal(PLACE, "secret-token");
        for byte in 0..sealed.len() {
            let mut broken = sealed.clone();
            broken[byte] ^= 1;
            assert!(here.open(PLACE, &broken).is_err(), "byte {byte}");
            assert!(here.open(PLACE, &sealed[..byte]).is_err(), "cut at {byte}");
        }
    }

    #[test]
    fn old_and_new_keys_open_during_a_rotation_and_an_unknown_one_is_named() {
        let before = sealer("table", k1());
        let old = before.seal(PLACE, "old");
        let both =
            r#"{"current":"k2","k1":"0123456789abcdef0123456789abcdef","k2":"abcdef0123456789abcdef0123456789"}"#;
        let after = sealer("table", keys(both));
        let new = after.seal(PLACE, "new");
        assert_eq!(after.open(PLACE, &old).expect("the old key is still there").expose(), "old");
        assert_eq!(after.open(PLACE, &new).expect("current").expose(), "new");
        assert_eq!(before.open(PLACE, &new).err(), Some(SealError::UnknownKey("k2".into())));
        assert_eq!((key_id(&old), key_id(&new), key_id(b"not sealed")), (Some("k1"), Some("k2"), None));
    }
}
