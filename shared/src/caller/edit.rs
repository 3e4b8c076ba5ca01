//! Edits of the callers' secret: adding and removing callers and keys. Pure.
//!
//! The edited secret is validated as the relay does it. So no edit can produce a secret that the relay refuses.

use super::Callers;
pub use super::secret::CallerEntry;
use super::secret::{Document, entry, without_values};
use crate::domain::digest::sha256;
use crate::domain::random;
use crate::domain::redacted::Redacted;

/// A new key of a caller. The key is shown once; its SHA-256 is stored.
#[derive(Debug)]
pub struct NewKey {
    /// The key.
    pub key: Redacted,
    /// Its SHA-256, in hex.
    pub sha256: String,
}

impl NewKey {
    /// Makes a key of 192 random bits. Its prefix `rk_` lets scanners find a leaked key.
    pub fn generate() -> Self {
        let key = format!("rk_{}", random::hex::<24>());
        let sha256 = sha256(key.as_bytes());
        Self { key: key.into(), sha256 }
    }
}

/// The reason why an edit is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The secret is not in its documented form.
    #[error("the callers' secret is malformed: {0}")]
    Malformed(String),
    /// A member of the new entry is wrong.
    #[error("{0}")]
    Invalid(String),
    /// An alias or principal of the new entry belongs to another caller.
    #[error("{name} names the caller {owner} already")]
    Taken {
        /// The alias or principal.
        name: String,
        /// The other caller.
        owner: String,
    },
    /// Without the entry, its aliases and principals could do everything, because the secret allows the unlisted.
    #[error(
        "without its entry {0} could do everything by its aliases and principals, because the secret says \
         \"unlisted\": \"allow\": take that out first"
    )]
    WouldWiden(String),
    /// There is no caller with that id.
    #[error("there is no caller {0}")]
    NoSuchCaller(String),
    /// There is a caller with that id already.
    #[error("there is a caller {0} already")]
    Exists(String),
    /// The prefix matches no key, or more than one.
    #[error("{found} keys of {caller} begin with {prefix}; exactly one must")]
    NotOneKey {
        /// The caller.
        caller: String,
        /// The given beginning of the SHA-256.
        prefix: String,
        /// The number of matching keys.
        found: usize,
    },
}

/// The value of the secret, which can be edited.
pub struct CallersDocument(Document);

impl CallersDocument {
    /// Reads the secret's value.
    pub fn parse(json: &str) -> Result<Self, EditError> {
        Callers::parse(json).map_err(EditError::Malformed)?;
        serde_json::from_str(json).map(Self).map_err(|error| EditError::Malformed(without_values(&error)))
    }

    /// True if aliases, principals and unqualified invocations without an entry may do everything.
    pub fn allows_unlisted(&self) -> bool {
        self.0.unlisted.is_some()
    }

    /// All entries.
    pub fn entries(&self) -> &[CallerEntry] {
        &self.0.callers
    }

    /// Adds a caller. It can fail with [`EditError::Invalid`], [`EditError::Exists`] or [`EditError::Taken`].
    pub fn add(&mut self, caller: CallerEntry) -> Result<(), EditError> {
        if self.0.callers.iter().any(|other| other.id == caller.id) {
            return Err(EditError::Exists(caller.id));
        }
        self.check(&caller)?;
        self.0.callers.push(caller);
        Ok(())
    }

    /// Replaces a caller's entry but for its keys. It can fail with [`EditError::NoSuchCaller`],
    /// [`EditError::Invalid`], [`EditError::Taken`] or [`EditError::WouldWiden`].
    pub fn set(&mut self, caller: CallerEntry) -> Result<(), EditError> {
        let is_unlisted_open = self.allows_unlisted();
        let old = self.entry(&caller.id)?.clone();
        let loses = |old: &[String], new: &[String]| old.iter().any(|name| !new.contains(name));
        if is_unlisted_open && (loses(&old.aliases, &caller.aliases) || loses(&old.principals, &caller.principals)) {
            return Err(EditError::WouldWiden(caller.id));
        }
        let caller = CallerEntry { keys_sha256: old.keys_sha256, ..caller };
        self.check(&caller)?;
        let place = self.entry(&caller.id)?;
        *place = caller;
        Ok(())
    }

    /// Checks an entry by itself, and beside those of other callers.
    fn check(&self, caller: &CallerEntry) -> Result<(), EditError> {
        entry(caller.clone()).map_err(EditError::Invalid)?;
        for name in caller.aliases.iter().chain(&caller.principals) {
            let has_it = |other: &&CallerEntry| {
                other.id != caller.id && (other.aliases.contains(name) || other.principals.contains(name))
            };
            if let Some(other) = self.0.callers.iter().find(has_it) {
                return Err(EditError::Taken { name: name.clone(), owner: other.id.clone() });
            }
        }
        Ok(())
    }

    /// Removes a caller. It can fail with [`EditError::NoSuchCaller`] or [`EditError::WouldWiden`].
    pub fn remove(&mut self, id: &str) -> Result<(), EditError> {
        let is_unlisted_open = self.allows_unlisted();
        let entry = self.entry(id)?;
        if is_unlisted_open && !(entry.aliases.is_empty() && entry.principals.is_empty()) {
            return Err(EditError::WouldWiden(id.to_owned()));
        }
        self.0.callers.retain(|caller| caller.id != id);
        Ok(())
    }

    /// Adds a key to those of a caller.
    pub fn add_key(&mut self, id: &str, sha256: &str) -> Result<(), EditError> {
        self.entry(id)?.keys_sha256.push(sha256.to_owned());
        Ok(())
    }

    /// Removes the key whose SHA-256 begins with `prefix`.
    pub fn remove_key(&mut self, id: &str, prefix: &str) -> Result<(), EditError> {
        let keys = &mut self.entry(id)?.keys_sha256;
        let prefix = prefix.to_ascii_lowercase();
        let begins = |key: &String| key.to_ascii_lowercase().starts_with(&prefix);
        match keys.iter().filter(|key| begins(key)).count() {
            1 => {
                keys.retain(|key| !begins(key));
                Ok(())
            }
            found => Err(EditError::NotOneKey { caller: id.to_owned(), prefix, found }),
        }
    }

    /// Removes all keys of a caller except the last one, and returns the number of removed keys.
    pub fn keep_last_key(&mut self, id: &str) -> Result<usize, EditError> {
        let keys = &mut self.entry(id)?.keys_sha256;
        let old = keys.len().saturating_sub(1);
        keys.drain(..old);
        Ok(old)
    }

    /// The value of the secret. It fails with [`EditError::Malformed`] if the relay would refuse it.
    ///
    /// # Panics
    /// Never, because texts and numbers are always JSON.
    pub fn to_json(&self) -> Result<Redacted, EditError> {
        let json = serde_json::to_string(&self.0).expect("texts and numbers are JSON");
        Callers::parse(&json).map_err(EditError::Malformed)?;
        Ok(json.into())
    }

    fn entry(&mut self, id: &str) -> Result<&mut CallerEntry, EditError> {
        let found = self.0.callers.iter_mut().find(|caller| caller.id == id);
        found.ok_or_else(|| EditError::NoSuchCaller(id.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Identity;

    fn billing() -> CallersDocument {
        let text =
            format!(r#"{{"callers":[{{"id":"billing","keys_sha256":["{}"],"methods":["GET"]}}]}}"#, "0a".repeat(32));
        CallersDocument::parse(&text).expect("well formed")
    }

    fn knows(document: &CallersDocument, key: &NewKey) -> bool {
        let callers = Callers::parse(document.to_json().expect("well formed").expose()).expect("well formed");
        callers.authenticate(Identity::Bearer(Some(&format!("Bearer {}", key.key.expose())))).is_ok()
    }

    #[test]
    fn a_new_key_lets_its_caller_in_until_it_is_taken_away() {
        let (mut document, key) = (billing(), NewKey::generate());
        assert!(!knows(&document, &key));
        document.add_key("billing", &key.sha256).expect("there is such a caller");
        assert!(knows(&document, &key));
        assert_eq!(document.entries()[0].keys_sha256.len(), 2, "the old one stays");
        assert_eq!(document.keep_last_key("billing"), Ok(1));
        assert!(knows(&document, &key), "the newest stays");
        document.remove_key("billing", &key.sha256[..12].to_uppercase()).expect("the only one that begins so");
        assert!(!knows(&document, &key));
        assert_eq!(document.keep_last_key("billing"), Ok(0));
    }

    #[test]
    fn new_permissions_replace_the_old_ones_and_the_keys_stay() {
        let mut document = billing();
        let with = |alias: &str| CallerEntry {
            id: "billing".into(),
            aliases: vec![alias.to_owned()],
            paths: Some(vec!["/contacts/**".into()]),
            ..CallerEntry::default()
        };
        document.set(with("billing")).expect("there is such a caller");
        let entry = &document.entries()[0];
        assert_eq!((entry.keys_sha256.len(), &entry.methods), (1, &None));
        assert_eq!(entry.paths.as_deref(), Some(&["/contacts/**".to_owned()][..]));
        document.set(with("billing")).expect("an alias may stay");
        let nobody = CallerEntry { id: "nobody".into(), ..CallerEntry::default() };
        assert_eq!(document.set(nobody.clone()), Err(EditError::NoSuchCaller("nobody".into())));
        document.add(nobody).expect("a new one");
        let taken = CallerEntry { id: "nobody".into(), ..with("billing") };
        assert!(matches!(document.set(taken), Err(EditError::Taken { .. })));
        let invalid = CallerEntry { methods: Some(vec!["FETCH".into()]), ..with("billing") };
        assert!(matches!(document.set(invalid), Err(EditError::Invalid(_))));
        let open = document.to_json().expect("well formed").expose().replacen('{', r#"{"unlisted":"allow","#, 1);
        let mut open = CallersDocument::parse(&open).expect("well formed");
        assert_eq!(open.set(with("other")), Err(EditError::WouldWiden("billing".into())));
        open.set(with("billing")).expect("it loses no alias");
    }

    #[test]
    fn what_others_wrote_stays_and_what_the_relay_would_refuse_is_not_written() {
        let mut document = billing();
        document.add(CallerEntry { id: "mail".into(), ..CallerEntry::default() }).expect("a new one");
        let json = document.to_json().expect("well formed");
        assert!(json.expose().contains(r#""methods":["GET"]"#) && !json.expose().contains("null"), "{}", json.expose());
        assert_eq!(
            document.add(CallerEntry { id: "mail".into(), ..CallerEntry::default() }),
            Err(EditError::Exists("mail".into()))
        );
        document.remove("mail").expect("it is there");
        assert!(document.to_json().is_ok());
        assert_eq!(document.remove("odd"), Err(EditError::NoSuchCaller("odd".into())));
        let two = EditError::NotOneKey { caller: "billing".into(), prefix: "ff".into(), found: 0 };
        assert_eq!(document.remove_key("billing", "ff"), Err(two));
    }

    #[test]
    fn what_is_wrong_with_a_new_entry_is_named() {
        let text = r#"{"callers":[{"id":"mail","aliases":["mail"],"principals":["arn:aws:iam::1:user/m"]}],"unlisted":"allow"}"#;
        let mut document = CallersDocument::parse(text).expect("well formed");
        assert!(document.allows_unlisted() && !billing().allows_unlisted());
        let new = || CallerEntry { id: "new".into(), ..CallerEntry::default() };
        let list = |text: &str| vec![text.to_owned()];
        for (entry, word) in [
            (CallerEntry { id: "(minter)".into(), ..new() }, "the id \"(minter)\""),
            (CallerEntry { methods: Some(list("FETCH")), ..new() }, "method \"FETCH\""),
            (CallerEntry { methods: Some(list("get")), ..new() }, "method \"get\""),
            (CallerEntry { principals: list("billing-role"), ..new() }, "principal \"billing-role\""),
            (CallerEntry { principals: list("*"), ..new() }, "principal \"*\""),
            (CallerEntry { aliases: list("7"), ..new() }, "alias \"7\""),
            (CallerEntry { resources: Some(list("location")), ..new() }, "resource \"location\""),
            (CallerEntry { paths: Some(list("contacts")), ..new() }, "path \"contacts\""),
            (CallerEntry { tools: Some(list("a b")), ..new() }, "tool \"a b\""),
            (CallerEntry { requests_per_10s: Some(0), ..new() }, "requests_per_10s"),
            (CallerEntry { id: "mail".into(), ..new() }, "there is a caller mail already"),
            (CallerEntry { aliases: list("mail"), ..new() }, "mail names the caller mail already"),
            (CallerEntry { principals: list("arn:aws:iam::1:user/m"), ..new() }, "names the caller mail already"),
        ] {
            let error = document.add(entry).expect_err(word).to_string();
            assert!(error.contains(word) && !error.contains("secret"), "{word}: {error}");
        }
        assert_eq!(document.entries().len(), 1);
        document.add(CallerEntry { aliases: list("new"), ..new() }).expect("a new one");
        let json = document.to_json().expect("well formed");
        assert!(json.expose().contains(r#""unlisted":"allow""#), "{}", json.expose());
        // A removal takes rights away, or is refused.
        assert_eq!(document.remove("mail"), Err(EditError::WouldWiden("mail".into())));
        document
            .add(CallerEntry { id: "key".into(), keys_sha256: list(&"0b".repeat(32)), ..new() })
            .expect("a new one");
        assert_eq!(document.remove("key"), Ok(()));
    }
}
