//! The commands `callers`: manage the entries of the callers' secret.

use std::time::Duration;

use serde_json::{Value, json};
use shared::caller::KEY_NAME_DIGITS;
use shared::caller::edit::{CallerEntry, CallersDocument, EditError, NewKey};
use shared::secrets::edit::{EditedSecret, Replaced};

use crate::arguments::{CallersCommand, Clear, NewCaller, Permissions};
use crate::error::CommandError;
use crate::logs;
use crate::print::{Out, note};
use crate::stack::Stack;

/// Printed after a change. The functions read the secret again after 45 s.
const WHEN_EFFECTIVE: &str = "The change takes effect within a minute.";

/// Printed below a list that does not contain all possible callers.
const UNLISTED: &str = "the secret contains \"unlisted\": \"allow\": aliases, principals and unqualified invocations \
                        without an entry may make every call";

/// Runs one of the commands.
pub(crate) async fn run(stack: &Stack, out: Out, command: CallersCommand) -> Result<(), CommandError> {
    let secret = stack.callers();
    match command {
        CallersCommand::List { last_call } => list(stack, &secret, out, last_call).await,
        CallersCommand::Add(new) => {
            expect_free_aliases(stack, &new.permissions)?;
            add(&secret, out, new).await
        }
        CallersCommand::Set { permissions, clear } => {
            expect_free_aliases(stack, &permissions)?;
            let id = permissions.id.clone();
            let named = entry(permissions, Vec::new());
            let mut changed = None;
            change(&secret, |document| {
                let old = document.entries().iter().find(|caller| caller.id == id);
                let caller = changed_entry(old.ok_or_else(|| EditError::NoSuchCaller(id.clone()))?, named, &clear);
                changed = Some(caller.clone());
                document.set(caller)
            })
            .await?;
            if let Some(caller) = &changed {
                out.list("callers", &[value(caller)], &HEADINGS, vec![row(caller)]);
            }
            note(&format!("{id} has these permissions now. {WHEN_EFFECTIVE}"));
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
                &match ended {
                    1 => format!("1 older key of {id} is revoked. {WHEN_EFFECTIVE}"),
                    ended => format!("{ended} older keys of {id} are revoked. {WHEN_EFFECTIVE}"),
                },
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

async fn list(
    stack: &Stack,
    secret: &EditedSecret,
    out: Out,
    last_call_within: Option<u32>,
) -> Result<(), CommandError> {
    let document = CallersDocument::parse(secret.read().await?.text.expose())?;
    let mut values: Vec<_> = document.entries().iter().map(value).collect();
    let mut rows: Vec<_> = document.entries().iter().map(row).collect();
    let mut headings = HEADINGS.to_vec();
    if let Some(days) = last_call_within {
        let calls = logs::last_calls(stack, Duration::from_hours(24) * days).await?;
        headings.push("last call (of each key)");
        for ((caller, value), row) in document.entries().iter().zip(&mut values).zip(&mut rows) {
            let of_caller = calls.iter().filter(|call| call.caller == caller.id);
            let last = of_caller.clone().map(|call| &call.at).max();
            let of_key =
                |key: &String| of_caller.clone().find(|call| call.key.as_ref() == Some(key)).map(|call| &call.at);
            let by_key: Vec<_> = keys(caller).into_iter().map(|key| (of_key(&key), key)).collect();
            let shown = by_key.iter().map(|(at, key)| format!("{key} {}", at.map_or("never", String::as_str)));
            let shown: Vec<_> = last.filter(|_| by_key.is_empty()).cloned().into_iter().chain(shown).collect();
            row.push(if shown.is_empty() { "-".to_owned() } else { shown.join(", ") });
            value["last_call"] = json!(last);
            value["last_call_by_key"] = by_key.into_iter().map(|(at, key)| (key, json!(at))).collect();
        }
    }
    out.list("callers", &values, &headings, rows);
    if document.allows_unlisted() {
        note(UNLISTED);
    }
    Ok(())
}

/// The beginnings of a caller's keys' SHA-256.
fn keys(caller: &CallerEntry) -> Vec<String> {
    caller.keys_sha256.iter().map(|key| key.chars().take(KEY_NAME_DIGITS).collect::<String>().to_lowercase()).collect()
}

fn value(caller: &CallerEntry) -> Value {
    json!({
        "id": caller.id,
        "keys": keys(caller),
        "aliases": caller.aliases,
        "principals": caller.principals,
        "resources": caller.resources,
        "methods": caller.methods,
        "paths": caller.paths,
        "tools": caller.tools,
        "requests_per_10s": caller.requests_per_10s,
        "queue": caller.queue,
    })
}

const HEADINGS: [&str; 9] =
    ["id", "keys (SHA-256)", "aliases, principals", "resources", "methods", "paths", "tools", "share", "queue"];

fn row(caller: &CallerEntry) -> Vec<String> {
    let all = |texts: &Option<Vec<String>>| texts.as_ref().map_or_else(|| "all".to_owned(), |texts| texts.join(" "));
    let known_by = caller.aliases.iter().chain(&caller.principals).cloned().collect::<Vec<_>>();
    vec![
        caller.id.clone(),
        keys(caller).join(" "),
        known_by.join(" "),
        all(&caller.resources),
        all(&caller.methods),
        all(&caller.paths),
        all(&caller.tools),
        caller.requests_per_10s.map_or_else(|| "-".to_owned(), |share| share.to_string()),
        if caller.queue { "yes" } else { "-" }.to_owned(),
    ]
}

/// The entry of a caller after `set`: the values that are `named` take the place of the old ones, those to `clear` are
/// removed first, and all others stay.
fn changed_entry(old: &CallerEntry, named: CallerEntry, clear: &[Clear]) -> CallerEntry {
    let kept = |what| !clear.contains(&what);
    let texts = |named: Option<Vec<String>>, old: &Option<Vec<String>>, what| {
        named.or_else(|| old.clone().filter(|_| kept(what)))
    };
    let names = |named: Vec<String>, old: &[String], what| {
        if named.is_empty() && kept(what) { old.to_vec() } else { named }
    };
    CallerEntry {
        id: named.id,
        keys_sha256: old.keys_sha256.clone(),
        aliases: names(named.aliases, &old.aliases, Clear::Aliases),
        principals: names(named.principals, &old.principals, Clear::Principals),
        resources: texts(named.resources, &old.resources, Clear::Resources),
        methods: texts(named.methods, &old.methods, Clear::Methods),
        paths: texts(named.paths, &old.paths, Clear::Paths),
        tools: texts(named.tools, &old.tools, Clear::Tools),
        requests_per_10s: named
            .requests_per_10s
            .or_else(|| old.requests_per_10s.filter(|_| kept(Clear::RequestsPer10s))),
        queue: named.queue || old.queue && kept(Clear::Queue),
    }
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
    out.value(&json!({ "id": id, "key": key.key.expose(), "sha256": key.sha256 }), key.key.expose());
    note(&format!(
        "This is the key of {id}. It is shown only once, because only its SHA-256 is stored. {WHEN_EFFECTIVE}"
    ));
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
