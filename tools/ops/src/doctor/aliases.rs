//! Checks the aliases of the function `relay` against the aliases in the callers' secret.

use std::collections::BTreeSet;

use shared::caller::edit::CallersDocument;

use super::Finding;
use crate::stack::Stack;

const WHAT: &str = "aliases";

pub(super) async fn check(stack: &Stack, callers: &CallersDocument) -> Vec<Finding> {
    let Some(function) = &stack.relay_function else {
        return vec![Finding::skipped(WHAT, "RELAY_FUNCTION is not set")];
    };
    match stack.aliases(function).await {
        Ok(aliases) => compare(&aliases, callers, stack.app.config.gateway_alias.name()),
        Err(failure) => {
            let advice = "check RELAY_FUNCTION and your permission lambda:ListAliases";
            vec![Finding::warn(WHAT, failure.to_string(), advice)]
        }
    }
}

/// Compares the function's aliases with the callers' entries. API Gateway's alias must not identify a caller.
fn compare(aliases: &[String], callers: &CallersDocument, gateway: Option<&str>) -> Vec<Finding> {
    let there: BTreeSet<&str> = aliases.iter().map(String::as_str).collect();
    let listed: BTreeSet<&str> =
        callers.entries().iter().flat_map(|entry| &entry.aliases).map(String::as_str).collect();
    let mut findings = Vec::new();
    if let Some(gateway) = gateway {
        if !there.contains(gateway) {
            let said = format!("the function has no alias {gateway}, but GATEWAY_ALIAS names it");
            findings.push(Finding::fail(
                WHAT,
                said,
                "make it again for the newest version (`aws lambda create-alias --function-version NUMBER`), with API Gateway's permission to invoke it",
            ));
        }
        if listed.contains(gateway) {
            let said =
                format!("an entry names {gateway}, the alias of API Gateway, which accepts no direct invocations");
            findings.push(Finding::fail(WHAT, said, "give the caller an alias of its own"));
        }
    }
    for alias in there.difference(&listed).filter(|alias| Some(**alias) != gateway) {
        let (said, advice) = match listed.iter().find(|other| other.eq_ignore_ascii_case(alias)) {
            Some(other) => (
                format!("no entry names the alias {alias}; one names {other}, which differs in case"),
                "correct the alias in the entry",
            ),
            None if callers.allows_unlisted() => (
                format!("no entry names the alias {alias}: its invocations may make every call"),
                "ops callers add NAME --alias ALIAS, or delete the alias",
            ),
            None => (
                format!("no entry names the alias {alias}: its invocations are answered 401"),
                "ops callers add NAME --alias ALIAS, or delete the alias",
            ),
        };
        findings.push(Finding::warn(WHAT, said, advice));
    }
    for alias in listed.difference(&there).filter(|alias| Some(**alias) != gateway) {
        let said = format!("an entry names the alias {alias}, which the function does not have");
        findings.push(Finding::warn(WHAT, said, "create the alias for $LATEST, or remove it from the entry"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(WHAT, format!("all {} have an entry", listed.len())));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_and_entries_are_compared() {
        // The function's aliases, the entries' aliases, API Gateway's alias, `unlisted` allowed, states, a part of the text.
        let cases = [
            ("", "", None, false, "ok", "all 0"),
            ("billing", "billing", None, false, "ok", "all 1"),
            ("billing live", "billing", Some("live"), false, "ok", "all 1"),
            ("billing live", "billing", None, false, "warn", "no entry names the alias live"),
            ("mail live", "", Some("live"), false, "warn", "answered 401"),
            ("mail live", "", Some("live"), true, "warn", "may make every call"),
            ("live", "billing", Some("live"), false, "warn", "which the function does not have"),
            ("billing live", "Billing", Some("live"), false, "warn warn", "differs in case"),
            ("billing", "billing", Some("live"), false, "FAIL", "no alias live"),
            ("live", "live", Some("live"), false, "FAIL", "an entry names live"),
        ];
        for (aliases, listed, gateway, open, states, word) in cases {
            let names = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let entry = serde_json::json!({ "id": "caller", "aliases": names(listed) });
            let mut secret = serde_json::json!({ "callers": [entry] });
            if open {
                secret["unlisted"] = "allow".into();
            }
            let callers = CallersDocument::parse(&secret.to_string()).expect("well formed");
            let findings = compare(&names(aliases), &callers, gateway);
            let case = format!("{aliases:?} {listed:?} {gateway:?}: {findings:?}");
            let found: Vec<_> = findings.iter().map(|finding| finding.state.as_str()).collect();
            assert_eq!(found.join(" "), states, "{case}");
            assert!(findings[0].said.contains(word), "{case}");
        }
    }
}
