//! The end of a story: every live grant is usable, and no secret is stored or logged in the clear.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use sandbox::marketplace::grants::RefreshTokenState;
use serde_json::json;
use shared::domain::access::Access;
use shared::domain::resource::{Kind, Resource};
use shared::table::Item;

use super::table::holds;
use super::{Process, World, grantee, lines};
use crate::redaction::Search;

impl World {
    /// Ends a story, and checks the promises that hold after every story.
    ///
    /// The function ends all faults and reactivates paused locations. Then the product must make every installation
    /// that has a live grant at the platform usable, with the means that it has anyway: the rescue queue, the schedule
    /// and a caller's request. No secret may be in the table or on the queue in the clear.
    ///
    /// # Panics
    /// If an installation with a live grant does not become usable, or if a secret is in the clear or in the log.
    pub async fn end(self) {
        self.end_without(&[]).await;
    }

    /// Like [`World::end`], for a story that has shown that the grants of `lost` cannot be kept.
    ///
    /// # Panics
    /// As [`World::end`], or if an installation of `lost` is usable after all.
    pub async fn end_without(self, lost: &[&Resource]) {
        self.market.clear_faults();
        self.end_pace().await;
        let process = self.process().await;
        let failed = self.refresh(&process, self.rescued()).await;
        assert_eq!(failed, json!({ "batchItemFailures": [] }), "every rescued pair finds its place");
        for item in self.items().await {
            // A minted location has no grant of its own; the loop checks its company's grant instead.
            let Some(resource) = installation_of(&item).filter(|_| !item.contains_key("minted")) else { continue };
            self.market.set_active(grantee(&resource), true);
            let live = !self.market.live_refresh_tokens(&grantee(&resource)).is_empty();
            let usable = self.becomes_usable(&process, &resource).await;
            let expected = live && !lost.contains(&&resource);
            assert_eq!(usable, expected, "{resource}: {:?}", self.stored(&resource).await);
        }
        self.assert_nothing_in_clear().await;
        self.assert_nothing_logged();
    }

    /// Removes a pace that the platform's 429s have taught, as if it had lapsed.
    async fn end_pace(&self) {
        if self.table.app_state().await.expect("a table").pace.revision == 0 {
            return;
        }
        let remove = self.table.client.update_item().table_name(&*self.table.name);
        let remove = remove.key("pk", AttributeValue::S("app#breaker".to_owned()));
        let remove = remove.update_expression("REMOVE pace, pace_revision, pace_writer");
        remove.send().await.expect("the table can be written");
    }

    /// The number of times that this alarm was raised since the story began, for resources whose id begins with
    /// `prefix`. The stories of a process share its log, so no other story may use the prefix.
    pub fn alarms(&self, alarm: &str, prefix: &str) -> usize {
        let (alarm, resource) = (format!("\"alarm\":\"{alarm}\""), format!(":{prefix}"));
        let lines = &lines()[self.lines_before..];
        lines.iter().filter(|line| line.contains(&alarm) && line.contains(&resource)).count()
    }

    /// Asserts that no line that was logged since the story began contains a secret of the story.
    fn assert_nothing_logged(&self) {
        let secrets = self.market.every_secret();
        let search = Search::for_secrets(&secrets);
        let control = secrets.last().expect("the platform has issued something");
        tracing::info!(target: "shared", control, "the positive control");
        let lines: Vec<String> = lines()[self.lines_before..].to_vec();
        let (of_control, others): (Vec<_>, Vec<_>) =
            lines.iter().partition(|line| line.contains("the positive control"));
        assert!(of_control.iter().any(|line| search.find(line).is_some()), "the search finds what is written");
        let found = others.iter().find_map(|line| Some((search.find(line)?, line)));
        assert!(found.is_none(), "a secret is in the log: {found:?}");
    }

    async fn becomes_usable(&self, process: &Process, resource: &Resource) -> bool {
        // Three rounds. The clock moves 16 s after each round, which is longer than a lease, so a lease of an earlier
        // refresher ends.
        for _ in 0..3 {
            self.refresh(process, json!({})).await;
            self.refresh(process, json!({ "resource": resource, "force": true })).await;
            let access = process.tokens.access(resource, self.deadline()).await;
            if self.works(access.ok().as_ref())
                && self.refresh_token_state(resource).await == Some(RefreshTokenState::Live)
            {
                return true;
            }
            self.advance(Duration::from_secs(16));
        }
        false
    }

    fn works(&self, access: Option<&Access>) -> bool {
        access.is_some_and(|access| self.market.takes_access_token(access.token.expose()))
    }

    async fn assert_nothing_in_clear(&self) {
        let mut texts = self.texts().await;
        texts.extend(self.queue.messages().into_iter().map(|message| message.body.into_bytes()));
        for secret in self.market.every_secret() {
            let found = texts.iter().find(|text| holds(text, secret.as_bytes()));
            assert!(found.is_none(), "a secret is in the clear: {:?}", found.map(|text| String::from_utf8_lossy(text)));
        }
    }
}

fn installation_of(item: &Item) -> Option<Resource> {
    let (kind, id) = item.get("pk")?.as_s().ok()?.strip_prefix("installation#")?.split_once('#')?;
    Resource::new(if kind == "company" { Kind::Company } else { Kind::Location }, id).ok()
}
