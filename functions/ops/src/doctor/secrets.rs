//! The three secrets: there, readable, in their form.

use shared::caller::edit::CallersDocument;
use shared::seal::DataKeys;
use shared::secrets::AppCredentials;
use shared::secrets::edit::EditedSecret;

use super::Finding;
use crate::stack::Stack;

const UNREADABLE: &str = "look at the secret's name, its region, and your permission secretsmanager:GetSecretValue";

pub(super) async fn look(stack: &Stack) -> Vec<Finding> {
    vec![
        app(&stack.secret(&stack.app.config.app_secret_id)).await,
        sealing(&stack.sealing()).await,
        callers(&stack.callers()).await,
    ]
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
        let advice = "put the secret's previous version back: without its keys no stored token opens";
        return Finding::fail(what, "it is not in its documented form", advice);
    };
    let olds = keys.ids().filter(|id| *id != keys.current()).collect::<Vec<_>>().join(", ");
    let current = keys.current();
    if olds.is_empty() {
        Finding::ok(what, format!("one key, {current}"))
    } else {
        let advice = "finish the rotation: ops sealing reseal, ops sealing retire";
        Finding::warn(what, format!("{current} is current; {olds} not retired yet"), advice)
    }
}

async fn callers(secret: &EditedSecret) -> Finding {
    let what = "callers";
    let version = match secret.read().await {
        Ok(version) => version,
        Err(error) => return Finding::fail(what, error.to_string(), UNREADABLE),
    };
    match CallersDocument::parse(version.text.expose()).map(|document| document.entries().len()) {
        Err(error) => Finding::fail(what, error.to_string(), "correct it, or put the secret's previous version back"),
        Ok(0) => Finding::warn(what, "nobody has a key yet; IAM callers may do all", "ops callers add NAME"),
        Ok(count) => Finding::ok(what, format!("{count} known")),
    }
}
