//! Commands about who may call the relay.

use serde_json::json;
use shared::caller::edit::{CallerEntry, CallersDocument, EditError, NewKey};
use shared::secrets::edit::{EditedSecret, Replaced};

use crate::arguments::{Callers, NewCaller};
use crate::ending::Failure;
use crate::print::{Out, note};
use crate::stack::Stack;

/// How much of a key's SHA-256 is shown: enough to tell keys apart.
const SHOWN: usize = 12;

/// What is said of a change: functions read the secret again after 45 s.
const SOON: &str = "The relay knows within a minute.";

/// What is said of a list that is not the whole truth.
const UNLISTED: &str = "the secret says \"unlisted\": \"allow\": aliases, principals and unqualified invocations that no \
                        entry names may do everything";

/// Runs one of the commands.
pub(crate) async fn run(stack: &Stack, out: Out, command: Callers) -> Result<(), Failure> {
    let secret = stack.callers();
    match command {
        Callers::List => list(&secret, out).await,
        Callers::Add(new) => {
            if let Some(alias) =
                stack.app.config.gateway_alias.name().filter(|name| new.aliases.iter().any(|a| a == name))
            {
                let why = "is the alias of API Gateway, which takes no direct invocations";
                return Err(Failure::Environment(format!("alias {alias:?} {why}: give the caller another one")));
            }
            add(&secret, out, new).await
        }
        Callers::Rotate { id, end_others } => rotate(&secret, out, &id, end_others).await,
        Callers::Retire { id } => {
            let mut ended = 0;
            change(&secret, |document| {
                ended = document.keep_last_key(&id)?;
                Ok(())
            })
            .await?;
            out.value(&json!({ "id": id, "ended": ended }), &format!("{ended} older keys of {id} are ended. {SOON}"));
            Ok(())
        }
        Callers::Remove { id, key: Some(key), yes } => {
            confirmed(yes, &format!("this would end a key of {id}"))?;
            change(&secret, |document| document.remove_key(&id, &key)).await?;
            out.value(&json!({ "id": id, "removed": key }), &format!("the key {key}… of {id} is ended. {SOON}"));
            Ok(())
        }
        Callers::Remove { id, key: None, yes } => {
            confirmed(yes, &format!("this would take the caller {id} away, with all its keys"))?;
            change(&secret, |document| document.remove(&id)).await?;
            out.value(&json!({ "removed": id }), &format!("{id} may no longer call. {SOON}"));
            Ok(())
        }
    }
}

fn confirmed(yes: bool, what: &str) -> Result<(), Failure> {
    if yes { Ok(()) } else { Err(Failure::without_yes(what)) }
}

async fn list(secret: &EditedSecret, out: Out) -> Result<(), Failure> {
    let document = CallersDocument::parse(secret.read().await?.text.expose())?;
    let short = |key: &String| key.chars().take(SHOWN).collect::<String>();
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

async fn add(secret: &EditedSecret, out: Out, new: NewCaller) -> Result<(), Failure> {
    let key = (!new.no_key).then(NewKey::generate);
    let some = |texts: Vec<String>| (!texts.is_empty()).then_some(texts);
    let caller = CallerEntry {
        id: new.id.clone(),
        keys_sha256: key.iter().map(|key| key.sha256.clone()).collect(),
        aliases: new.aliases,
        principals: new.principals,
        resources: some(new.resources),
        methods: some(new.methods),
        paths: some(new.paths),
        tools: some(new.tools),
        requests_per_10s: new.requests_per_10s,
    };
    change(secret, |document| document.add(caller.clone())).await?;
    tell(out, &new.id, key.as_ref());
    Ok(())
}

async fn rotate(secret: &EditedSecret, out: Out, id: &str, end_others: bool) -> Result<(), Failure> {
    let key = NewKey::generate();
    change(secret, |document| {
        document.add_key(id, &key.sha256)?;
        if end_others {
            document.keep_last_key(id)?;
        }
        Ok(())
    })
    .await?;
    tell(out, id, Some(&key));
    Ok(())
}

/// The only place where a key is printed.
fn tell(out: Out, id: &str, key: Option<&NewKey>) {
    let Some(key) = key else {
        return out.value(&json!({ "id": id }), &format!("{id} may call. {SOON}"));
    };
    let value = json!({ "id": id, "key": key.key.expose(), "sha256": key.sha256 });
    let text = format!("{}\nThe key of {id}, shown this once: only its SHA-256 is stored. {SOON}", key.key.expose());
    out.value(&value, &text);
}

/// Reads, changes and writes, if nobody else has written in between.
async fn change(
    secret: &EditedSecret,
    edit: impl FnOnce(&mut CallersDocument) -> Result<(), EditError>,
) -> Result<(), Failure> {
    let seen = secret.read().await?;
    let mut document = CallersDocument::parse(seen.text.expose())?;
    edit(&mut document)?;
    match secret.replace(&seen, &document.to_json()?).await? {
        Replaced::Applied => Ok(()),
        Replaced::Conflict => Err(Failure::overtaken()),
    }
}
