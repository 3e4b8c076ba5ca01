//! The exchange of an authorization code, at the pace of the token endpoint.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::pace::{NoPermit, Pacer, Patience, TokenPermit, Turn, sleep_until};
use crate::domain::clock::{Clock, Millis};
use crate::domain::grant::Grant;
use crate::domain::pace::Priority;
use crate::domain::redacted::Redacted;
use crate::http_client::SendError;
use crate::platform::token_endpoint::{ExchangeError, TokenEndpoint};
use crate::table::StoreError;

/// Time-out of the read of the pace. After it, the code is exchanged without a permit.
const TABLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Exchanges codes for grants.
#[derive(Clone)]
pub struct CodeExchange {
    endpoint: TokenEndpoint,
    pace: Arc<Pacer>,
    clock: Clock,
}

impl CodeExchange {
    /// Exchanges codes at the token endpoint.
    #[must_use]
    pub fn new(endpoint: TokenEndpoint, pace: Arc<Pacer>, clock: Clock) -> Self {
        Self { endpoint, pace, clock }
    }

    /// Exchanges an authorization code. Waits until `until` for a permit, also after a 429.
    ///
    /// # Errors
    /// [`ExchangeError::Throttled`]: the code is not used up. After most other errors the installer must start again.
    pub async fn exchange(&self, code: &Redacted, redirect_uri: &str, until: Millis) -> Result<Grant, ExchangeError> {
        loop {
            let turn = self.turn(until).await?;
            let no_connection = |error: SendError| ExchangeError::Unavailable(error.to_string());
            let connection = self.endpoint.new_connection().await.map_err(no_connection)?;
            let permit = match &turn {
                None => TokenPermit::FREE,
                Some(_) => match self.pace.take(Priority::Exchange).await {
                    Ok(permit) => permit,
                    // Another process was faster.
                    Err(NoPermit::NotBefore(at)) if at <= until => continue,
                    Err(refused) => without_permit(refused)?,
                },
            };
            drop(turn);
            let sent_at = self.clock.now();
            match self.endpoint.exchange(code, redirect_uri, connection, permit.send_by).await {
                Err(ExchangeError::Throttled { retry_after }) => {
                    let again_at = self.pace.throttled(Priority::Exchange, sent_at, retry_after).await;
                    if again_at > until {
                        return Err(ExchangeError::Throttled { retry_after });
                    }
                    sleep_until(&self.clock, again_at).await;
                }
                exchanged => return exchanged,
            }
        }
    }

    /// Waits until the pace has a place. `None` if no pace is in force, or the table does not say so.
    async fn turn(&self, until: Millis) -> Result<Option<Turn<'_>>, ExchangeError> {
        let known = match timeout(TABLE_TIMEOUT, self.pace.limit()).await {
            Ok(Ok(None)) => return Ok(None),
            Ok(Ok(Some(_))) => self.pace.turn(Patience { priority: Priority::Exchange, until }).await,
            Ok(Err(error)) => Err(error.into()),
            Err(_elapsed) => Err(StoreError::Unavailable("no answer in time".into()).into()),
        };
        match known {
            Ok(turn) => Ok(Some(turn)),
            Err(refused) => without_permit(refused).map(|_| None),
        }
    }
}

/// Like the claim of its redirect, an exchange does not depend on the table: the rescue queue can hold the pair.
fn without_permit(refused: NoPermit) -> Result<TokenPermit, ExchangeError> {
    match refused {
        NoPermit::NotBefore(_) => Err(ExchangeError::Throttled { retry_after: None }),
        NoPermit::Store(error) => {
            tracing::warn!(%error, "the table does not answer: the code is exchanged without a permit");
            Ok(TokenPermit::FREE)
        }
    }
}
