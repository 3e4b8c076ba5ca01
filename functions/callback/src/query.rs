//! Query parameters as OAuth reads them (RFC 6749 section 3.1): one without a value counts as absent, one that is
//! there twice makes the request invalid, and those that are not known are ignored.

use url::form_urlencoded;

/// A parameter that is there more than once: which one is meant cannot be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the parameter {0} is there more than once")]
pub struct Repeated(pub &'static str);

/// The value of a parameter.
///
/// # Errors
/// [`Repeated`], also where all but one of the values are empty.
pub fn parameter(query: &str, name: &'static str) -> Result<Option<String>, Repeated> {
    let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
    let first = values.next();
    if values.next().is_some() {
        return Err(Repeated(name));
    }
    Ok(first.map(|(_, value)| value.into_owned()).filter(|value| !value.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_is_absent_and_twice_is_invalid() {
        assert_eq!(parameter("code=a%20b&x=1&x=2", "code"), Ok(Some("a b".into())));
        assert_eq!(parameter("code=&x", "code"), Ok(None));
        assert_eq!(parameter("", "code"), Ok(None));
        for twice in ["code=a&code=b", "code=a&code=a", "code=a&code=", "code=a&c%6Fde=b"] {
            assert_eq!(parameter(twice, "code"), Err(Repeated("code")), "{twice}");
        }
    }
}
