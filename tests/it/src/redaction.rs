//! Searches for secrets in written text: as they are, and in each form in which a program might write one by mistake.

use std::collections::{BTreeSet, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// The minimum length of every form, so that no form is found by chance.
const SHORTEST: usize = 8;

/// The forms of a secret: the secret itself, base64 at each of the three offsets that the secret can have in a longer
/// text, hexadecimal, percent encoding, and bytes as `Debug` lists them.
pub fn forms(secret: &str) -> Vec<String> {
    let bytes = secret.as_bytes();
    let joined = |each: fn(&u8) -> String, between: &str| bytes.iter().map(each).collect::<Vec<_>>().join(between);
    let mut forms: BTreeSet<String> = [
        secret.to_owned(),
        hex::encode(bytes),
        hex::encode_upper(bytes),
        joined(ToString::to_string, ", "),
        joined(ToString::to_string, ","),
        url::form_urlencoded::byte_serialize(bytes).collect(),
    ]
    .into();
    for before in 0..3 {
        let text = [&vec![0; before], bytes].concat();
        // Only the characters that the neighbouring bytes do not influence.
        let (from, to) = (before.div_ceil(3) + before, text.len() * 8 / 6);
        for encoded in [STANDARD_NO_PAD.encode(&text), URL_SAFE_NO_PAD.encode(&text)] {
            forms.insert(encoded[from..to].to_owned());
        }
    }
    forms.into_iter().filter(|form| form.len() >= SHORTEST).collect()
}

/// Searches a text for many strings at once.
#[derive(Debug, Default)]
pub struct Search(HashMap<[u8; SHORTEST], Vec<String>>);

impl Search {
    /// A search for all forms of these secrets.
    pub fn for_secrets<'a>(secrets: impl IntoIterator<Item = &'a String>) -> Self {
        let mut search = Self::default();
        for form in secrets.into_iter().flat_map(|secret| forms(secret)) {
            if let Some(start) = form.as_bytes().first_chunk() {
                search.0.entry(*start).or_default().push(form);
            }
        }
        search
    }

    /// The first form that the text contains.
    pub fn find(&self, text: &str) -> Option<&str> {
        let bytes = text.as_bytes();
        bytes.windows(SHORTEST).enumerate().find_map(|(at, window)| {
            let forms = self.0.get(window)?;
            forms.iter().map(String::as_str).find(|form| bytes[at..].starts_with(form.as_bytes()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;

    #[test]
    fn each_form_is_found_in_a_longer_text_and_nothing_else_is() {
        let secret = "rt-+/ä_9f8e7d6c5b4a".to_owned();
        let search = Search::for_secrets([&secret]);
        for around in ["", "x", "xy", "{\"a\":\"", "Bearer "] {
            let text = format!("{around}{secret}{around}");
            for written in [
                text.clone(),
                format!("{text:?}"),
                STANDARD.encode(&text),
                URL_SAFE_NO_PAD.encode(&text),
                format!("{:?}", text.as_bytes()),
                format!("{:?}", bytes::Bytes::from(secret.clone())).replace("\\xc3\\xa4", "ä"),
                format!("{:x?}", 7) + &forms(&secret).join(" "),
                url::form_urlencoded::byte_serialize(text.as_bytes()).collect(),
            ] {
                assert!(search.find(&written).is_some(), "{written}");
            }
        }
        assert_eq!(search.find("rt-+/ä_9f8e7d6c5b4 rt another line of some length"), None);
    }
}
