//! Reported uninstalls: decides if a reported uninstall is newer than the stored installation.
//!
//! The platform sends webhooks late, repeatedly and in any order, so an uninstall may be older than the installation
//! that is stored. The timestamp of the uninstall decides. If there is no timestamp that can be believed, the platform
//! is asked with the installation's own token. If the platform still accepts the token, the installation stays.

use std::time::Duration;

use super::{Installations, Uninstalled};
use crate::domain::clock::Millis;
use crate::domain::resource::Resource;
use crate::platform::company_api::Presence;
use crate::table::StoreError;
use crate::token::TokenError;
use crate::token::tokens::Tokens;

/// The platform's clock may be ahead of ours by this time. A timestamp further in the future is not believed.
const AHEAD: Duration = Duration::from_secs(10);
/// A timestamp of at least this precision is compared with the time of an install as it is.
const EXACT: Duration = Duration::from_millis(1);

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

impl Installations {
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
        if stored.minted().is_some_and(|minted| minted.is_placeholder) {
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
