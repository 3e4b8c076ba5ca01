//! The command `export`.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write};

use shared::domain::clock::Millis;
use shared::domain::installation::Installation;
use shared::domain::redacted::Redacted;
use shared::domain::resource::Kind;
use shared::domain::status::Status;
use shared::install::portable::{NotPortable, Portable};

use super::form;
use crate::arguments::Export;
use crate::breaker::SETTLED;
use crate::error::CommandError;
use crate::print::{Out, note};
use crate::sealing::for_each_page;
use crate::stack::Stack;

/// At most this many resources are named in one sentence.
const SHOWN: usize = 20;

/// Writes all installations to standard output: JSON lines, encrypted by age. Nothing is written if they cannot all be
/// read, if refreshing is not paused, or if an exported pair may be useless.
pub(crate) async fn run(stack: &Stack, _out: Out, export: &Export) -> Result<(), CommandError> {
    let recipients = recipients(&export.recipient)?;
    if std::io::stdout().is_terminal() {
        return Err(CommandError::Environment("send the output to a file: ops export … > installations.age".into()));
    }
    if !export.yes {
        let effect = "this would write all refresh tokens, encrypted, to standard output";
        return Err(CommandError::without_yes(effect));
    }
    stack.expect_empty_queues("whose pairs are newer than the stored ones").await?;
    let paused_at = expect_pause(stack).await?;
    let client_id = stack.app.app_secret.get().await?.client_id.clone();
    let mut exported = Exported::default();
    for_each_page(stack, "exported", async |page| {
        for stored in &page {
            exported.add(stack, stored, &client_id).await?;
        }
        Ok(())
    })
    .await?;
    if expect_pause(stack).await? != paused_at {
        return Err(CommandError::Refused("refreshing was resumed meanwhile: nothing was written".into()));
    }
    exported.note_agencies();
    if exported.in_doubt > 0 && !export.incomplete {
        return Err(CommandError::Refused(
            "some exported pairs may be useless (see above): nothing was written. --incomplete exports all the same"
                .into(),
        ));
    }
    let encrypted = exported.encrypt(&recipients)?;
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(&encrypted).and_then(|()| stdout.flush());
    written.map_err(|error| CommandError::NotDone(format!("the export cannot be written: {error}")))?;
    let (count, left_out) = (exported.lines.len(), exported.left_out);
    note(&format!("{count} installations were exported; {left_out} without a token or a company were left out"));
    Ok(())
}

/// Returns the time of the pause. Refuses if a renewal may be under way: it makes an exported pair useless.
async fn expect_pause(stack: &Stack) -> Result<Millis, CommandError> {
    match stack.app.table.app_state().await?.paused_at {
        None => Err(CommandError::Refused(
            "refreshing is not paused, and each renewal makes an exported pair useless: run ops pause first".into(),
        )),
        Some(at) if stack.app.clock.now().since(at) < SETTLED => Err(CommandError::Refused(
            "refreshing was paused a moment ago, and a renewal may be under way: run ops pause again, which waits for its \
             end"
            .into(),
        )),
        Some(at) => Ok(at),
    }
}

fn recipients(texts: &[String]) -> Result<Vec<age::x25519::Recipient>, CommandError> {
    // The text may be the secret key, by mistake.
    let wrong = |_| CommandError::Environment("--recipient is not a recipient, which age-keygen prints (age1…)".into());
    texts.iter().map(|text| text.parse::<age::x25519::Recipient>().map_err(wrong)).collect()
}

/// The installations of an export.
#[derive(Default)]
struct Exported {
    lines: Vec<Redacted>,
    /// The number of installations that have no valid grant, or no company from which a token is minted.
    left_out: usize,
    /// The number of reasons for which an exported pair may be useless.
    in_doubt: usize,
    /// The exported companies.
    companies: BTreeSet<String>,
    /// The companies of the locations without a token of their own.
    needed: BTreeSet<String>,
}

impl Exported {
    async fn add(&mut self, stack: &Stack, stored: &Installation, client_id: &str) -> Result<(), CommandError> {
        let resource = &stored.resource;
        let installation = match Portable::of(&stack.app.vault, stored).await {
            Ok(Some(installation)) => installation,
            Ok(None) => return Ok(()),
            Err(NotPortable::NoGrant | NotPortable::NoCompany) => {
                self.left_out += 1;
                return Ok(());
            }
            Err(NotPortable::Vault(error)) => return Err(CommandError::NotDone(format!("{resource}: {error}"))),
        };
        let doubt = if stored.is_in_doubt() {
            Some("its pair may be spent, because a renewal is under way or its answer is missing")
        } else if stored.may_need_standby() {
            Some("its standby pair, which is not exported, may be the valid one")
        } else {
            None
        };
        if let Some(doubt) = doubt {
            self.in_doubt += 1;
            note(&format!(
                "{resource}: {doubt}. If no other system renews it, a renewal decides: ops resume --yes, ops refresh \
                 {resource}, and ops pause again"
            ));
        }
        if stored.status() == Status::Uncertain && stored.findings.is_answered {
            note(&format!("{resource}: the platform has refused its token, and it waits for another try"));
        }
        match (&installation.pair, resource.kind(), &installation.company) {
            (Some(_), Kind::Company, _) => {
                self.companies.insert(resource.id().to_owned());
            }
            (None, _, Some(company)) => {
                self.needed.insert(company.clone());
            }
            _ => {}
        }
        self.lines.push(form::write(&installation, client_id));
        Ok(())
    }

    /// Names the companies whose locations are of no use, because their own installation has no valid grant.
    fn note_agencies(&self) {
        let missing: Vec<_> = self.needed.difference(&self.companies).collect();
        for company in missing.iter().take(SHOWN) {
            note(&format!(
                "company:{company} has no valid grant and is left out: its locations without a token of their own cannot \
                 get one until the agency has installed the app again"
            ));
        }
        if missing.len() > SHOWN {
            note(&format!("and {} more companies", missing.len() - SHOWN));
        }
    }

    fn encrypt(&self, recipients: &[age::x25519::Recipient]) -> Result<Vec<u8>, CommandError> {
        let failed =
            |error: &dyn std::fmt::Display| CommandError::NotDone(format!("the export cannot be encrypted: {error}"));
        let mut encrypted = Vec::new();
        let recipients = recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(|error| failed(&error))?;
        let mut writer = encryptor.wrap_output(&mut encrypted).map_err(|error| failed(&error))?;
        let count = form::write_count(self.lines.len());
        for line in std::iter::once(count.as_str()).chain(self.lines.iter().map(Redacted::expose)) {
            writer.write_all(line.as_bytes()).map_err(|error| failed(&error))?;
        }
        writer.finish().map_err(|error| failed(&error))?;
        Ok(encrypted)
    }
}
