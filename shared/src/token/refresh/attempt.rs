//! An attempt on a claimed installation: presents its refresh token, and acts on the outcome.

use std::time::Duration;

use super::commit::{Commit, Committed};
use super::{Refreshed, Refresher};
use crate::domain::clock::Millis;
use crate::domain::grant::Grant;
use crate::domain::installation::Installation;
use crate::domain::pace::Priority;
use crate::domain::redacted::Redacted;
use crate::domain::status::Status;
use crate::http_client::NewConnection;
use crate::platform::token_endpoint::{Cause, Outcome};
use crate::seal::pair::{Pair, PairRole, place};
use crate::seal::vault::VaultError;
use crate::table::mark_budget::Requested;
use crate::token::TokenError;
use crate::token::leased::LeasedInstallation;
use crate::token::pace::{NoPermit, Patience, TokenPermit, Turn, sleep_until};
use crate::token::parts::TokenParts;
use crate::token::rescue::{LostWrite, Rescued};
use crate::token::schedule;

/// While a pace is in force, a token is presented again this time after the presentation whose answer was lost: two answers
/// that are lost in a moment have one cause, and only one place is kept for them.
const REPLAY_DELAY: Duration = Duration::from_secs(5);
/// The most connections that are tried for one presentation.
const CONNECTIONS: u32 = 3;

/// A refresh of an installation whose lease it holds.
pub(super) struct LeasedRefresh<'a, 't> {
    pub(super) refresher: &'a Refresher,
    pub(super) leased: LeasedInstallation,
    /// True if the token was presented under this lease and no readable answer came.
    pub(super) is_unanswered: bool,
    pub(super) priority: Priority,
    /// The turn of this refresh. It ends when the first permit is taken, and is kept if another process was faster.
    pub(super) turn: &'t mut Option<Turn<'a>>,
    /// The permit of the last presentation.
    pub(super) permit: Option<TokenPermit>,
}

impl LeasedRefresh<'_, '_> {
    pub(super) async fn present(mut self) -> Refreshed {
        let token = match self.refresh_token().await {
            Ok(token) => token,
            Err(failed) => return failed,
        };
        let mut connections = 1;
        let mut credentials = 1;
        while self.leased.lease.allows_presentation(self.refresher.parts.clock.now()) {
            let departure = match self.departure().await {
                Ok(departure) => departure,
                Err(released) => return released,
            };
            let Refresher { parts: TokenParts { endpoint, pace, clock, .. }, .. } = self.refresher;
            let (sent_at, latest) = (clock.now(), self.leased.lease.last_presentation());
            let outcome = match departure {
                Some((connection, permit)) => {
                    self.permit = Some(permit);
                    let resource = &self.leased.installation.resource;
                    endpoint.present(resource, &token, connection, permit.send_by, latest).await
                }
                None => Outcome::NotSent,
            };
            match outcome {
                // A lost answer is worth another presentation as soon as the pace allows it.
                Outcome::Throttled { retry_after } if self.priority() == Priority::Replay => {
                    let again_at = pace.throttled(Priority::Replay, sent_at, retry_after).await;
                    sleep_until(clock, again_at.min(self.leased.lease.last_presentation())).await;
                }
                Outcome::NotSent if connections < CONNECTIONS => {
                    connections += 1;
                    tokio::time::sleep(Duration::from_millis(100 + fastrand::u64(..200))).await;
                }
                // The same token is presented once more: the platform answers again for 30 s.
                Outcome::Unknown(cause) if !self.is_unanswered => {
                    self.log_unknown(cause);
                    self.is_unanswered = true;
                    if self.permit != Some(TokenPermit::FREE) {
                        sleep_until(clock, (sent_at + REPLAY_DELAY).min(latest)).await;
                    }
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
                outcome => return Box::pin(self.conclude(outcome, &token, sent_at)).await,
            }
        }
        if self.is_unanswered {
            self.unknown().await
        } else if self.priority == Priority::Replay {
            self.paced(self.refresher.parts.clock.now()).await
        } else {
            self.out_of_time().await
        }
    }

    /// The priority of the next presentation.
    fn priority(&self) -> Priority {
        let is_urgent = schedule::is_urgent(self.unanswered_before());
        if self.is_unanswered && is_urgent { Priority::Replay } else { self.priority }
    }

    /// Makes the connection and takes the permit of the next presentation. `None` if there is no connection. A replay waits
    /// for its place as long as the lease allows. Any other presentation has waited before the claim; if another process
    /// was faster, the lease is released.
    async fn departure(&mut self) -> Result<Option<(NewConnection, TokenPermit)>, Refreshed> {
        let TokenParts { endpoint, pace, .. } = &self.refresher.parts;
        let free = async || Ok(endpoint.new_connection().await.ok().map(|connection| (connection, TokenPermit::FREE)));
        let (priority, until) = (self.priority(), self.leased.lease.last_presentation());
        match self.permit {
            // No pace was in force a moment ago. A second presentation must not depend on the table.
            Some(TokenPermit::FREE) => return free().await,
            // The answers of this installation are lost again and again. It gets no further place now.
            Some(_) if self.is_unanswered && priority != Priority::Replay => return Err(self.unknown().await),
            _ => {}
        }
        let refused = loop {
            if self.turn.is_none() && priority == Priority::Replay {
                match pace.turn(Patience { priority, until }).await {
                    Ok(turn) => *self.turn = Some(turn),
                    Err(refused) => break refused,
                }
            }
            let Ok(connection) = endpoint.new_connection().await else { return Ok(None) };
            match pace.take(priority).await {
                Ok(permit) => {
                    *self.turn = None;
                    return Ok(Some((connection, permit)));
                }
                // Another process was faster.
                Err(NoPermit::NotBefore(at)) if priority == Priority::Replay && at <= until => *self.turn = None,
                Err(refused) => break refused,
            }
        };
        match refused {
            // The lost answer is worth more than the pace.
            NoPermit::Store(_) if self.is_unanswered || priority == Priority::Replay => free().await,
            NoPermit::NotBefore(at) => Err(self.paced(at).await),
            NoPermit::Store(error) => {
                self.not_sent("the pace cannot be read").await;
                Err(Refreshed::Failed(error.into()))
            }
        }
    }

    /// Acts on the outcome of the last presentation, which began at `sent_at`.
    async fn conclude(self, outcome: Outcome, token: &Redacted, sent_at: Millis) -> Refreshed {
        let now = self.refresher.parts.clock.now();
        match outcome {
            Outcome::Granted(grant) => {
                let (renewed, ()) =
                    tokio::join!(self.granted(&grant, token), self.refresher.parts.breaker.granted(Requested::Refresh));
                renewed
            }
            Outcome::NotSent if self.is_unanswered => self.unknown().await,
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
                let again_at = self.refresher.parts.pace.throttled(self.priority, sent_at, retry_after).await;
                self.paced(again_at).await
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
