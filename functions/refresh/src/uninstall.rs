//! Uninstalls the app on an operator's request: tells the platform, and then does what an uninstall webhook does.
//!
//! This function does it, and not the operator's machine, because it needs the installation's token.

use serde::Serialize;
use shared::app::App;
use shared::domain::clock::Millis;
use shared::domain::resource::Resource;
use shared::install::Uninstalled;
use shared::install::uninstall::{Ended, EndedLocations, WantedUninstall};
use shared::token::uninstall::PlatformUninstall;

/// The answer to an operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The platform's verdict: `uninstalled`, `not_installed`, `refused`, `unknown`, or `not_asked`.
    pub platform: &'static str,
    /// The reason for a verdict other than the first two, or the error of the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
    /// The stored installation: `revoked`, `newer` (installed again meanwhile), `unchanged`,
    /// `unknown` (there is none), or `failed` (the table failed, so the platform's verdict may not be stored).
    pub here: &'static str,
    /// The locations of a company that had a grant of their own.
    pub locations: EndedLocations,
}

/// Uninstalls the app from a location, or from a company and all its locations.
pub async fn run(app: &App, resource: &Resource, reason: &str, deadline: Millis) -> Answer {
    // Boxed, because it is large.
    let ending = Box::pin(app.installations.uninstall_at_platform(resource, reason, &app.tokens, deadline));
    let WantedUninstall { platform, here } = match ending.await {
        Ok(Some(done)) => done,
        Ok(None) => return Answer { platform: "not_asked", here: "unknown", ..Answer::default() },
        Err(error) => {
            tracing::warn!(%resource, %error, "the app was not uninstalled");
            return Answer {
                platform: "not_asked",
                said: Some(error.to_string()),
                here: "unchanged",
                ..Answer::default()
            };
        }
    };
    let (platform, said) = match platform {
        PlatformUninstall::Uninstalled { .. } => ("uninstalled", None),
        PlatformUninstall::NotInstalled => ("not_installed", None),
        PlatformUninstall::Refused(said) => ("refused", Some(said)),
        PlatformUninstall::Unknown(why) => ("unknown", Some(why.to_owned())),
    };
    let ended = match here {
        Ok(ended) => ended,
        Err(error) => {
            tracing::error!(%resource, %error, "an uninstall is not stored");
            return Answer { platform, said: Some(error.to_string()), here: "failed", ..Answer::default() };
        }
    };
    let locations = ended.map(|ended| ended.locations).unwrap_or_default();
    let here = match ended.map(|Ended { installation, .. }| installation) {
        Some(Uninstalled::Done) => "revoked",
        Some(Uninstalled::Older) => "newer",
        Some(Uninstalled::Unknown) => "unknown",
        None => "unchanged",
    };
    Answer { platform, said, here, locations }
}
