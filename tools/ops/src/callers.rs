//! The commands `callers`: manage the entries of the callers' secret.

use serde_json::json;
use shared::caller::edit::{CallerEntry, CallersDocument, EditError, NewKey};
use shared::secrets::edit::{EditedSecret, Replaced};

use crate::arguments::{CallersCommand, NewCaller, Permissions};
use crate::error::CommandError;
use crate::print::{Out, note};
use crate::stack::Stack;

/// The number of shown hex digits of a key's SHA-256: enough to tell keys apart.
const SHOWN_DIGITS: usize = 12;

/// Printed after a change. The functions read the secret again after 45 s.
const WHEN_EFFECTIVE: &str = "The change takes effect within a minute.";

/// Printed below a list that does not contain all possible callers.
const UNLISTED: &str = "the secret contains \"unlisted\": \"allow\": aliases, principals and unqualified invocations \
                        without an entry may make every call";

/// Runs one of the commands.
pub(crate) async fn run(stack: &Stack, out: Out, command: CallersCommand) -> Result<(), CommandError> {
    let secret = stack.callers();
    match command {
        CallersCommand::List => list(&secret, out).await,
        CallersCommand::Add(new) => {
            expect_free_aliases(stack, &new.permissions)?;
            add(&secret, out, new).await
        }
        CallersCommand::Set(permissions) => {
            expect_free_aliases(stack, &permissions)?;
            let id = permissions.id.clone();
            let caller = entry(permissions, Vec::new());
            change(&secret, |document| document.set(caller)).await?;
            out.value(&json!({ "id": id }), &format!("{id} has the new permissions. {WHEN_EFFECTIVE}"));
            Ok(())
        }
        CallersCommand::Rotate { id, end_others } => rotate(&secret, out, &id, end_others).await,
        CallersCommand::Retire { id } => {
            let mut ended = 0;
            change(&secret, |document| {
                ended = document.keep_last_key(&id)?;
                Ok(())
            })
            .await?;
            out.value(
                &json!({ "id": id, "ended": ended }),
                &format!("{ended} older keys of {id} are revoked. {WHEN_EFFECTIVE}"),
            );
            Ok(())
        }
        CallersCommand::Remove { id, key: Some(key), yes } => {
            confirmed(yes, &format!("this would revoke a key of {id}"))?;
            change(&secret, |document| document.remove_key(&id, &key)).await?;
            out.value(
                &json!({ "id": id, "removed": key }),
                &format!("the key {key}… of {id} is revoked. {WHEN_EFFECTIVE}"),
            );
            Ok(())
        }
        CallersCommand::Remove { id, key: None, yes } => {
            confirmed(yes, &format!("this would remove the caller {id} with all its keys"))?;
            change(&secret, |document| document.remove(&id)).await?;
            out.value(&json!({ "removed": id }), &format!("{id} is removed and may no longer call. {WHEN_EFFECTIVE}"));
            Ok(())
        }
    }
}

fn confirmed(yes: bool, effect: &str) -> Result<(), CommandError> {
    if yes { Ok(()) } else { Err(CommandError::without_yes(effect)) }
}

async fn list(secret: &EditedSecret, out: Out) -> Result<(), CommandError> {
    let document = CallersDocument::parse(secret.read().await?.text.expose())?;
    let short = |key: &String| key.chars().take(SHOWN_DIGITS).collect::<String>();
    let values: Vec<_> = document
        .entries()
        .iter()
        .map(|caller| {
            json!({
                "id": caller.id,
                "keys": caller.keys_sha256.iter().map(short).collect::<Vec<_>>(),
                "aliases": caller.aliases,
                "principals": caller.principals,
                "resources": caller.resources,
                "methods": caller.methods,
                "paths": caller.paths,
                "tools": caller.tools,
                "requests_per_10s": caller.requests_per_10s,
                "queue": caller.queue,
            })
        })
        .collect();
    let all = |texts: &Option<Vec<String>>| texts.as_ref().map_or_else(|| "all".to_owned(), |texts| texts.join(" "));
    let row = |caller: &CallerEntry| {
        let keys: Vec<_> = caller.keys_sha256.iter().map(short).collect();
        let known_by = caller.aliases.iter().chain(&caller.principals).cloned().collect::<Vec<_>>();
        vec![
            caller.id.clone(),
            keys.join(" "),
            known_by.join(" "),
            all(&caller.resources),
            all(&caller.methods),
            all(&caller.paths),
            all(&caller.tools),
            caller.requests_per_10s.map_or_else(|| "-".to_owned(), |share| share.to_string()),
        ]
    };
    let rows = document.entries().iter().map(row).collect();
    let headings = ["id", "keys (SHA-256)", "aliases, principals", "resources", "methods", "paths", "tools", "share"];
    out.list("callers", &values, &headings, rows);
    if document.allows_unlisted() {
        note(UNLISTED);
    }
    Ok(())
}

async fn add(secret: &EditedSecret, out: Out, new: NewCaller) -> Result<(), CommandError> {
    let key = (!new.no_key).then(NewKey::generate);
    let id = new.permissions.id.clone();
    let caller = entry(new.permissions, key.iter().map(|key| key.sha256.clone()).collect());
    change(secret, |document| document.add(caller)).await?;
    print_key(out, &id, key.as_ref());
    Ok(())
}

fn entry(permissions: Permissions, keys_sha256: Vec<String>) -> CallerEntry {
    let some = |texts: Vec<String>| (!texts.is_empty()).then_some(texts);
    CallerEntry {
        id: permissions.id,
        keys_sha256,
        aliases: permissions.aliases,
        principals: permissions.principals,
        resources: some(permissions.resources),
        methods: some(permissions.methods),
        paths: some(permissions.paths),
        tools: some(permissions.tools),
        requests_per_10s: permissions.requests_per_10s,
        queue: permissions.queue,
    }
}

/// Refuses the alias that belongs to API Gateway.
fn expect_free_aliases(stack: &Stack, permissions: &Permissions) -> Result<(), CommandError> {
    let gateway = stack.app.config.gateway_alias.name();
    match gateway.filter(|name| permissions.aliases.iter().any(|alias| alias == name)) {
        None => Ok(()),
        Some(alias) => {
            let why = "belongs to API Gateway and takes no direct invocations";
            Err(CommandError::Environment(format!("alias {alias:?} {why}: give the caller another one")))
        }
    }
}

async fn rotate(secret: &EditedSecret, out: Out, id: &str, end_others: bool) -> Result<(), CommandError> {
    let key = NewKey::generate();
    change(secret, |document| {
        document.add_key(id, &key.sha256)?;
        if end_others {
            document.keep_last_key(id)?;
        }
        Ok(())
    })
    .await?;
    print_key(out, id, Some(&key));
    Ok(())
}

/// Prints a caller's new key. No other code prints a key.
fn print_key(out: Out, id: &str, key: Option<&NewKey>) {
    let Some(key) = key else {
        return out.value(&json!({ "id": id }), &format!("{id} may call. {WHEN_EFFECTIVE}"));
    };
    let value = json!({ "id": id, "key": key.key.expose(), "sha256": key.sha256 });
    let text = format!(
        "{}\nThis is the key of {id}. It is shown only once, because only its SHA-256 is stored. {WHEN_EFFECTIVE}",
        key.key.expose()
    );
    out.value(&value, &text);
}

/// Reads, edits and writes the secret. Refuses if another edit came in between (compare-and-swap).
async fn change(
    secret: &EditedSecret,
    edit: impl FnOnce(&mut CallersDocument) -> Result<(), EditError>,
) -> Result<(), CommandError> {
    let seen = secret.read().await?;
    let mut document = CallersDocument::parse(seen.text.expose())?;
    edit(&mut document)?;
    match secret.replace(&seen, &document.to_json()?).await? {
        Replaced::Applied => Ok(()),
        Replaced::Conflict => Err(CommandError::overtaken()),
    }
}
