//! The command `export`.

use std::io::{IsTerminal as _, Write};

use shared::domain::installation::Installation;
use shared::domain::status::Status;
use shared::install::portable::{NotPortable, Portable};

use super::form;
use crate::arguments::Export;
use crate::error::CommandError;
use crate::print::{Out, note};
use crate::sealing::for_each_page;
use crate::stack::Stack;

/// Writes all installations to standard output: JSON lines, encrypted by age. Nothing is written if they cannot all be
/// read.
pub(crate) async fn run(stack: &Stack, _out: Out, export: &Export) -> Result<(), CommandError> {
    let recipients = recipients(&export.recipient)?;
    if std::io::stdout().is_terminal() {
        return Err(CommandError::Environment("send the output to a file: ops export … > installations.age".into()));
    }
    if !export.yes {
        let effect = "this would write all refresh tokens, encrypted, to standard output";
        return Err(CommandError::without_yes(effect));
    }
    warn_of_renewals(stack).await?;
    let mut encrypted = Vec::new();
    let failed =
        |error: &dyn std::fmt::Display| CommandError::NotDone(format!("the export cannot be encrypted: {error}"));
    let recipients = recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
    let encryptor = age::Encryptor::with_recipients(recipients).map_err(|error| failed(&error))?;
    let mut writer = encryptor.wrap_output(&mut encrypted).map_err(|error| failed(&error))?;
    let mut counts = Counts::default();
    for_each_page(stack, "exported", async |page| {
        for stored in &page {
            if let Some(installation) = portable(stack, stored, &mut counts).await? {
                writer.write_all(form::write(&installation).expose().as_bytes()).map_err(|error| failed(&error))?;
                counts.exported += 1;
            }
        }
        Ok(())
    })
    .await?;
    writer.finish().map_err(|error| failed(&error))?;
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(&encrypted).and_then(|()| stdout.flush());
    written.map_err(|error| CommandError::NotDone(format!("the export cannot be written: {error}")))?;
    let Counts { exported, left_out } = counts;
    note(&format!("{exported} installations were exported; {left_out} that have no valid grant were left out"));
    Ok(())
}

#[derive(Default)]
struct Counts {
    exported: usize,
    left_out: usize,
}

fn recipients(texts: &[String]) -> Result<Vec<age::x25519::Recipient>, CommandError> {
    let read = |text: &String| {
        let wrong =
            |why| CommandError::Environment(format!("--recipient {text}: {why}; age-keygen prints one (age1…)"));
        text.parse().map_err(wrong)
    };
    texts.iter().map(read).collect()
}

/// Says which renewals could make the export useless.
async fn warn_of_renewals(stack: &Stack) -> Result<(), CommandError> {
    if stack.app.table.app_state().await?.paused_at.is_none() {
        note("renewals go on, and each makes an exported pair useless: run ops pause first if the installations move");
    }
    for (what, url) in &stack.queues {
        let depth = stack.depth(url).await?;
        if depth > 0 {
            return Err(CommandError::Refused(format!(
                "the {what} holds {depth} messages, whose pairs are newer than the stored ones: empty the queue first"
            )));
        }
    }
    Ok(())
}

/// The installation in the form that is exported. `None` if it is left out.
async fn portable(stack: &Stack, stored: &Installation, counts: &mut Counts) -> Result<Option<Portable>, CommandError> {
    let resource = &stored.resource;
    let is_in_doubt = matches!(stored.status(), Status::Refreshing | Status::Uncertain) && stored.minted().is_none();
    if is_in_doubt {
        note(&format!("{resource}: its pair may be spent, because a renewal is under way or its answer is lost"));
    }
    if !stored.standby().is_empty() {
        note(&format!(
            "{resource}: it has further pairs that are not exported; ops refresh {resource} finds the valid one"
        ));
    }
    match Portable::of(&stack.app.vault, stored).await {
        Ok(installation) => Ok(installation),
        Err(NotPortable::NoGrant) => {
            counts.left_out += 1;
            Ok(None)
        }
        Err(NotPortable::Vault(error)) => Err(CommandError::NotDone(format!("{resource}: {error}"))),
    }
}
