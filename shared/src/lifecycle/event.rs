//! What is told of an installation's life, and when there is something to tell. Pure.

use std::fmt;

use serde_json::{Value, json};

use crate::clock::Millis;
use crate::installation::state::Status;
use crate::resource::{Kind, Resource};
use crate::table::installation::Installation;

/// What happened; the `detail-type` of the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// The app was installed, or installed again.
    Installed,
    /// It was uninstalled.
    Uninstalled,
    /// The grant is gone: a human must install again.
    NeedsReauthorization,
    /// The platform has paused the location.
    Suspended,
    /// It works again without having been installed again, after [`Name::Suspended`] or [`Name::NeedsReauthorization`].
    Resumed,
}

impl Name {
    const ALL: [Self; 5] =
        [Self::Installed, Self::Uninstalled, Self::NeedsReauthorization, Self::Suspended, Self::Resumed];

    /// As it is written everywhere.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Installed => "Installed",
            Self::Uninstalled => "Uninstalled",
            Self::NeedsReauthorization => "NeedsReauthorization",
            Self::Suspended => "Suspended",
            Self::Resumed => "Resumed",
        }
    }
}

/// One event of one installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub name: Name,
    /// When.
    pub at: Millis,
    /// The epoch that it began, or in which it happened.
    pub epoch: u64,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}@{}", self.name.as_str(), self.at, self.epoch)
    }
}

impl Event {
    /// Reads what `Display` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('@');
        let name = parts.next()?;
        let name = Name::ALL.into_iter().find(|known| known.as_str() == name)?;
        let (at, epoch) = (Millis(parts.next()?.parse().ok()?), parts.next()?.parse().ok()?);
        parts.next().is_none().then_some(Self { name, at, epoch })
    }

    /// What is told if `stored` comes to `status` without a new token. Nothing is told twice: a state that was told
    /// already is told again only after something else was.
    #[must_use]
    pub fn of_setback(stored: &Installation, status: Status, at: Millis) -> Option<Self> {
        let name = match status {
            Status::Suspended => Name::Suspended,
            Status::NeedsReauthorization => Name::NeedsReauthorization,
            _ => return None,
        };
        (stored.told != Some(status)).then_some(Self { name, at, epoch: stored.lineage.epoch })
    }

    /// What is told when `stored` has a new token: nothing, unless the last that was told is that it has none.
    #[must_use]
    pub fn of_renewal(stored: &Installation, at: Millis) -> Option<Self> {
        stored.told.map(|_| Self { name: Name::Resumed, at, epoch: stored.lineage.epoch })
    }

    /// The event's `detail`, for a team's own functions.
    #[must_use]
    pub fn detail(&self, stored: &Installation) -> Value {
        let mut detail = json!({
            "resource": stored.resource,
            "company": company(&stored.resource, stored.company.as_deref()),
            "at": self.at.rfc3339(),
            "epoch": self.epoch,
        });
        if self.name == Name::NeedsReauthorization {
            detail["reinstall_url"] = json!(stored.reinstall_url());
        }
        detail
    }
}

fn company<'a>(resource: &'a Resource, of_location: Option<&'a str>) -> Option<&'a str> {
    match resource.kind() {
        Kind::Company => Some(resource.id()),
        Kind::Location => of_location,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_back() {
        for name in Name::ALL {
            let event = Event { name, at: Millis(1_750_000_000_123), epoch: 7 };
            assert_eq!(Event::parse(&event.to_string()), Some(event));
        }
        for bad in ["", "Installed", "Installed@1", "Installed@x@1", "Gone@1@1", "Installed@1@1@1"] {
            assert_eq!(Event::parse(bad), None, "{bad}");
        }
    }
}
