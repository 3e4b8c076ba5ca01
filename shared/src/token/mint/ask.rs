//! Asks one company for a location's token: a connection, a permit of the company, the request, and the meaning of the
//! answer.

use std::time::Duration;

use super::{CompanyRefused, LeasedMint, Minter, PATH, PLACEHOLDER_BURST};
use crate::domain::clock::Millis;
use crate::domain::grant::Grant;
use crate::domain::installation::Installation;
use crate::domain::limits::Endpoint;
use crate::domain::pace::Priority;
use crate::domain::resource::Resource;
use crate::domain::status::Status;
use crate::limiter::{LimiterError, Permit, ShareOwner};
use crate::platform::company_api::{CompanyApiError, CompanyApiResult, Departure};
use crate::token::leased::LeasedInstallation;
use crate::token::outcome::Why;
use crate::token::pace::{NoPermit, Patience};
use crate::token::{Company, TokenError, schedule};

/// The most requests for one minting.
const TRIES: u32 = 2;
/// The most permits that are taken for one request, because a permit may come too late to be used.
const LATE_PERMITS: usize = 3;
/// After a wait of at least this time for a permit, the company's installation is read again.
const SHORT_WAIT: Duration = Duration::from_secs(1);

/// The reasons for which a company gave no token.
pub(super) enum Refused {
    /// The company does not have the app there.
    Absent,
    /// The reason has nothing to do with the location.
    Failed(MintFailure),
}

/// The reason for the release of a location's lease without a new token, and what is stored then.
pub(super) struct MintFailure {
    pub(super) status: Option<Status>,
    pub(super) due_at: Millis,
    /// The earliest time of the next try, if the platform or the limits have asked for a delay.
    pub(super) retry_at: Option<Millis>,
    pub(super) failures: u32,
    pub(super) note: &'static str,
    pub(super) error: Result<TokenError, Box<CompanyRefused>>,
}

impl MintFailure {
    /// Returns true if the caller can renew the company's token, and then ask again.
    pub(super) fn is_of_company_token(&self) -> bool {
        self.error.is_err()
    }
}

impl Minter {
    /// Asks one company, and asks once more if there is no answer.
    pub(super) async fn ask(&self, mint: &LeasedMint, company: &Company) -> Result<Box<Grant>, Refused> {
        let location = &mint.leased.installation.resource;
        let mut tries = 0;
        let asked = loop {
            let asked = self.ask_once(mint, company).await.map_err(Refused::Failed)?;
            tries += 1;
            if tries == TRIES || !matches!(asked, Err(CompanyApiError::Unanswered(_))) {
                break asked;
            }
        };
        let (now, random, failures) =
            (self.parts.clock.now(), fastrand::f64(), mint.leased.installation.schedule().failures + 1);
        let later = |note| MintFailure {
            status: None,
            due_at: schedule::backoff(now, failures, random),
            retry_at: None,
            failures,
            note,
            error: Ok(TokenError::InProgress { retry_at: schedule::on_demand(now, failures) }),
        };
        let blocked = |note, error| MintFailure {
            status: Some(Status::Blocked),
            due_at: schedule::after_blocked(now, random),
            retry_at: None,
            failures,
            note,
            error: Ok(error),
        };
        let otherwise = match asked {
            Ok(grant) => return Ok(grant),
            Err(otherwise) => otherwise,
        };
        if let Some((status, said)) = otherwise.unclassified() {
            self.parts.alarms.unclassified(location, status, said).await;
        }
        let company_refused = |why| MintFailure {
            failures: mint.leased.installation.schedule().failures,
            error: Err(Box::new(CompanyRefused { company: company.clone(), why })),
            ..later("the company's token is refused")
        };
        Err(Refused::Failed(match otherwise {
            CompanyApiError::Absent => return Err(Refused::Absent),
            CompanyApiError::Unanswered(why) => later(why),
            CompanyApiError::NotReached => {
                self.parts.alarms.not_reached(location).await;
                later("the platform was not reached")
            }
            CompanyApiError::Throttled { retry_after } => {
                let retry_at = now + retry_after.unwrap_or(Duration::from_secs(10)).min(Duration::from_mins(30));
                let error = Ok(TokenError::InProgress { retry_at });
                MintFailure { due_at: retry_at, retry_at: Some(retry_at), error, ..later("throttled") }
            }
            CompanyApiError::TokenRefused => company_refused(Why::Forced),
            CompanyApiError::TokenDoubted(_) => company_refused(Why::Doubted),
            // An unclassified answer says nothing about the installation, so its stored token stays in use.
            CompanyApiError::Unclassified { .. } => {
                blocked("an unclassified answer", TokenError::InProgress { retry_at: now + schedule::RETRY_ON_DEMAND })
            }
            CompanyApiError::Suspended => MintFailure {
                status: Some(Status::Suspended),
                due_at: schedule::after_suspended(now, random),
                retry_at: None,
                failures: 0,
                note: "the location is not active",
                error: Ok(TokenError::Suspended { retry_at: now + schedule::RETRY_ON_DEMAND }),
            },
            CompanyApiError::NotAllowed(said) => {
                self.parts.alarms.not_allowed(&company.resource, "oauth.write", &said).await;
                blocked("not allowed", TokenError::Misconfigured("the company's token may not mint"))
            }
            CompanyApiError::WrongTenant => {
                tracing::error!(alarm = "wrong_tenant", resource = %location,
                    "the platform granted a token for another location or company; the token is dropped");
                blocked("wrong tenant", TokenError::InProgress { retry_at: now + schedule::RETRY_ON_DEMAND })
            }
        }))
    }

    /// Sends one request to one company: opens a connection, takes a permit, and after a long wait checks that the
    /// company's installation has not changed.
    async fn ask_once(
        &self,
        mint: &LeasedMint,
        company: &Company,
    ) -> Result<CompanyApiResult<Box<Grant>>, MintFailure> {
        let LeasedInstallation { installation: Installation { resource: location, .. }, lease, .. } = &mint.leased;
        let until = lease.last_presentation();
        for _ in 0..LATE_PERMITS {
            if !lease.allows_presentation(self.parts.clock.now()) {
                break;
            }
            let began = self.parts.clock.now();
            let turn = match self.parts.pace.turn(Patience { priority: Priority::Minting, until }).await {
                Ok(turn) => turn,
                Err(refused) => return Err(self.no_place(mint, refused)),
            };
            let Ok(connection) = self.parts.endpoint.connection().await else {
                return Ok(Err(CompanyApiError::Unanswered("no connection")));
            };
            let permit = self.permit(mint, &company.resource, until).await?;
            if self.parts.clock.now().since(began) >= SHORT_WAIT {
                self.expect_unchanged(mint, company).await?;
            }
            let paced = match self.parts.pace.take(Priority::Minting).await {
                Ok(paced) => paced,
                // Another process was faster.
                Err(NoPermit::NotBefore(at)) if at <= until => continue,
                Err(refused) => return Err(self.no_place(mint, refused)),
            };
            drop(turn);
            let leave_by = paced.leave_by(permit.send_by.min(until));
            let (departure, sent_at) = (Departure { connection, leave_by }, self.parts.clock.now());
            let asked = self.parts.endpoint.mint(&company.resource, &company.access, location, departure).await;
            let Some((asked, meta)) = asked else { continue };
            if let Err(CompanyApiError::Throttled { retry_after }) = &asked
                && !meta.is_limit_of_resource()
            {
                self.parts.pace.throttled(Priority::Minting, sent_at, *retry_after).await;
            }
            self.learn_limits(Endpoint::of(&company.resource, PATH), meta).await;
            return Ok(asked);
        }
        Err(self.not_asked(mint, None, "out of time before it was sent", TokenError::NoTime))
    }

    /// The failure of a minting that counts in the token endpoint's pace and gets no permit.
    fn no_place(&self, mint: &LeasedMint, refused: NoPermit) -> MintFailure {
        match refused {
            NoPermit::NotBefore(retry_at) => {
                let note = "the pace of the token endpoint has no place";
                self.not_asked(mint, Some(retry_at), note, TokenError::Paced { retry_at })
            }
            NoPermit::Store(error) => self.not_asked(mint, None, "the pace cannot be read", error.into()),
        }
    }

    /// Takes a permit of the company. Waits until `until`, which leaves time for the request within the lease. A
    /// request to a company other than the location's own takes the permit from a limited share, so that the company's
    /// own locations keep theirs, and does not wait.
    async fn permit(&self, mint: &LeasedMint, company: &Resource, until: Millis) -> Result<Permit, MintFailure> {
        let is_placeholder = mint.leased.installation.is_placeholder();
        let to = Endpoint::of(company, PATH);
        let permit = if is_placeholder || mint.others {
            let wait_until = (!mint.others).then_some(until);
            self.limiter.take_within_share(ShareOwner::Minter, to, PLACEHOLDER_BURST, wait_until).await
        } else {
            self.limiter.take(to, Some(until)).await
        };
        permit.map_err(|error| {
            let (retry_at, error) = match error {
                LimiterError::Refused(refusal) => {
                    (Some(refusal.retry_at), TokenError::InProgress { retry_at: refusal.retry_at })
                }
                LimiterError::Store(error) => (None, error.into()),
            };
            self.not_asked(mint, retry_at, "no permit of the company's", error)
        })
    }

    /// Checks that the company's installation is still the one that its token comes from. The app may have been
    /// uninstalled meanwhile.
    async fn expect_unchanged(&self, mint: &LeasedMint, company: &Company) -> Result<(), MintFailure> {
        let stored = match self.parts.table.installation(&company.resource).await {
            Ok(stored) => stored,
            Err(error) => return Err(self.not_asked(mint, None, "the company cannot be read", error.into())),
        };
        let lives =
            |stored: &Installation| stored.installed().is_some() && stored.version.epoch == company.access.epoch;
        if stored.as_ref().is_some_and(lives) {
            return Ok(());
        }
        let error = TokenError::InProgress { retry_at: self.parts.clock.now() };
        Err(self.not_asked(mint, None, "the company was uninstalled or installed anew", error))
    }

    /// Returns the release of a location for which no request was sent. The reason does not count as a failure of the
    /// location.
    fn not_asked(
        &self,
        mint: &LeasedMint,
        retry_at: Option<Millis>,
        note: &'static str,
        error: TokenError,
    ) -> MintFailure {
        let due_at = retry_at.unwrap_or(self.parts.clock.now());
        MintFailure {
            status: None,
            due_at,
            retry_at,
            failures: mint.leased.installation.schedule().failures,
            note,
            error: Ok(error),
        }
    }
}
