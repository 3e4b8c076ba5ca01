//! Pattern matching (wildcards) for the callers' secret. `*` matches any characters, `**` any number of path segments. Pure.

/// A text in which `*` matches any number of characters, also none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wildcard(String);

impl Wildcard {
    pub(super) fn new(pattern: &str) -> Self {
        Self(pattern.to_owned())
    }

    /// Matches greedily: a mismatch goes back to the last star only.
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

/// The ARN of an IAM principal. `*` matches any characters up to the next `:` or `/`; a `*` at the end matches the whole
/// rest.
///
/// A star in the middle does not match a separator, because the last part of a session's ARN is chosen by the user who
/// assumes the role: `assumed-role/*-billing` must not match the session `x-billing` of another role.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ArnPattern(String);

/// The services whose principals can sign a request (API Gateway's `userArn`): IAM and the security token service.
const PRINCIPAL_SERVICES: [&str; 2] = ["iam", "sts"];

impl ArnPattern {
    /// Reads a pattern. The error says what is wrong with it.
    pub(super) fn parse(pattern: &str) -> Result<Self, &'static str> {
        let no_arn = "is no ARN of an IAM principal, such as arn:aws:sts::123456789012:assumed-role/NAME/*";
        let parts: Vec<_> = pattern.splitn(6, ':').collect();
        let ["arn", partition, service, "", account, principal] = parts[..] else { return Err(no_arn) };
        let is_account = account == "*" || (!account.is_empty() && account.bytes().all(|b| b.is_ascii_digit()));
        let kind = principal.split('/').next().unwrap_or_default();
        let is_kind = !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let is_plain = pattern.bytes().all(|b| b.is_ascii_graphic());
        let is_complete = !partition.is_empty() && PRINCIPAL_SERVICES.contains(&service) && is_account;
        let is_named = kind == "root" || principal.len() > kind.len() + 1;
        if is_plain && is_complete && is_kind && is_named { Ok(Self(pattern.to_owned())) } else { Err(no_arn) }
    }

    pub(super) fn matches(&self, arn: &str) -> bool {
        let (mut pattern, mut arn) = (self.0.as_str(), arn);
        loop {
            let separator = pattern.find([':', '/']);
            let Some(end) = separator else {
                // The last part. If it ends with a star, it matches the whole rest.
                return (pattern.ends_with('*') || !arn.contains([':', '/'])) && Wildcard::new(pattern).matches(arn);
            };
            let Some(arn_end) = arn.find([':', '/']) else { return false };
            let is_same = pattern.as_bytes()[end] == arn.as_bytes()[arn_end];
            if !is_same || !Wildcard::new(&pattern[..end]).matches(&arn[..arn_end]) {
                return false;
            }
            (pattern, arn) = (&pattern[end + 1..], &arn[arn_end + 1..]);
        }
    }
}

impl std::fmt::Display for ArnPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A path of the platform. `*` matches within a segment, and the segment `**` matches any number of segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PathPattern(Vec<Segment>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    One(Wildcard),
    Any,
}

impl PathPattern {
    /// Reads a pattern. The error says what is wrong with it.
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

    /// Matches decoded segments, none of which is empty: a slash at the end makes no difference to the platform.
    pub(super) fn matches(&self, segments: &[String]) -> bool {
        // The same algorithm as in `Wildcard`, over segments.
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
    fn principals_match_part_by_part() {
        let session = "arn:aws:sts::123456789012:assumed-role/billing/s1";
        for (pattern, arn, expected) in [
            ("arn:aws:sts::123456789012:assumed-role/billing/*", session, true),
            ("arn:aws:sts::123456789012:assumed-role/billing/s1", session, true),
            ("arn:aws:sts::*:assumed-role/billing/*", session, true),
            ("arn:*:sts::123456789012:assumed-role/billing/*", session, true),
            ("arn:aws:sts::123456789012:assumed-role/bil*/s1", session, true),
            ("arn:aws:sts::123456789012:assumed-role/*", session, true),
            ("arn:aws:sts::123456789012:assumed-role/bil*", session, true),
            ("arn:aws:sts::123456789012:assumed-role/Billing/*", session, false),
            ("arn:aws:sts::123456789012:assumed-role/billing", session, false),
            ("arn:aws:sts::1:assumed-role/billing/*", session, false),
            ("arn:aws:iam::123456789012:assumed-role/billing/*", session, false),
            // The session's name is the assumer's choice.
            ("arn:aws:sts::1:assumed-role/*-billing", "arn:aws:sts::1:assumed-role/other/x-billing", false),
            ("arn:aws:sts::1:assumed-role/*/deploy", "arn:aws:sts::1:assumed-role/a/b/deploy", false),
            ("arn:aws:sts::*:assumed-role/billing/*", "arn:aws:sts::1:x:assumed-role/billing/s", false),
            ("arn:aws:iam::1:user/*", "arn:aws:iam::1:user/team/ada", true),
            ("arn:aws:iam::1:user/ada", "arn:aws:iam::1:user/ada", true),
            ("arn:aws:iam::1:user/ada", "arn:aws:iam::1:user/ada2", false),
            ("arn:aws:iam::1:root", "arn:aws:iam::1:root", true),
            ("arn:aws:iam::1:root", "arn:aws:iam::1:role/root", false),
            ("arn:aws:iam::1:user/*", "", false),
            ("arn:aws:iam::1:user/*", "arn:aws:iam::1:user", false),
        ] {
            assert_eq!(ArnPattern::parse(pattern).expect(pattern).matches(arn), expected, "{pattern} on {arn}");
        }
    }

    #[test]
    fn a_principal_that_is_no_arn_or_everybody_is_refused() {
        for bad in [
            "",
            "*",
            "arn:*",
            "arn:aws:*",
            "billing",
            "arn:aws:sts::1",
            "arn:aws:sts::1:",
            "arn:aws:sts::1:*",
            "arn:aws:sts::1:*/billing/x",
            "arn:aws:*::1:assumed-role/billing/*",
            "arn:aws:lambda::1:function:relay",
            "arn:aws:sts:us-east-1:1:assumed-role/billing/*",
            "arn:aws:sts:::assumed-role/billing/*",
            "arn:aws:sts::acme:assumed-role/billing/*",
            "arn:aws:iam::1:user/",
            "arn:aws:iam::1:user",
            "arn:aws:iam::1:user/a b",
            " arn:aws:iam::1:user/a",
            "ARN:aws:iam::1:user/a",
            "123456789012",
        ] {
            assert!(ArnPattern::parse(bad).is_err(), "{bad:?}");
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
