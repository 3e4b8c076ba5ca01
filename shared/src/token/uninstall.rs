//! Asks the platform to uninstall the app, with the installation's own token. Stores nothing.
//!
//! The request can be repeated: after an uninstall the platform refuses the token. So an answer that is lost is followed
//! by the question if the installation still exists.

use super::TokenError;
use super::mint::Minter;
use super::tokens::Tokens;
use crate::domain::access::Access;
use crate::domain::clock::Millis;
use crate::domain::limits::Endpoint;
use crate::domain::resource::Resource;
use crate::platform::company_api::{CompanyApiError, CompanyApiResult, Departure, Presence};
use crate::token::probe::PATH_OF_INSTALLATIONS;

/// The number of tries to get a permit that has not expired, and a version of the API that has the request.
const PERMIT_TRIES: usize = 3;

/// The platform's verdict on an uninstall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlatformUninstall {
    /// The app is not installed any more. The request left at `sent_at`: an install after that is a new installation.
    Uninstalled {
        /// The time directly before the request, by this machine's clock.
        sent_at: Millis,
    },
    /// The app was not installed when the platform was asked.
    NotInstalled,
    /// The platform has refused. The app is still installed. The text says why.
    Refused(String),
    /// The outcome is not known. The request can be repeated. The text says why.
    Unknown(&'static str),
}

impl Tokens {
    /// Asks the platform to uninstall the app from a location, or from a company and all its locations, in an invocation
    /// that ends at `deadline`. Renews the installation's token if necessary.
    ///
    /// # Errors
    /// [`TokenError`]: there is no token to ask with, and the platform was not asked.
    pub async fn uninstall(
        &self,
        resource: &Resource,
        reason: &str,
        deadline: Millis,
    ) -> Result<PlatformUninstall, TokenError> {
        let mut access = match self.access(resource, deadline).await {
            Err(TokenError::NotInstalled | TokenError::Revoked) => return Ok(PlatformUninstall::NotInstalled),
            access => access?,
        };
        let (mut sent_at, mut answer) = self.minter.send_uninstall(resource, &access, reason, deadline).await?;
        let renewed = match &answer {
            Err(CompanyApiError::TokenRefused) => Some(self.renew(resource, &access, deadline).await),
            Err(CompanyApiError::TokenDoubted(_)) => Some(self.renew_doubted(resource, &access, deadline).await),
            _ => None,
        };
        match renewed {
            // No other token is to be had.
            None | Some(Err(TokenError::RecentlyForced)) => {}
            Some(Err(TokenError::NotInstalled | TokenError::Revoked)) => return Ok(PlatformUninstall::NotInstalled),
            Some(renewed) => {
                access = renewed?;
                (sent_at, answer) = self.minter.send_uninstall(resource, &access, reason, deadline).await?;
            }
        }
        let error = match answer {
            Ok(()) => return Ok(PlatformUninstall::Uninstalled { sent_at }),
            Err(error) => error,
        };
        Ok(match error {
            CompanyApiError::NotAllowed(said) => PlatformUninstall::Refused(format!(
                "the token may not uninstall; is the scope oauth.write missing? {said}"
            )),
            CompanyApiError::Throttled { .. } => PlatformUninstall::Refused("429: too many requests".into()),
            CompanyApiError::Suspended => PlatformUninstall::Refused("the location is paused".into()),
            CompanyApiError::Unclassified { status, said } => {
                PlatformUninstall::Refused(format!("{}: {said}", status.as_u16()))
            }
            CompanyApiError::TokenDoubted(said) => PlatformUninstall::Refused(format!("401: {said}")),
            CompanyApiError::TokenRefused => {
                PlatformUninstall::Unknown("the platform refuses a token that was renewed a moment ago")
            }
            CompanyApiError::WrongTenant => PlatformUninstall::Unknown("an answer about another installation"),
            // The answer is lost, or says that there is nothing to uninstall.
            CompanyApiError::Absent | CompanyApiError::Unanswered(_) | CompanyApiError::NotReached => {
                match self.minter.presence(resource, &access).await? {
                    Presence::Gone => PlatformUninstall::Uninstalled { sent_at },
                    Presence::Installed => {
                        PlatformUninstall::Refused("the platform did not do it, and still has the installation".into())
                    }
                    Presence::Unclear(why) => PlatformUninstall::Unknown(why),
                }
            }
        })
    }
}

impl Minter {
    /// Sends one request: opens a connection, takes a permit of the resource, and sends. Returns the time directly before
    /// the request, and the answer.
    async fn send_uninstall(
        &self,
        resource: &Resource,
        access: &Access,
        reason: &str,
        deadline: Millis,
    ) -> Result<(Millis, CompanyApiResult<()>), TokenError> {
        let to = Endpoint::of(resource, PATH_OF_INSTALLATIONS);
        for _ in 0..PERMIT_TRIES {
            let Ok(connection) = self.parts.endpoint.connection().await else {
                return Ok((self.parts.clock.now(), Err(CompanyApiError::Unanswered("no connection"))));
            };
            let Ok(permit) = self.limiter.take(to, Some(deadline)).await else { break };
            let departure = Departure { connection, leave_by: permit.send_by };
            let sent_at = self.parts.clock.now();
            let sent = self.parts.endpoint.uninstall(resource, access, reason, departure).await?;
            let Some((answer, meta)) = sent else { continue };
            self.learn_limits(to, meta).await;
            return Ok((sent_at, answer));
        }
        Ok((self.parts.clock.now(), Err(CompanyApiError::Throttled { retry_after: None })))
    }
}
