//! The patterns of the callers' secret. `*` stands for any characters, `**` for any number of path segments.

/// A text with `*` for any run of characters, the empty one included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wildcard(String);

impl Wildcard {
    pub(super) fn new(pattern: &str) -> Self {
        Self(pattern.to_owned())
    }

    /// Linear in practice: a mismatch goes back to the last star only.
    pub(super) fn matches(&self, text: &str) -> bool {
        let (pattern, text) = (self.0.as_bytes(), text.as_bytes());
        let (mut p, mut t) = (0, 0);
        let mut star = None;
        while t < text.len() {
            if pattern.get(p) == Some(&b'*') {
                star = Some((p, t));
                p += 1;
            } else if pattern.get(p) == Some(&text[t]) {
                p += 1;
                t += 1;
            } else if let Some((at, from)) = star {
                p = at + 1;
                t = from + 1;
                star = Some((at, t));
            } else {
                return false;
            }
        }
        pattern[p..].iter().all(|b| *b == b'*')
    }
}

/// A path of the platform with `*` inside a segment and `**` as a whole one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PathPattern(Vec<Segment>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    One(Wildcard),
    Any,
}

impl PathPattern {
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(pattern: &str) -> Result<Self, &'static str> {
        let rest = pattern.strip_prefix('/').ok_or("must begin with /")?;
        if rest.contains(['?', '#', '%', '\\']) {
            return Err("is written decoded, without query or fragment");
        }
        if pattern.contains("//") {
            return Err("has an empty segment");
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let segments = rest.split('/').filter(|_| !rest.is_empty()).map(|segment| match segment {
            "." | ".." => Err("has a dot segment"),
            "**" => Ok(Segment::Any),
            _ if segment.contains("**") => Err("has ** beside other characters"),
            _ => Ok(Segment::One(Wildcard::new(segment))),
        });
        segments.collect::<Result<_, _>>().map(Self)
    }

    /// `segments` are decoded and have no empty one: a slash at the end makes no difference to the platform.
    pub(super) fn matches(&self, segments: &[String]) -> bool {
        // The same walk as in `Wildcard`, over segments.
        let pattern = &self.0;
        let (mut p, mut s) = (0, 0);
        let mut any = None;
        while s < segments.len() {
            match pattern.get(p) {
                Some(Segment::Any) => {
                    any = Some((p, s));
                    p += 1;
                    continue;
                }
                Some(Segment::One(one)) if one.matches(&segments[s]) => {
                    p += 1;
                    s += 1;
                    continue;
                }
                _ => {}
            }
            let Some((at, from)) = any else { return false };
            p = at + 1;
            s = from + 1;
            any = Some((at, s));
        }
        pattern[p..].iter().all(|segment| *segment == Segment::Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_run_of_characters() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "anything/at:all", true),
            ("", "", true),
            ("", "a", false),
            ("arn:*:role/billing/*", "arn:aws:role/billing/session", true),
            ("arn:*:role/billing/*", "arn:aws:role/billing", false),
            ("arn:*:role/billing/*", "arn:aws:role/other/role/billing/x", false),
            ("a*b*c", "aXbXbYc", true),
            ("a*b*c", "aXbXbY", false),
            ("abc", "abcd", false),
        ] {
            assert_eq!(Wildcard::new(pattern).matches(text), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn paths_match_by_segments() {
        for (pattern, path, expected) in [
            ("/contacts/**", "contacts", true),
            ("/contacts/**", "contacts/1/notes", true),
            ("/contacts/**", "contactsx", false),
            ("/contacts/*", "contacts", false),
            ("/contacts/*", "contacts/1", true),
            ("/contacts/*", "contacts/1/notes", false),
            ("/contacts/*/notes", "contacts/1/notes", true),
            ("/contacts/", "contacts", true),
            ("/**/notes", "contacts/1/notes", true),
            ("/**/notes", "notes", true),
            ("/**/notes/**/x", "a/notes/b/notes/c", false),
            ("/**", "", true),
            ("/", "", true),
            ("/", "a", false),
            ("/objects/custom_*/records", "objects/custom_pet/records", true),
            ("/Contacts/**", "contacts/1", false),
        ] {
            let segments: Vec<_> = path.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect();
            let parsed = PathPattern::parse(pattern).expect("a pattern");
            assert_eq!(parsed.matches(&segments), expected, "{pattern} on {path}");
        }
    }

    #[test]
    fn what_could_be_misread_is_refused() {
        for bad in ["", "contacts", "//", "/a//b", "/a/../b", "/a**", "/a?b", "/a%2fb"] {
            assert!(PathPattern::parse(bad).is_err(), "{bad}");
        }
    }
}
