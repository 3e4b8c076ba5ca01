//! Reported uninstalls, and uninstalls that an operator wants.
//!
//! The platform sends webhooks late, repeatedly and in any order, so a reported uninstall may be older than the
//! installation that is stored. The timestamp of the uninstall decides. If there is no timestamp that can be believed,
//! the platform is asked with the installation's own token. If the platform still accepts the token, the installation
//! stays.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use super::{Installations, Uninstalled};
use crate::domain::clock::Millis;
use crate::domain::installation::Installation;
use crate::domain::resource::{Kind, Resource};
use crate::platform::company_api::Presence;
use crate::table::StoreError;
use crate::token::TokenError;
use crate::token::tokens::Tokens;
use crate::token::uninstall::PlatformUninstall;

/// The platform's clock may be ahead of ours by this time. A timestamp further in the future is not believed.
const AHEAD: Duration = Duration::from_secs(10);
/// A timestamp of at least this precision is compared with the time of an install as it is.
const EXACT: Duration = Duration::from_millis(1);

/// The number of locations about which the platform is asked at once.
const LOCATIONS_AT_ONCE: usize = 16;
/// No further location is begun if less time than this is left.
const LOCATION_TIME: Duration = Duration::from_secs(5);

/// The time of an event, as the platform reports it. The event happened not before `at`, and before `at + precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported {
    /// The timestamp.
    pub at: Millis,
    /// The unit of the timestamp.
    pub precision: Duration,
}

/// The order of an uninstall and an install, by their times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// The uninstall came after the install, at this instant.
    After(Millis),
    /// The uninstall came before the install, and so ended an earlier installation.
    Before,
    /// The times do not decide the order.
    Unclear,
}

/// The reasons for which a reported uninstall was not decided. The uninstall must be reported again.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// The table does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no token to ask with.
    #[error("the platform cannot be asked: {0}")]
    Token(TokenError),
    /// The platform's answer, or the lack of one, does not say whether the app is installed.
    #[error("the platform does not say whether the app is installed: {0}")]
    Unclear(&'static str),
    /// The installation was changed while the platform was asked.
    #[error("the installation has changed meanwhile")]
    Changed,
}

/// The result of an uninstall that an operator wants.
#[derive(Clone, Debug)]
pub struct WantedUninstall {
    /// The platform's verdict.
    pub platform: PlatformUninstall,
    /// The change here. `None` if nothing was changed, because the platform still has the installation or may have it.
    /// The error says that the platform's verdict may not be stored.
    pub here: Result<Option<Ended>, StoreError>,
}

/// The change here after the platform has uninstalled the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The change of the installation.
    pub installation: Uninstalled,
    /// The locations of a company that had a grant of their own.
    pub locations: EndedLocations,
}

/// The locations with a grant of their own, after their company's uninstall. Minted tokens need no such look: the
/// company's uninstall ends them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EndedLocations {
    /// The platform does not have the installation any more, and its tokens are erased.
    pub revoked: u64,
    /// The platform still has the installation.
    pub installed: u64,
    /// The platform did not say. The location's next renewal decides.
    pub unclear: u64,
    /// Not looked at, because the invocation ended. The command can be repeated.
    pub left: u64,
}

impl Installations {
    /// Makes the platform uninstall the app, as an operator wants, and then does what an uninstall webhook does. Changes
    /// nothing here unless the platform says that the app is not installed any more. Can be repeated. `None` if there is
    /// no such installation.
    ///
    /// # Errors
    /// [`UninstallError`]: the platform was not asked.
    pub async fn uninstall_at_platform(
        &self,
        resource: &Resource,
        reason: &str,
        tokens: &Tokens,
        deadline: Millis,
    ) -> Result<Option<WantedUninstall>, UninstallError> {
        let stored = self.table.installation(resource).await?;
        let Some(stored) = stored.filter(|stored| !stored.is_placeholder()) else { return Ok(None) };
        let platform = tokens.uninstall(resource, reason, deadline).await.map_err(UninstallError::Token)?;
        let here = self.end_as_wanted(&stored, &platform, tokens, deadline).await;
        tracing::info!(%resource, ?platform, ?here, "an operator wants the app to be uninstalled");
        Ok(Some(WantedUninstall { platform, here }))
    }

    async fn end_as_wanted(
        &self,
        seen: &Installation,
        platform: &PlatformUninstall,
        tokens: &Tokens,
        deadline: Millis,
    ) -> Result<Option<Ended>, StoreError> {
        let resource = &seen.resource;
        let installation = match platform {
            PlatformUninstall::Uninstalled { sent_at } => self.uninstall(resource, *sent_at).await?,
            PlatformUninstall::NotInstalled => self.uninstall_exactly(seen, self.clock.now()).await?,
            PlatformUninstall::Refused(_) | PlatformUninstall::Unknown(_) => return Ok(None),
        };
        let locations = if installation == Uninstalled::Done && resource.kind() == Kind::Company {
            self.end_own_grants(resource, tokens, deadline).await?
        } else {
            EndedLocations::default()
        };
        Ok(Some(Ended { installation, locations }))
    }

    /// Asks the platform about the locations of an uninstalled company that have a grant of their own.
    async fn end_own_grants(
        &self,
        company: &Resource,
        tokens: &Tokens,
        deadline: Millis,
    ) -> Result<EndedLocations, StoreError> {
        let (mut ended, mut after) = (EndedLocations::default(), None);
        loop {
            let page = self.table.locations_of(company.id(), after.as_ref()).await?;
            let Some(last) = page.last().cloned() else { return Ok(ended) };
            let ends = stream::iter(&page).map(|location| self.end_own_grant(location, tokens, deadline));
            let ends: Vec<_> = ends.buffer_unordered(LOCATIONS_AT_ONCE).collect().await;
            for end in ends {
                match end? {
                    None => {}
                    Some(LocationEnd::Revoked) => ended.revoked += 1,
                    Some(LocationEnd::Installed) => ended.installed += 1,
                    Some(LocationEnd::Unclear) => ended.unclear += 1,
                    Some(LocationEnd::Left) => ended.left += 1,
                }
            }
            after = Some(last);
        }
    }

    /// Does the same as for an uninstall webhook without a time. `None` if the location has no grant of its own.
    async fn end_own_grant(
        &self,
        location: &Resource,
        tokens: &Tokens,
        deadline: Millis,
    ) -> Result<Option<LocationEnd>, StoreError> {
        let stored = self.table.installation(location).await?;
        if stored.is_none_or(|stored| stored.minted().is_some() || stored.installed().is_none()) {
            return Ok(None);
        }
        if self.clock.now() + LOCATION_TIME > deadline {
            return Ok(Some(LocationEnd::Left));
        }
        Ok(match self.uninstall_as_reported(location, None, tokens).await {
            Ok(Uninstalled::Done) => Some(LocationEnd::Revoked),
            Ok(Uninstalled::Older) => Some(LocationEnd::Installed),
            Ok(Uninstalled::Unknown) => None,
            Err(UninstallError::Store(error)) => return Err(error),
            Err(error) => {
                tracing::warn!(%location, %error, "the platform does not say if a location of an uninstalled company is uninstalled");
                Some(LocationEnd::Unclear)
            }
        })
    }

    /// Revokes an installation whose uninstall the platform has reported. If the times do not decide whether the
    /// uninstall is older than the installation, the platform is asked.
    ///
    /// # Errors
    /// [`UninstallError`]: nothing was changed.
    pub async fn uninstall_as_reported(
        &self,
        resource: &Resource,
        reported: Option<Reported>,
        tokens: &Tokens,
    ) -> Result<Uninstalled, UninstallError> {
        let now = self.clock.now();
        if let Some(Reported { at, .. }) =
            reported.filter(|reported| reported.precision <= EXACT && is_believed(*reported, now))
        {
            // The condition of the write compares the times.
            return Ok(self.uninstall(resource, at.min(now)).await?);
        }
        let Some(stored) = self.table.installation(resource).await? else { return Ok(Uninstalled::Unknown) };
        if stored.is_placeholder() {
            return Ok(Uninstalled::Unknown);
        }
        if stored.installed().is_none() {
            return Ok(Uninstalled::Done);
        }
        match order(reported, stored.installed_at, now) {
            Order::After(at) => return Ok(self.uninstall(resource, at).await?),
            Order::Before => return Ok(Uninstalled::Older),
            Order::Unclear => {}
        }
        // The future is boxed because it is large and rarely needed, and every future around it would be as large.
        match Box::pin(tokens.presence(&stored)).await.map_err(UninstallError::Token)? {
            Presence::Installed => {
                tracing::info!(%resource, "an uninstall is ignored: the platform still accepts the installation's token");
                Ok(Uninstalled::Older)
            }
            Presence::Gone => match self.uninstall_exactly(&stored, self.clock.now()).await? {
                Uninstalled::Older => Err(UninstallError::Changed),
                done => Ok(done),
            },
            Presence::Unclear(why) => Err(UninstallError::Unclear(why)),
        }
    }
}

/// The result for one location of an uninstalled company.
enum LocationEnd {
    Revoked,
    Installed,
    Unclear,
    Left,
}

fn is_believed(reported: Reported, now: Millis) -> bool {
    reported.at <= now + AHEAD
}

fn order(reported: Option<Reported>, installed_at: Millis, now: Millis) -> Order {
    match reported.filter(|reported| is_believed(*reported, now)) {
        Some(Reported { at, .. }) if installed_at < at => Order::After(at.min(now)),
        // If both times are in the same millisecond, the more likely case is a reinstall: an uninstall, then an
        // install.
        Some(Reported { at, precision }) if at + precision <= installed_at || precision <= EXACT => Order::Before,
        _ => Order::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_decides_unless_it_is_missing_coarse_or_of_the_future() {
        const NOW: Millis = Millis(1_800_000_000_500);
        const SECOND: Duration = Duration::from_secs(1);
        let at = |before: i64, precision| Some(Reported { at: Millis(NOW.0 - before), precision });
        for (reported, installed_before, expected) in [
            (None, 10_000, Order::Unclear),
            (at(5_000, EXACT), 10_000, Order::After(Millis(NOW.0 - 5_000))),
            (at(5_000, EXACT), 4_999, Order::Before),
            (at(5_000, EXACT), 5_000, Order::Before),
            (at(5_500, SECOND), 5_501, Order::After(Millis(NOW.0 - 5_500))),
            (at(5_500, SECOND), 5_500, Order::Unclear),
            (at(5_500, SECOND), 4_501, Order::Unclear),
            (at(5_500, SECOND), 4_500, Order::Before),
            (at(-10_000, EXACT), 10_000, Order::After(NOW)),
            (at(-10_001, EXACT), 10_000, Order::Unclear),
            (at(i64::MIN / 2, SECOND), 10_000, Order::Unclear),
        ] {
            let installed_at = Millis(NOW.0 - installed_before);
            assert_eq!(
                order(reported, installed_at, NOW),
                expected,
                "{reported:?}, installed {installed_before} ms ago"
            );
        }
    }
}
