//! The app's version, plan and installer, which the marketplace reports.
//!
//! Reports come late and in any order. The reports about the version and those about the plan each have a time, and a
//! report changes nothing if a newer one is stored.

use crate::domain::clock::Millis;
use crate::domain::event::Event;
use crate::domain::installation::{AppDetails, Installation};
use crate::domain::resource::Resource;
use crate::domain::status::Status;
use crate::table::{Attributes, StoreError, Table, Update, Write, n, s};

/// The attributes.
pub(in crate::table) const DETAILS: [&str; 7] =
    ["version_id", "version_at", "plan_id", "trial_ends_at", "plan_at", "installed_by", "white_label"];

impl AppDetails {
    pub(in crate::table) fn read(attributes: Attributes<'_>) -> Self {
        let text = |name| attributes.text(name).map(str::to_owned);
        let instant = |name| attributes.number(name).map(Millis);
        Self {
            version_id: text("version_id"),
            version_at: instant("version_at"),
            plan_id: text("plan_id"),
            trial_ends_at: instant("trial_ends_at"),
            plan_at: instant("plan_at"),
            installed_by: text("installed_by"),
            white_label: text("white_label"),
        }
    }
}

impl Update {
    /// Stores the details that are reported, and keeps the others.
    pub(in crate::table) fn set_details(&mut self, details: &AppDetails) -> &mut Self {
        let AppDetails { version_id, version_at, plan_id, trial_ends_at, plan_at, installed_by, white_label } = details;
        for (name, text) in [
            ("version_id", version_id),
            ("plan_id", plan_id),
            ("installed_by", installed_by),
            ("white_label", white_label),
        ] {
            if let Some(text) = text {
                self.set(name, s(text));
            }
        }
        for (name, instant) in [("version_at", version_at), ("trial_ends_at", trial_ends_at), ("plan_at", plan_at)] {
            if let Some(instant) = instant {
                self.set(name, n(instant));
            }
        }
        self
    }
}

impl Table {
    /// Stores reported details of an installation, unless a newer report about the version or the plan is stored. With
    /// an `event`, the installation must have the event's epoch. An uninstalled installation and a placeholder count as
    /// not found.
    pub async fn record_details(
        &self,
        resource: &Resource,
        details: &AppDetails,
        event: Option<Event>,
        now: Millis,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = Update::of_installation(resource);
        write.when_status(Status::is_installed).when("attribute_not_exists(placeholder)");
        if let Some(at) = details.version_at {
            write.when("attribute_not_exists(version_at) OR version_at < :version_at").value(":version_at", n(at));
        }
        if let Some(at) = details.plan_at {
            write.when("attribute_not_exists(plan_at) OR plan_at < :plan_at").value(":plan_at", n(at));
        }
        if let Some(event) = event {
            write.when_equal("epoch", n(event.epoch));
        }
        write.set_details(details).publish(event, now);
        let is_installed = |stored: &Installation| stored.installed().is_some() && !stored.is_placeholder();
        Ok(match self.write_installation(write).await? {
            Write::Conflict(stored) if !is_installed(&stored) => Write::NotFound,
            answer => answer,
        })
    }
}
