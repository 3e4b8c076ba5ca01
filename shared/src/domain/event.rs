//! The lifecycle events of an installation.

use std::fmt;

use strum::VariantArray;

use crate::domain::clock::Millis;

/// The name of an event: its `detail-type` on EventBridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, VariantArray)]
pub enum Name {
    /// The app was installed, or installed again.
    Installed,
    /// The app was uninstalled.
    Uninstalled,
    /// The grant is no longer valid. A human must install the app again.
    NeedsReauthorization,
    /// The platform has paused the location.
    Suspended,
    /// The installation works again without a new install, after [`Name::Suspended`] or [`Name::NeedsReauthorization`].
    Resumed,
    /// The installation has another version of the app.
    Updated,
    /// The installation has another plan of the app.
    PlanChanged,
}

impl Name {
    /// The name in the table, on the bus and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Installed => "Installed",
            Self::Uninstalled => "Uninstalled",
            Self::NeedsReauthorization => "NeedsReauthorization",
            Self::Suspended => "Suspended",
            Self::Resumed => "Resumed",
            Self::Updated => "Updated",
            Self::PlanChanged => "PlanChanged",
        }
    }
}

/// One event of one installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The name of the event.
    pub name: Name,
    /// The time of the event.
    pub at: Millis,
    /// The epoch that the event began, or in which the event happened.
    pub epoch: u64,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}@{}", self.name.as_str(), self.at, self.epoch)
    }
}

impl Event {
    /// Parses the text that `Display` writes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('@');
        let name = parts.next()?;
        let name = Name::VARIANTS.iter().copied().find(|known| known.as_str() == name)?;
        let (at, epoch) = (Millis(parts.next()?.parse().ok()?), parts.next()?.parse().ok()?);
        parts.next().is_none().then_some(Self { name, at, epoch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_back() {
        for &name in Name::VARIANTS {
            let event = Event { name, at: Millis(1_750_000_000_123), epoch: 7 };
            assert_eq!(Event::parse(&event.to_string()), Some(event));
        }
        for bad in ["", "Installed", "Installed@1", "Installed@x@1", "Gone@1@1", "Installed@1@1@1"] {
            assert_eq!(Event::parse(bad), None, "{bad}");
        }
    }
}
