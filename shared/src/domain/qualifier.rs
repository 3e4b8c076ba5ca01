//! The qualifier by which a Lambda function was invoked, and the forms of events that may come by this qualifier.
//!
//! API Gateway and the event sources invoke one alias ([`GatewayAlias`]). If an event in their form comes by another
//! qualifier, an invoker wrote the event and could have put any identity into it.

/// The part of an invoked function's ARN that names an alias, a version, or nothing (AWS Lambda Developer Guide,
/// "Using Lambda aliases in event sources and permissions policies").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qualifier<'a> {
    /// The function itself: no qualifier, or `$LATEST`.
    Unqualified,
    /// An alias or the number of a version.
    Named(&'a str),
}

impl<'a> Qualifier<'a> {
    /// Reads the qualifier of `arn:aws:lambda:REGION:ACCOUNT:function:NAME:QUALIFIER`: the text after the seventh
    /// colon. An ARN of another form, as sent by emulators, has no qualifier.
    pub fn of(invoked_function_arn: &'a str) -> Self {
        match invoked_function_arn.splitn(8, ':').nth(7) {
            None | Some("$LATEST") => Self::Unqualified,
            Some(name) => Self::Named(name),
        }
    }

    /// The alias. A version number is not an alias (Lambda's own rule for the names of aliases).
    pub fn alias(self) -> Option<&'a str> {
        match self {
            Self::Named(name) if names_an_alias(name) => Some(name),
            Self::Named(_) | Self::Unqualified => None,
        }
    }
}

/// Returns true if Lambda could have an alias of this name (`CreateAlias`, parameter `Name`).
pub fn names_an_alias(name: &str) -> bool {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    (1..=128).contains(&name.len()) && plain && !name.bytes().all(|b| b.is_ascii_digit())
}

/// The form of an event. The sender of an event can choose its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvocationKind {
    /// A request that API Gateway passes on.
    Http,
    /// Messages that Lambda has read from an SQS queue.
    Queue,
    /// An invocation by another function.
    Direct,
}

/// The alias that API Gateway and the event sources invoke: the value of `GATEWAY_ALIAS`, if set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayAlias(Option<String>);

impl GatewayAlias {
    /// The alias of this name, or no alias.
    pub fn new(name: Option<String>) -> Self {
        Self(name)
    }

    /// The name of the alias.
    pub fn name(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// Returns true if an event of this form may have come by this ARN. With a gateway alias, HTTP and SQS events come
    /// by the alias and direct invocations do not. Without a gateway alias, HTTP and SQS events come by the unqualified
    /// function.
    pub fn admits(&self, kind: InvocationKind, invoked_function_arn: &str) -> bool {
        let wanted = self.name().map_or(Qualifier::Unqualified, Qualifier::Named);
        let is_gateway = Qualifier::of(invoked_function_arn) == wanted;
        match kind {
            InvocationKind::Http | InvocationKind::Queue => is_gateway,
            InvocationKind::Direct => self.name().is_none() || !is_gateway,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:lambda:us-east-1:123456789012:function:relay";

    #[test]
    fn the_qualifier_is_what_follows_the_seventh_colon() {
        for (suffix, expected, alias) in [
            ("", Qualifier::Unqualified, None),
            (":$LATEST", Qualifier::Unqualified, None),
            (":live", Qualifier::Named("live"), Some("live")),
            (":Live", Qualifier::Named("Live"), Some("Live")),
            (":7", Qualifier::Named("7"), None),
            (":7a", Qualifier::Named("7a"), Some("7a")),
            (":", Qualifier::Named(""), None),
            (":live:x", Qualifier::Named("live:x"), None),
            (":$LATEST.PUBLISHED", Qualifier::Named("$LATEST.PUBLISHED"), None),
        ] {
            let arn = format!("{ARN}{suffix}");
            assert_eq!((Qualifier::of(&arn), Qualifier::of(&arn).alias()), (expected, alias), "{arn}");
        }
        for arn in ["", "relay", "arn", ":::", "arn:aws:lambda:us-east-1:1:function"] {
            assert_eq!(Qualifier::of(arn), Qualifier::Unqualified, "{arn}");
        }
    }

    #[test]
    fn events_come_by_the_gateways_qualifier_only_and_direct_invocations_by_any_other() {
        // For each gateway alias and qualifier: HTTP and SQS events, direct invocations.
        for (gateway, suffix, events, direct) in [
            (None, "", true, true),
            (None, ":$LATEST", true, true),
            (None, ":live", false, true),
            (None, ":billing", false, true),
            (None, ":7", false, true),
            (None, ":", false, true),
            (Some("live"), "", false, true),
            (Some("live"), ":$LATEST", false, true),
            (Some("live"), ":live", true, false),
            (Some("live"), ":LIVE", false, true),
            (Some("live"), ":live2", false, true),
            (Some("live"), ":live:", false, true),
            (Some("live"), ":billing", false, true),
            (Some("live"), ":7", false, true),
        ] {
            let (alias, arn) = (GatewayAlias::new(gateway.map(str::to_owned)), format!("{ARN}{suffix}"));
            assert_eq!(alias.admits(InvocationKind::Http, &arn), events, "HTTP by {suffix:?} with {gateway:?}");
            assert_eq!(alias.admits(InvocationKind::Queue, &arn), events, "SQS by {suffix:?} with {gateway:?}");
            assert_eq!(alias.admits(InvocationKind::Direct, &arn), direct, "direct by {suffix:?} with {gateway:?}");
        }
    }

    #[test]
    fn an_alias_has_the_form_that_lambda_demands() {
        for (name, good) in [
            ("live", true),
            ("a", true),
            ("7a", true),
            ("a-b_C", true),
            ("", false),
            ("7", false),
            ("$LATEST", false),
            ("a b", false),
            ("a:b", false),
            ("ä", false),
        ] {
            assert_eq!(names_an_alias(name), good, "{name}");
        }
        assert!(names_an_alias(&"a".repeat(128)) && !names_an_alias(&"a".repeat(129)));
    }
}
