//! The rescue queue: an SQS queue of granted pairs that the table did not take, sealed like in the table. `refresh`
//! commits them later. The queue has a dead-letter queue of its own.

use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::{BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::domain::clock::Millis;
use crate::domain::installation::installation_key;
use crate::domain::redacted::Redacted;
use crate::domain::resource::Resource;
use crate::domain::status::{LeaseOwner, TokenVersion};
use crate::http_client::aws_error::describe;
use crate::seal::pair::{Pair, place};
use crate::seal::vault::{Vault, VaultError};
use crate::seal::{Field, Sealer};

/// A pair on the queue. Only the pair itself is sealed; the other fields are plain text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rescued {
    /// The location or company to which the pair belongs.
    pub resource: Resource,
    /// The attempt to which the pair was granted.
    pub attempt: String,
    /// The write that failed.
    pub write: LostWrite,
    sealed: String,
    issued_at: i64,
    expires_at: i64,
}

/// The write that failed and is repeated from the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LostWrite {
    /// The commit of a refresh.
    Commit {
        /// The epoch of the version that was presented.
        epoch: u64,
        /// The generation of the version that was presented.
        generation: u64,
    },
    /// A new installation.
    Install {
        /// The time at which the exchange of its code began.
        installed_at: i64,
        /// The company, if the platform's answer named the company.
        company: Option<String>,
        /// The public base URL.
        home: String,
        /// Scopes granted.
        scope: Option<String>,
    },
}

impl LostWrite {
    /// The version under which the pair is sealed on the queue.
    fn version(&self) -> TokenVersion {
        match *self {
            Self::Commit { epoch, generation } => TokenVersion { epoch, generation },
            Self::Install { .. } => TokenVersion { epoch: 0, generation: 0 },
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Tokens {
    access: String,
    refresh: Option<String>,
}

/// The reasons for which a message of the queue was not stored.
#[derive(Debug, thiserror::Error)]
pub enum RescueError {
    /// The message does not have the format of a rescued pair.
    #[error("the message is not a rescued pair")]
    Unreadable,
    /// The sealed pair does not open.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The table still does not answer.
    #[error(transparent)]
    Store(#[from] crate::table::StoreError),
}

impl Rescued {
    /// Seals a pair for the queue.
    ///
    /// # Panics
    /// Never: two strings are always JSON.
    pub fn seal(sealer: &Sealer, resource: &Resource, attempt: &LeaseOwner, write: LostWrite, pair: &Pair) -> Self {
        let tokens = Tokens {
            access: pair.access.expose().to_owned(),
            refresh: pair.refresh.as_ref().map(|token| token.expose().to_owned()),
        };
        let text = Redacted::from(serde_json::to_string(&tokens).expect("two strings are JSON"));
        let item = installation_key(resource);
        let sealed = sealer.seal(place(&item, write.version(), Field::Rescue), text.expose());
        Self {
            resource: resource.clone(),
            attempt: attempt.as_str().to_owned(),
            write,
            sealed: STANDARD.encode(sealed),
            issued_at: pair.issued_at.0,
            expires_at: pair.expires_at.0,
        }
    }

    /// Opens the pair.
    ///
    /// # Errors
    /// [`RescueError`].
    pub async fn open(&self, vault: &Vault) -> Result<Pair, RescueError> {
        let sealed = STANDARD.decode(&self.sealed).map_err(|_| RescueError::Unreadable)?;
        let item = installation_key(&self.resource);
        let text = vault.open(place(&item, self.write.version(), Field::Rescue), &sealed).await?;
        let tokens: Tokens = serde_json::from_str(text.expose()).map_err(|_| RescueError::Unreadable)?;
        Ok(Pair {
            access: tokens.access.into(),
            refresh: tokens.refresh.map(Redacted::from),
            issued_at: Millis(self.issued_at),
            expires_at: Millis(self.expires_at),
        })
    }
}

/// A message that cannot be stored yet is delivered again after this delay at first.
const SOON: Duration = Duration::from_secs(8);
/// The number of deliveries with the delay `SOON`. After these, the delay doubles with each delivery.
const SOON_DELIVERIES: u32 = 10;
/// The longest delay between two deliveries.
const LATEST: Duration = Duration::from_mins(5);

/// The delay until the next delivery of a message that could not be stored at its `receives`-th delivery.
pub fn redelivery(receives: u32) -> Duration {
    let doublings = receives.saturating_sub(SOON_DELIVERIES).min(10);
    SOON.saturating_mul(1 << doublings).min(LATEST)
}

/// The rescue queue.
#[derive(Clone)]
pub struct RescueQueue {
    client: Client,
    url: String,
}

impl RescueQueue {
    /// The queue at `url`.
    pub fn new(client: Client, url: String) -> Self {
        Self { client, url }
    }

    /// Number of pairs on the queue, with those in flight and delayed, as far as SQS knows. `None` if SQS does not say.
    pub async fn depth(&self) -> Option<u64> {
        let depth = queue_depth(&self.client, &self.url).await;
        depth.inspect_err(|error| tracing::warn!(error, "SQS did not return the depth of the rescue queue")).ok()
    }

    /// Sets the delay until each message is delivered again, by receipt handle (Amazon SQS API Reference,
    /// `ChangeMessageVisibilityBatch`: at most ten in a request). If SQS does not accept an entry, the message is
    /// delivered again after the queue's own visibility time-out.
    pub async fn deliver_again(&self, messages: &[(&str, Duration)]) {
        for some in messages.chunks(10) {
            let entry = |(number, (receipt, after)): (usize, &(&str, Duration))| {
                ChangeMessageVisibilityBatchRequestEntry::builder()
                    .id(number.to_string())
                    .receipt_handle(*receipt)
                    .visibility_timeout(i32::try_from(after.as_secs()).unwrap_or(i32::MAX))
                    .build()
            };
            // Each entry has an id and a receipt handle, so each can be built.
            let entries = some.iter().enumerate().filter_map(|some| entry(some).ok()).collect();
            let request = self.client.change_message_visibility_batch().queue_url(&self.url);
            match request.set_entries(Some(entries)).send().await {
                Ok(answer) if answer.failed().is_empty() => {}
                Ok(answer) => {
                    let code = answer.failed().first().map(BatchResultErrorEntry::code);
                    tracing::warn!(
                        code,
                        failed = answer.failed().len(),
                        "SQS did not change the visibility time-out of rescued pairs; they come again after the queue's own"
                    );
                }
                Err(error) => {
                    tracing::warn!(
                        error = describe(&error),
                        "SQS did not change the visibility time-out of rescued pairs; they come again after the queue's own"
                    );
                }
            }
        }
    }

    /// Sends a pair to the queue. Returns true if SQS has taken the pair. Raises an alarm in any case, because an
    /// operator should look at the table.
    ///
    /// # Panics
    /// Never: a [`Rescued`] is always JSON.
    pub async fn send(&self, rescued: &Rescued) -> bool {
        let body = serde_json::to_string(rescued).expect("a rescued pair is JSON");
        match self.client.send_message().queue_url(&self.url).message_body(body).send().await {
            Ok(_) => {
                tracing::error!(alarm = "rescued", resource = %rescued.resource, "a token pair is on the rescue queue");
                true
            }
            Err(error) => {
                let error = describe(&error);
                tracing::error!(alarm = "rescue_failed", resource = %rescued.resource, error, "the rescue queue failed");
                false
            }
        }
    }
}

/// The approximate number of messages of an SQS queue, with those in flight and delayed.
///
/// # Errors
/// The reason, as a text: SQS does not answer, or does not state a number.
pub async fn queue_depth(client: &Client, url: &str) -> Result<u64, String> {
    use aws_sdk_sqs::types::QueueAttributeName as Name;
    let counts = [
        Name::ApproximateNumberOfMessages,
        Name::ApproximateNumberOfMessagesNotVisible,
        Name::ApproximateNumberOfMessagesDelayed,
    ];
    let request = client.get_queue_attributes().queue_url(url).set_attribute_names(Some(counts.to_vec()));
    let answer = request.send().await.map_err(|error| describe(&error))?;
    let depth = answer.attributes().and_then(|attributes| {
        counts.iter().map(|name| attributes.get(name)?.parse::<u64>().ok()).sum::<Option<u64>>()
    });
    depth.ok_or_else(|| "SQS does not state how many messages the queue has".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_again_within_ten_seconds_ten_times_and_then_ever_later() {
        for (receives, seconds) in
            [(0, 8), (1, 8), (10, 8), (11, 16), (12, 32), (13, 64), (14, 128), (15, 256), (16, 300), (999, 300)]
        {
            assert_eq!(redelivery(receives), Duration::from_secs(seconds), "delivery {receives}");
        }
    }
}
