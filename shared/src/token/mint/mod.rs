//! The one path that mints a location's token from its company's, under the same lease and version as a refresh.
//!
//! A minting uses no single-use token. If its answer is lost or cannot be stored, the minting is repeated. So minting
//! needs no rescue queue and no standby pairs, and an unknown outcome does not make the location uncertain.

mod absent;
mod ask;

use self::ask::Refused;
use super::leased::LeasedInstallation;
use super::outcome::{Refreshed, Why};
use super::parts::TokenParts;
use super::{Company, TokenError, schedule};
use crate::domain::clock::Millis;
use crate::domain::grant::Grant;
use crate::domain::limits::Endpoint;
use crate::domain::resource::Resource;
use crate::domain::status::TokenVersion;
use crate::limiter::Limiter;
use crate::platform::company_api::ResponseMeta;
use crate::seal::pair::{Pair, PairRole};
use crate::table::Write;
use crate::table::app::BreakerReason;
use crate::table::installation::LEASE;
use crate::table::installation::Renewal;
use crate::table::mark_budget::Requested;
use crate::table::minted::MintSource;

/// The most requests to a company in one interval about locations that only a caller has named. Calls for locations
/// that do not exist must not use up the permits that other locations need.
pub(in crate::token) const PLACEHOLDER_BURST: u32 = 20;
/// The path of minting. The platform may limit this path on its own.
pub(in crate::token) const PATH: &str = "/oauth/locationToken";

/// Mints locations' tokens.
pub struct Minter {
    pub(in crate::token) parts: TokenParts,
    pub(in crate::token) limiter: Limiter,
}

/// A minting for a location whose lease it holds.
struct LeasedMint {
    leased: LeasedInstallation,
    /// True if only companies other than the location's own are asked, because the location's own company has no token.
    others: bool,
}

/// The platform refused the company's token from which a location's token was to be minted.
#[derive(Debug)]
pub struct CompanyRefused {
    /// The company, with the refused token.
    pub company: Company,
    /// [`Why::Forced`] if the text of the refusal is classified, else [`Why::Doubted`].
    pub why: Why,
}

/// The step that follows if none of the companies that are asked has the app in the location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::token) enum WhenAbsent {
    /// All companies were asked: the absence is remembered, so no company is asked about the location for a moment.
    Remember,
    /// Nothing is concluded: other companies are asked next.
    AskOthers,
    /// The schedule asks the companies that were not asked now, if it has room for another location.
    Search,
    /// The location's own company has no token to ask with, so nothing is concluded. With `search`, the schedule asks
    /// the companies that were not asked now, if it has room for another location.
    Unknown {
        /// True if there are companies beyond those that a call asks.
        search: bool,
        /// True if the token of one of the companies could not be read, so that company is not asked now.
        unasked: bool,
    },
}

impl WhenAbsent {
    /// Returns true if the location's own company is not among the companies that are asked, because it has no token.
    fn is_unknown(self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

impl Minter {
    /// Creates a minter of the locations in the table. Each request to a company takes a permit of `limiter`.
    pub fn new(parts: TokenParts, limiter: Limiter) -> Self {
        Self { parts, limiter }
    }

    /// Mints the token of a location that was read in version `seen`, from the first of `companies` that has the app
    /// there, in an invocation that ends at `deadline`.
    ///
    /// # Errors
    /// [`CompanyRefused`]: the caller renews the company's token and asks again.
    pub(in crate::token) async fn mint(
        &self,
        location: &Resource,
        seen: TokenVersion,
        why: Why,
        companies: &[Company],
        when_absent: WhenAbsent,
        deadline: Millis,
    ) -> Result<Refreshed, Box<CompanyRefused>> {
        let mint = match self.claim(location, seen, why, deadline).await {
            Ok(leased) => LeasedMint { leased, others: when_absent.is_unknown() },
            Err(instead) => return Ok(instead),
        };
        let mut failure = None;
        for company in companies {
            match self.ask(&mint, company).await {
                Ok(grant) => {
                    let granted = self.granted(&mint, company, &grant);
                    return Ok(tokio::join!(granted, self.parts.breaker.granted(Requested::Mint)).0);
                }
                Err(Refused::Absent) => {}
                Err(Refused::Failed(failed)) => failure = failure.or(Some(failed)),
            }
        }
        match (failure, when_absent) {
            (failure, WhenAbsent::Unknown { search, unasked }) => self.unknown(&mint, failure, search, unasked).await,
            // The caller renews the company's token, and then all companies are asked again.
            (Some(failure), _) if failure.is_of_company_token() => self.fail(&mint, failure, None).await,
            // If one company cannot be asked now, another company may still have the app there, so nothing is
            // concluded.
            (Some(failure), WhenAbsent::Remember | WhenAbsent::AskOthers) => self.fail(&mint, failure, None).await,
            (_, WhenAbsent::Remember | WhenAbsent::AskOthers | WhenAbsent::Search) => {
                self.absent(&mint, why, companies, when_absent).await
            }
        }
    }

    pub(in crate::token) async fn learn_limits(&self, endpoint: Endpoint<'_>, meta: ResponseMeta) {
        if let Some(head) = meta.head
            && let Err(error) = self.limiter.observe(endpoint, head.sent_at, head.status, &head.headers).await
        {
            tracing::warn!(%error, "the limits that the platform has stated are not stored");
        }
    }

    async fn claim(
        &self,
        location: &Resource,
        seen: TokenVersion,
        why: Why,
        deadline: Millis,
    ) -> Result<LeasedInstallation, Refreshed> {
        self.parts.expect_time(location, LEASE, deadline).map_err(Refreshed::Failed)?;
        match self.parts.breaker.stops_minting().await {
            Ok(false) => self.parts.claim(location, seen, why, true, deadline).await,
            Ok(true) => Err(Refreshed::Failed(TokenError::Misconfigured(BreakerReason::MassRefusal.as_str()))),
            Err(error) => Err(Refreshed::Failed(error.into())),
        }
    }

    async fn granted(&self, mint: &LeasedMint, company: &Company, grant: &Grant) -> Refreshed {
        let (location, from) = (&mint.leased.installation.resource, mint.leased.installation.version);
        let pair = Pair { refresh: None, ..Pair::granted(grant, None, self.parts.clock.now()) };
        let sealed = pair.seal(&mint.leased.sealer, location, from.next(), PairRole::Current);
        let due_at = schedule::next_refresh(pair.issued_at, pair.expires_at, fastrand::f64());
        let source = MintSource { company: company.resource.id(), epoch: company.access.epoch };
        let event = self.parts.events.renewed(&mint.leased.installation);
        let renewal = Renewal { owner: &mint.leased.owner, pair: &sealed, due_at, event };
        let stored = self.parts.table.commit_minted(location, from, renewal, source).await;
        match stored {
            Ok(Write::Applied(stored)) => {
                self.parts.events.publish(&stored, mint.leased.lease.deadline).await;
                tracing::info!(resource = %location, generation = from.next().generation, outcome = "minted", Refreshes = 1, "token minted");
            }
            Ok(Write::Conflict(_) | Write::NotFound) => return Refreshed::Moved,
            // The lease ends by itself, and the next attempt mints again. The caller gets the minted token all the
            // same.
            Err(error) => tracing::warn!(resource = %location, %error, "a minted token is not stored"),
        }
        Refreshed::Renewed(pair.to_access(from.next()))
    }
}
