//! An attempt on a claimed installation: presents its refresh token, and acts on the outcome.

use std::time::Duration;

use super::commit::{Commit, Committed};
use super::{Refreshed, Refresher};
use crate::domain::grant::Grant;
use crate::domain::installation::Installation;
use crate::domain::redacted::Redacted;
use crate::domain::status::Status;
use crate::platform::token_endpoint::{Cause, Outcome};
use crate::seal::pair::{Pair, PairRole, place};
use crate::seal::vault::VaultError;
use crate::table::installation::Release;
use crate::table::mark_budget::Requested;
use crate::token::TokenError;
use crate::token::leased::LeasedInstallation;
use crate::token::rescue::{LostWrite, Rescued};
use crate::token::schedule;

/// The most connections that are tried for one presentation.
const CONNECTIONS: u32 = 3;

/// A refresh of an installation whose lease it holds.
pub(super) struct LeasedRefresh<'a> {
    pub(super) refresher: &'a Refresher,
    pub(super) leased: LeasedInstallation,
    /// True if the token was presented under this lease and no readable answer came.
    pub(super) is_unanswered: bool,
}

impl LeasedRefresh<'_> {
    pub(super) async fn present(mut self) -> Refreshed {
        let token = match self.refresh_token().await {
            Ok(token) => token,
            Err(failed) => return failed,
        };
        let mut connections = 1;
        let mut credentials = 1;
        while self.leased.lease.allows_presentation(self.refresher.parts.clock.now()) {
            match self.refresher.parts.endpoint.present(&self.leased.installation.resource, &token).await {
                Outcome::NotSent if connections < CONNECTIONS => {
                    connections += 1;
                    tokio::time::sleep(Duration::from_millis(100 + fastrand::u64(..200))).await;
                }
                // The same token is presented once more at once: the platform answers again for 30 s.
                Outcome::Unknown(cause) if !self.is_unanswered => {
                    self.log_unknown(cause);
                    self.is_unanswered = true;
                }
                // An answer for another tenant is treated alike: the token may be spent, and its true answer is
                // unknown.
                Outcome::WrongTenant if !self.is_unanswered => {
                    self.log_wrong_tenant();
                    self.is_unanswered = true;
                }
                Outcome::WrongClient { fingerprint }
                    if credentials == 1 && self.credentials_changed(&fingerprint).await =>
                {
                    credentials += 1;
                }
                outcome => return Box::pin(self.conclude(outcome, &token)).await,
            }
        }
        if self.is_unanswered { self.unknown().await } else { self.out_of_time().await }
    }

    /// Acts on the outcome of the last presentation.
    async fn conclude(self, outcome: Outcome, token: &Redacted) -> Refreshed {
        let (now, random, failures) =
            (self.refresher.parts.clock.now(), fastrand::f64(), self.leased.installation.schedule().failures + 1);
        match outcome {
            Outcome::Granted(grant) => {
                let (renewed, ()) =
                    tokio::join!(self.granted(&grant, token), self.refresher.parts.breaker.granted(Requested::Refresh));
                renewed
            }
            Outcome::NotSent | Outcome::Throttled { .. } if self.is_unanswered => self.unknown().await,
            Outcome::NotSent => self.not_sent("no connection").await,
            Outcome::NotReached => {
                self.refresher.parts.alarms.not_reached(&self.leased.installation.resource).await;
                if self.is_unanswered {
                    self.unknown().await
                } else {
                    self.not_sent("the platform was not reached").await
                }
            }
            Outcome::Throttled { retry_after } => {
                let most = Duration::from_mins(30);
                let retry_at = retry_after.map_or(schedule::backoff(now, failures, random), |d| now + d.min(most));
                let asked = retry_after.is_some().then_some(retry_at);
                let (status, due_at) = (self.unchanged(), Some(retry_at));
                let to = Release { status, due_at, failures, retry_at: asked, finding: None, now };
                self.release_as(to, "throttled").await;
                Refreshed::Failed(TokenError::InProgress {
                    retry_at: asked.unwrap_or(schedule::on_demand(now, failures)),
                })
            }
            Outcome::Unknown(cause) => {
                self.log_unknown(cause);
                if cause == Cause::NotReached {
                    self.refresher.parts.alarms.not_reached(&self.leased.installation.resource).await;
                }
                self.unknown().await
            }
            Outcome::Refused => self.refused().await,
            Outcome::Gone => self.gone().await,
            Outcome::Suspended => self.suspended().await,
            Outcome::WrongClient { fingerprint } => {
                self.refresher.parts.breaker.wrong_client(fingerprint).await;
                self.stopped("wrong client credentials").await;
                Refreshed::Failed(TokenError::Misconfigured("the platform refuses the app's client credentials"))
            }
            Outcome::BadRequest(message) => {
                self.refresher.parts.breaker.bad_request(&message).await;
                self.stopped("bad request").await;
                Refreshed::Failed(TokenError::Misconfigured("the platform does not accept the token request"))
            }
            Outcome::Unclassified { status, message } => {
                self.refresher.parts.alarms.unclassified(&self.leased.installation.resource, status, &message).await;
                // If the answer to an earlier presentation is missing, the installation stays uncertain: its token is
                // presented again within the platform's grace.
                if self.unchanged() == Status::Uncertain { self.unknown().await } else { self.blocked(now).await }
            }
            Outcome::WrongTenant => {
                self.log_wrong_tenant();
                self.blocked(now).await
            }
            Outcome::Secret(error) => {
                self.our_fault("the app's secret cannot be read").await;
                Refreshed::Failed(TokenError::Secret(error))
            }
        }
    }

    /// Opens the refresh token of the item that the claim returned. No other token may be presented.
    async fn refresh_token(&self) -> Result<Redacted, Refreshed> {
        let Installation { version, .. } = &self.leased.installation;
        let Some(sealed) = self.leased.installation.refresh_token() else {
            tracing::error!(alarm = "no_refresh_token", resource = %self.leased.installation.resource, "the installation has no refresh token: nothing is sent");
            let now = self.refresher.parts.clock.now();
            self.release(
                Status::NeedsReauthorization,
                now,
                self.leased.installation.schedule().failures + 1,
                "no refresh token",
            )
            .await;
            return Err(Refreshed::Failed(TokenError::ReauthorizationRequired {
                reinstall_url: self.leased.installation.reinstall_url(),
            }));
        };
        let item = self.leased.installation.key();
        match self.refresher.parts.vault.open(place(&item, *version, PairRole::Current.refresh()), sealed).await {
            Ok(token) => Ok(token),
            Err(error) => {
                tracing::error!(alarm = "unseal", resource = %self.leased.installation.resource, %error,
                    "a stored refresh token does not open: nothing is sent");
                self.our_fault("does not open").await;
                Err(Refreshed::Failed(match error {
                    VaultError::Secret(error) => TokenError::Secret(error),
                    VaultError::Seal(_) => TokenError::Misconfigured("a stored token does not open"),
                }))
            }
        }
    }

    async fn granted(&self, grant: &Grant, presented: &Redacted) -> Refreshed {
        let pair = Pair::granted(grant, Some(presented), self.refresher.parts.clock.now());
        let Installation { resource, version, .. } = &self.leased.installation;
        let renewed = pair.to_access(version.next());
        let (sealer, owner) = (&self.leased.sealer, &self.leased.owner);
        let event = self.refresher.parts.events.renewed(&self.leased.installation);
        let commit = Commit { refresher: self.refresher, resource, from: *version, owner, sealer, pair: &pair, event };
        match commit.until_stored(self.leased.lease).await {
            Some(Committed::Stored(stored)) => {
                self.refresher.parts.events.publish(&stored, self.leased.lease.deadline).await;
                tracing::info!(%resource, generation = renewed.generation, outcome = "refreshed",
                    total_ms = self.leased.lease.held_ms(), Refreshes = 1, "token refreshed");
                Refreshed::Renewed(renewed)
            }
            Some(Committed::Standby | Committed::Superseded) => Refreshed::Moved,
            None => {
                let write = LostWrite::Commit { epoch: version.epoch, generation: version.generation };
                let rescued = Rescued::seal(sealer, resource, owner, write, &pair);
                self.refresher.last_resort(&rescued, &commit, self.leased.lease.deadline).await;
                Refreshed::Renewed(renewed)
            }
        }
    }
}
