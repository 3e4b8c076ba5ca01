//! Checks the secrets: they exist, can be read and have the documented form. Also checks the callers' aliases and the
//! install link.

use shared::caller::edit::CallersDocument;
use shared::config::Authorization;
use shared::seal::DataKeys;
use shared::secrets::AppCredentials;
use shared::secrets::edit::EditedSecret;
use shared::secrets::webhook::WebhookSecrets;

use super::Finding;
use super::aliases;
use crate::stack::Stack;

const UNREADABLE: &str = "check the secret's name, its region, and your permission secretsmanager:GetSecretValue";

pub(super) async fn check(stack: &Stack) -> Vec<Finding> {
    let mut findings = app(&stack.secret(&stack.app.config.app_secret_id), &stack.authorization).await;
    findings.push(sealing(&stack.sealing()).await);
    if let Some(id) = &stack.webhook_secret_id {
        findings.push(webhook(&stack.secret(id)).await);
    }
    findings.extend(callers(stack).await);
    findings
}

async fn app(secret: &EditedSecret, authorization: &Authorization) -> Vec<Finding> {
    let what = "app secret";
    match secret.read().await {
        Err(error) => vec![Finding::fail(what, error.to_string(), UNREADABLE)],
        Ok(version) => match AppCredentials::parse(version.text.expose()) {
            Ok(app) => vec![
                Finding::ok(what, format!("client id {}", app.client_id)),
                authorization_page(authorization, &app.client_id),
            ],
            Err(why) => vec![Finding::fail(what, why, "run the command in the stack's output PutClientSecret")],
        },
    }
}

/// The page of the install link, and the `version_id` without which an app that has versions cannot be installed.
fn authorization_page(authorization: &Authorization, client_id: &str) -> Finding {
    let (what, path) = ("authorization page", &authorization.path);
    match authorization.version_of(client_id) {
        Some(id) if authorization.version_id.is_some() => Finding::ok(what, format!("{path} with version_id {id}")),
        Some(id) => {
            Finding::ok(what, format!("{path} with version_id {id}, which is right for an app's first version"))
        }
        None if authorization.is_newer_page() => {
            let advice = "set AppVersionId (APP_VERSION_ID) to the version's id on the app's page in the marketplace";
            Finding::warn(
                what,
                format!("{path} without version_id: it is not set, and the client id has no dash"),
                advice,
            )
        }
        None => Finding::ok(what, format!("{path} without version_id; newer apps need {path} with /v2 before it")),
    }
}

async fn sealing(secret: &EditedSecret) -> Finding {
    let what = "sealing secret";
    let version = match secret.read().await {
        Ok(version) => version,
        Err(error) => return Finding::fail(what, error.to_string(), UNREADABLE),
    };
    let Ok(keys) = DataKeys::parse(version.text.expose()) else {
        let advice = "restore the previous version of the secret: without its keys no stored token opens";
        return Finding::fail(what, "the secret does not have the documented form", advice);
    };
    let olds = keys.ids().filter(|id| *id != keys.current()).collect::<Vec<_>>().join(", ");
    let current = keys.current();
    if olds.is_empty() {
        Finding::ok(what, format!("one key, {current}"))
    } else {
        let advice = "finish the rotation: ops sealing reseal, then ops sealing retire";
        Finding::warn(what, format!("{current} is current; {olds} not retired yet"), advice)
    }
}

async fn webhook(secret: &EditedSecret) -> Finding {
    let what = "webhook secret";
    match secret.read().await {
        Err(error) => Finding::fail(what, error.to_string(), UNREADABLE),
        Ok(version) => match WebhookSecrets::parse(version.text.expose()) {
            Ok(secrets) if secrets.count() == 1 => Finding::ok(what, "one secret"),
            Ok(secrets) => {
                let advice = "remove the older ones once the platform signs with the newest only";
                Finding::warn(what, format!("{} secrets are accepted", secrets.count()), advice)
            }
            Err(why) => {
                let advice = "run the command in the stack's output PutWebhookSecret; until then signed webhooks wait";
                Finding::fail(what, why, advice)
            }
        },
    }
}

async fn callers(stack: &Stack) -> Vec<Finding> {
    let what = "callers";
    let version = match stack.callers().read().await {
        Ok(version) => version,
        Err(error) => return vec![Finding::fail(what, error.to_string(), UNREADABLE)],
    };
    let document = match CallersDocument::parse(version.text.expose()) {
        Ok(document) => document,
        Err(error) => {
            let advice = "correct the secret, or restore its previous version; until then every call is answered 503";
            return vec![Finding::fail(what, error.to_string(), advice)];
        }
    };
    let mut findings = vec![match document.entries().len() {
        0 => Finding::warn(what, "the list is empty", "ops callers add NAME"),
        count => Finding::ok(what, format!("{count} known")),
    }];
    if document.allows_unlisted() {
        let said = "aliases, principals and unqualified invocations without an entry may make every call";
        let advice = "add an entry for each, then remove \"unlisted\": \"allow\" from the secret";
        findings.push(Finding::warn(what, said, advice));
    }
    findings.extend(aliases::check(stack, &document).await);
    findings
}

#[cfg(test)]
mod tests {
    use shared::config::{InstallChoice, MarketplaceInstalls};
    use url::Url;

    use super::*;
    use crate::doctor::State;

    #[test]
    fn a_link_without_a_version_is_noticed_where_it_needs_one() {
        for (path, version_id, client_id, state, said) in [
            ("/oauth/chooselocation", None, "a-b", State::Ok, "without version_id"),
            ("/oauth/chooselocation", Some("v1"), "a-b", State::Ok, "version_id v1"),
            ("/v2/oauth/chooselocation", None, "a-b", State::Ok, "version_id a, which is right"),
            ("/v2/oauth/chooselocation", Some("v1"), "ab", State::Ok, "version_id v1"),
            ("/v2/oauth/chooselocation", None, "ab", State::Warn, "without version_id"),
        ] {
            let authorization = Authorization {
                marketplace: Url::parse("https://marketplace.gohighlevel.com").expect("a URL"),
                path: path.to_owned(),
                scopes: None,
                version_id: version_id.map(str::to_owned),
                login_window: None,
                public_url: None,
                marketplace_installs: MarketplaceInstalls::Allow,
                install_choice: InstallChoice::Direct,
            };
            let finding = authorization_page(&authorization, client_id);
            assert_eq!(finding.state, state, "{path} {client_id}");
            assert!(finding.said.contains(said), "{}", finding.said);
        }
    }
}
