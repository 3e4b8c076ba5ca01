//! The command `uninstall`: the platform uninstalls the app, and the tokens are erased as after an uninstall webhook.

use serde_json::{Value, json};
use shared::domain::resource::{Kind, Resource};

use crate::error::CommandError;
use crate::installations::{find, invoke_refresh};
use crate::print::Out;
use crate::stack::Stack;

/// Invokes the function `refresh`, which tells the platform. So no token reaches the operator's machine.
pub(crate) async fn run(
    stack: &Stack,
    out: Out,
    resource: &Resource,
    reason: &str,
    yes: bool,
    while_paused: bool,
) -> Result<(), CommandError> {
    let one = find(stack, resource).await?;
    if !while_paused && stack.app.table.app_state().await?.paused_at.is_some() {
        return Err(CommandError::Refused(format!(
            "refreshing is paused. If another system renews the token of {resource}, an uninstall ends the installation for \
             that system, too: the platform knows only the app. If none does, give --while-paused"
        )));
    }
    if !yes {
        let whose = match resource.kind() {
            Kind::Location => format!("{resource} ({})", one.status),
            Kind::Company => format!("{resource} ({}) and all its locations", one.status),
        };
        let what = format!(
            "this would make the platform uninstall the app from {whose} and then erase the tokens, and only a new \
             install would restore access"
        );
        return Err(CommandError::without_yes(&what));
    }
    let event = json!({ "resource": resource, "uninstall": { "reason": reason } });
    let answer = invoke_refresh(stack, &event).await?;
    let text = sentence(resource, &answer)?;
    let mut value = json!({ "resource": resource });
    for (name, member) in answer.as_object().into_iter().flatten() {
        value[name] = member.clone();
    }
    out.value(&value, &text);
    Ok(())
}

/// The answer of the function in words.
fn sentence(resource: &Resource, answer: &Value) -> Result<String, CommandError> {
    let text = |name: &str| answer[name].as_str().unwrap_or_default();
    let said = text("said");
    let platform = match text("platform") {
        "uninstalled" => format!("the platform has uninstalled the app from {resource}"),
        "not_installed" => format!("the app was not installed in {resource} any more"),
        "refused" => {
            return Err(CommandError::NotDone(format!(
                "the platform has not uninstalled the app from {resource}: {said}. Nothing was changed here"
            )));
        }
        "unknown" => {
            return Err(CommandError::NotDone(format!(
                "it is not known if the platform has uninstalled the app from {resource}: {said}. Nothing was changed \
                 here; run the command again"
            )));
        }
        _ if text("here") == "unknown" => return Err(CommandError::NotFound(format!("{resource} is not known"))),
        _ => {
            return Err(CommandError::NotDone(format!(
                "the platform was not asked to uninstall the app from {resource}: {said}. Nothing was changed here; ops \
                 revoke erases the tokens without the platform"
            )));
        }
    };
    match text("here") {
        "revoked" => {}
        "newer" => {
            return Err(CommandError::Refused(format!(
                "{platform}, but it was installed again at the same moment; the new installation stays"
            )));
        }
        _ => {
            return Err(CommandError::NotDone(format!(
                "{platform}, but that is not stored here ({said}); the platform's webhook or ops revoke stores it"
            )));
        }
    }
    let count = |name: &str| answer["locations"][name].as_u64().unwrap_or(0);
    let (revoked, installed) = (count("revoked"), count("installed"));
    let (unclear, left) = (count("unclear"), count("left"));
    if left > 0 {
        return Err(CommandError::NotDone(format!(
            "{platform}; {left} of its locations were not looked at for lack of time: run the command again"
        )));
    }
    let more = [
        (revoked, "the tokens of {} locations with a grant of their own are erased, too"),
        (installed, "the platform still has {} of its locations, which stay"),
        (unclear, "the platform did not say if {} of its locations are uninstalled, and they stay"),
    ];
    let more = more.into_iter().filter(|(count, _)| *count > 0);
    let more = more.map(|(count, words)| format!("; {}", words.replace("{}", &count.to_string())));
    Ok(format!("{platform}; its tokens are erased{}", more.collect::<String>()))
}
