//! Checks the secrets: they exist, can be read and have the documented form. Also checks the callers' aliases.

use shared::caller::edit::CallersDocument;
use shared::seal::DataKeys;
use shared::secrets::AppCredentials;
use shared::secrets::edit::EditedSecret;
use shared::secrets::webhook::WebhookSecrets;

use super::Finding;
use super::aliases;
use crate::stack::Stack;

const UNREADABLE: &str = "check the secret's name, its region, and your permission secretsmanager:GetSecretValue";

pub(super) async fn check(stack: &Stack) -> Vec<Finding> {
    let mut secrets = vec![app(&stack.secret(&stack.app.config.app_secret_id)).await, sealing(&stack.sealing()).await];
    if let Some(id) = &stack.webhook_secret_id {
        secrets.push(webhook(&stack.secret(id)).await);
    }
    secrets.into_iter().chain(callers(stack).await).collect()
}

async fn app(secret: &EditedSecret) -> Finding {
    let what = "app secret";
    match secret.read().await {
        Err(error) => Finding::fail(what, error.to_string(), UNREADABLE),
        Ok(version) => match AppCredentials::parse(version.text.expose()) {
            Ok(app) => Finding::ok(what, format!("client id {}", app.client_id)),
            Err(why) => Finding::fail(what, why, "run the command in the stack's output PutClientSecret"),
        },
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
