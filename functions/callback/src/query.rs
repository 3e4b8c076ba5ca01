//! Query parameters by the rules of OAuth (RFC 6749 section 3.1): a parameter without a value counts as absent, a
//! repeated parameter makes the request invalid, and unknown parameters are ignored.

use url::form_urlencoded;

/// A parameter that occurs more than once. No occurrence is preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the parameter {0} occurs more than once")]
pub struct Repeated(pub &'static str);

/// The decoded value of a parameter. `None` if the parameter is absent or empty.
///
/// # Errors
/// [`Repeated`], even if all but one of the values are empty.
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
    fn an_empty_parameter_is_absent_and_a_repeated_one_is_invalid() {
        assert_eq!(parameter("code=a%20b&x=1&x=2", "code"), Ok(Some("a b".into())));
        assert_eq!(parameter("code=&x", "code"), Ok(None));
        assert_eq!(parameter("", "code"), Ok(None));
        for twice in ["code=a&code=b", "code=a&code=a", "code=a&code=", "code=a&c%6Fde=b"] {
            assert_eq!(parameter(twice, "code"), Err(Repeated("code")), "{twice}");
        }
    }
}
