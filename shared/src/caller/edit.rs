//! Changing the callers' secret: callers and their keys are added and taken away. Pure; what comes out is read once more
//! as the relay reads it, so that no edit leaves a secret behind that lets nobody in.

use aws_lc_rs::digest::{SHA256, digest};

use super::Callers;
pub use super::secret::Written;
use super::secret::{Document, entry, told};
use crate::domain::random;
use crate::domain::redacted::Redacted;

/// A caller's key: told once, stored as its SHA-256.
#[derive(Debug)]
pub struct NewKey {
    /// The key.
    pub key: Redacted,
    /// What is stored of it, in hex.
    pub sha256: String,
}

impl NewKey {
    /// 192 random bits, with a beginning by which a leaked key can be searched for.
    #[must_use]
    pub fn generate() -> Self {
        let key = format!("rk_{}", random::hex::<24>());
        let sha256 = hex::encode(digest(&SHA256, key.as_bytes()));
        Self { key: key.into(), sha256 }
    }
}

/// Why a change cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The secret is not in its documented form.
    #[error("the callers' secret is malformed: {0}")]
    Malformed(String),
    /// A member of a new entry is not as documented.
    #[error("{0}")]
    Invalid(String),
    /// An alias or a principal of a new entry names another caller.
    #[error("{name} names the caller {owner} already")]
    Taken {
        /// The alias or principal.
        name: String,
        /// The other caller.
        owner: String,
    },
    /// Without the entry its aliases and principals could do everything, since the secret allows the unlisted.
    #[error(
        "without its entry {0} could do everything by its aliases and principals, because the secret says \
         \"unlisted\": \"allow\": take that out first"
    )]
    WouldWiden(String),
    /// There is no caller of that id.
    #[error("there is no caller {0}")]
    NoSuchCaller(String),
    /// There is one already.
    #[error("there is a caller {0} already")]
    Exists(String),
    /// No key, or more than one, begins so.
    #[error("{found} keys of {caller} begin with {prefix}; exactly one must")]
    NotOneKey {
        /// The caller.
        caller: String,
        /// What the SHA-256 was to begin with.
        prefix: String,
        /// How many do.
        found: usize,
    },
}

/// The secret's value, to be changed.
pub struct CallersDocument(Document);

impl CallersDocument {
    /// Reads the secret's value.
    ///
    /// # Errors
    /// [`EditError::Malformed`].
    pub fn parse(json: &str) -> Result<Self, EditError> {
        Callers::parse(json).map_err(EditError::Malformed)?;
        serde_json::from_str(json).map(Self).map_err(|error| EditError::Malformed(told(&error)))
    }

    /// Whether aliases, principals and unqualified invocations without an entry may do everything.
    #[must_use]
    pub fn allows_unlisted(&self) -> bool {
        self.0.unlisted.is_some()
    }

    /// All entries.
    #[must_use]
    pub fn entries(&self) -> &[Written] {
        &self.0.callers
    }

    /// Adds a caller.
    ///
    /// # Errors
    /// [`EditError::Invalid`], [`EditError::Exists`], [`EditError::Taken`].
    pub fn add(&mut self, caller: Written) -> Result<(), EditError> {
        entry(caller.clone()).map_err(EditError::Invalid)?;
        if self.0.callers.iter().any(|other| other.id == caller.id) {
            return Err(EditError::Exists(caller.id));
        }
        for name in caller.aliases.iter().chain(&caller.principals) {
            let has_it = |other: &&Written| other.aliases.contains(name) || other.principals.contains(name);
            if let Some(other) = self.0.callers.iter().find(has_it) {
                return Err(EditError::Taken { name: name.clone(), owner: other.id.clone() });
            }
        }
        self.0.callers.push(caller);
        Ok(())
    }

    /// Takes a caller away.
    ///
    /// # Errors
    /// [`EditError::NoSuchCaller`], [`EditError::WouldWiden`].
    pub fn remove(&mut self, id: &str) -> Result<(), EditError> {
        let is_unlisted_open = self.allows_unlisted();
        let entry = self.entry(id)?;
        if is_unlisted_open && !(entry.aliases.is_empty() && entry.principals.is_empty()) {
            return Err(EditError::WouldWiden(id.to_owned()));
        }
        self.0.callers.retain(|caller| caller.id != id);
        Ok(())
    }

    /// Adds a key beside those that a caller has.
    ///
    /// # Errors
    /// [`EditError::NoSuchCaller`].
    pub fn add_key(&mut self, id: &str, sha256: &str) -> Result<(), EditError> {
        self.entry(id)?.keys_sha256.push(sha256.to_owned());
        Ok(())
    }

    /// Takes the key away whose SHA-256 begins with `prefix`.
    ///
    /// # Errors
    /// [`EditError`].
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

    /// Takes all keys of a caller away but the one that was added last; how many those were.
    ///
    /// # Errors
    /// [`EditError::NoSuchCaller`].
    pub fn keep_last_key(&mut self, id: &str) -> Result<usize, EditError> {
        let keys = &mut self.entry(id)?.keys_sha256;
        let old = keys.len().saturating_sub(1);
        keys.drain(..old);
        Ok(old)
    }

    /// The secret's value.
    ///
    /// # Errors
    /// [`EditError::Malformed`]: the relay would refuse it.
    ///
    /// # Panics
    /// Never: texts and numbers are always JSON.
    pub fn to_json(&self) -> Result<Redacted, EditError> {
        let json = serde_json::to_string(&self.0).expect("texts and numbers are JSON");
        Callers::parse(&json).map_err(EditError::Malformed)?;
        Ok(json.into())
    }

    fn entry(&mut self, id: &str) -> Result<&mut Written, EditError> {
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
    fn what_others_wrote_stays_and_what_the_relay_would_refuse_is_not_written() {
        let mut document = billing();
        document.add(Written { id: "mail".into(), ..Written::default() }).expect("a new one");
        let json = document.to_json().expect("well formed");
        assert!(json.expose().contains(r#""methods":["GET"]"#) && !json.expose().contains("null"), "{}", json.expose());
        assert_eq!(
            document.add(Written { id: "mail".into(), ..Written::default() }),
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
        let new = || Written { id: "new".into(), ..Written::default() };
        let list = |text: &str| vec![text.to_owned()];
        for (entry, word) in [
            (Written { id: "(supposed)".into(), ..new() }, "the id \"(supposed)\""),
            (Written { methods: Some(list("FETCH")), ..new() }, "method \"FETCH\""),
            (Written { methods: Some(list("get")), ..new() }, "method \"get\""),
            (Written { principals: list("billing-role"), ..new() }, "principal \"billing-role\""),
            (Written { principals: list("*"), ..new() }, "principal \"*\""),
            (Written { aliases: list("7"), ..new() }, "alias \"7\""),
            (Written { resources: Some(list("location")), ..new() }, "resource \"location\""),
            (Written { paths: Some(list("contacts")), ..new() }, "path \"contacts\""),
            (Written { tools: Some(list("a b")), ..new() }, "tool \"a b\""),
            (Written { requests_per_10s: Some(0), ..new() }, "requests_per_10s"),
            (Written { id: "mail".into(), ..new() }, "there is a caller mail already"),
            (Written { aliases: list("mail"), ..new() }, "mail names the caller mail already"),
            (Written { principals: list("arn:aws:iam::1:user/m"), ..new() }, "names the caller mail already"),
        ] {
            let error = document.add(entry).expect_err(word).to_string();
            assert!(error.contains(word) && !error.contains("secret"), "{word}: {error}");
        }
        assert_eq!(document.entries().len(), 1);
        document.add(Written { aliases: list("new"), ..new() }).expect("a new one");
        let json = document.to_json().expect("well formed");
        assert!(json.expose().contains(r#""unlisted":"allow""#), "{}", json.expose());
        // A removal takes rights away, or is refused.
        assert_eq!(document.remove("mail"), Err(EditError::WouldWiden("mail".into())));
        document.add(Written { id: "key".into(), keys_sha256: list(&"0b".repeat(32)), ..new() }).expect("a new one");
        assert_eq!(document.remove("key"), Ok(()));
    }
}
