//! The content of a webhook. This system acts on `INSTALL`, `UNINSTALL`, `UPDATE` and `PLAN_CHANGE`. The platform sends
//! other types of events to the same URL; of these, only the member `type` is required. All types are passed on to the bus.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use shared::domain::clock::Millis;
use shared::domain::event::Name;
use shared::domain::installation::AppDetails;
use shared::domain::resource::{Kind, Resource};
use shared::events::platform::PlatformEvent;
use shared::install::uninstall::Reported;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::response::Refusal;

/// A timestamp below this number is in seconds, not milliseconds. As milliseconds it would lie before 1973-03-03.
const SECONDS_BELOW: i64 = 100_000_000_000;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// The longest accepted trial period, in days.
const MOST_DAYS: u64 = 3_650;

/// The longest accepted id of a webhook, version, plan or user, in bytes.
const MAX_ID_LENGTH: usize = 200;

/// A webhook of this app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// The id of the webhook. A repeated delivery has the same id.
    pub id: Option<String>,
    /// The type of the event, as the platform names it.
    pub kind: String,
    /// The location and the company that the webhook names, as far as their ids are valid.
    location: Option<Resource>,
    company: Option<Resource>,
    /// Further locations that the webhook names.
    locations: Vec<Resource>,
    /// The change of an installation that the webhook reports.
    pub change: Change,
}

/// A change of an installation that the marketplace reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The app was installed. The tokens come by the redirect, or are minted from the company's token.
    Install {
        /// The company, or any number of locations.
        resources: Vec<Resource>,
        /// The locations' company. `None` if absent, as it may be for a location that was made later.
        company: Option<String>,
        /// The time of the event. `None` if absent.
        at: Option<Reported>,
        /// The app's version, plan and installer.
        details: Box<AppDetails>,
    },
    /// The installation has another version or another plan of the app.
    Details {
        /// The company, or any number of locations.
        resources: Vec<Resource>,
        /// The lifecycle event that reports the change.
        name: Name,
        /// The time of the event. `None` if absent.
        at: Option<Reported>,
        /// The new version or plan.
        details: Box<AppDetails>,
    },
    /// The app was uninstalled.
    Uninstall {
        /// The company, or any number of locations.
        resources: Vec<Resource>,
        /// The time of the event. `None` if absent.
        at: Option<Reported>,
    },
    /// A change is reported, but does not name its app, or names no valid location or company.
    Unreadable,
    /// An event of another type.
    None,
}

/// The body of a webhook. Optional members are any JSON value here and are checked later, because they may have any
/// form in other types of events.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    r#type: String,
    app_id: Option<Value>,
    location_id: Option<Value>,
    location_ids: Option<Value>,
    company_id: Option<Value>,
    alt_id: Option<Value>,
    alt_type: Option<Value>,
    version_id: Option<Value>,
    plan_id: Option<Value>,
    new_plan_id: Option<Value>,
    trial: Option<Value>,
    user_id: Option<Value>,
    is_whitelabel_company: Option<Value>,
    whitelabel_details: Option<Value>,
    timestamp: Option<Value>,
    webhook_id: Option<Value>,
}

impl Webhook {
    /// Reads the body of a webhook for the app with this id. The caller has verified the signature.
    ///
    /// # Errors
    /// [`Refusal::Malformed`], or [`Refusal::ForeignApp`]: the platform signs the webhooks of all apps with one key, so
    /// the receiver of another app's webhook could forward it here with a valid signature.
    pub fn of_app(body: &[u8], app_id: &str) -> Result<Self, Refusal> {
        let wire = Wire::read(body)?;
        if wire.app_id.as_ref().is_some_and(|id| id != app_id) {
            return Err(Refusal::ForeignApp);
        }
        Ok(wire.into_webhook())
    }

    /// Returns true if the webhook reports a change that this system applies.
    pub fn changes_installations(&self) -> bool {
        match self.change {
            Change::Install { .. } | Change::Uninstall { .. } | Change::Details { .. } => true,
            Change::Unreadable | Change::None => false,
        }
    }

    /// Reads the body of a webhook that was accepted earlier.
    pub fn accepted(body: &[u8]) -> Result<Self, Refusal> {
        Wire::read(body).map(Wire::into_webhook)
    }

    /// The event for the bus. `body` is the body that was read, and `at` the time of its arrival.
    ///
    /// An event that is too large for the bus is replaced by one that names its type, id and resources.
    pub fn platform_event(&self, body: &str, at: Millis) -> PlatformEvent {
        let named: Vec<_> = self.location.iter().chain(&self.company).cloned().collect();
        let mut all = [&named[..], &self.locations].concat();
        all.sort();
        all.dedup();
        let whole = PlatformEvent::new(&self.kind, body, &all, at);
        if whole.fits() {
            return whole;
        }
        let bytes = body.len();
        tracing::error!(alarm = "event_truncated", kind = whole.kind(), bytes, "an event is too large for the bus");
        let mut truncated = json!({ "type": whole.kind(), "truncated": true });
        for (name, value) in [
            ("webhookId", self.id.as_deref()),
            ("locationId", self.location.as_ref().map(Resource::id)),
            ("companyId", self.company.as_ref().map(Resource::id)),
        ] {
            if let Some(value) = value {
                truncated[name] = json!(value);
            }
        }
        PlatformEvent::new(&self.kind, truncated.to_string(), &named, at)
    }
}

impl Wire {
    fn read(body: &[u8]) -> Result<Self, Refusal> {
        // The map refuses a JSON array, which serde would accept as the members of a struct.
        let members: BTreeMap<String, &RawValue> = serde_json::from_slice(body).map_err(|_| Refusal::Malformed)?;
        // Some valid JSON does not fit into a `Value`: half of a surrogate pair, as in a text that was cut within an emoji
        // (RFC 8259 section 8.2), a number beyond `f64`, and deep nesting. A member with such a value is ignored here, and
        // the bus gets it as it came.
        let value = |raw: &RawValue| serde_json::from_str::<Value>(raw.get()).ok();
        let members: Map<String, Value> =
            members.into_iter().filter_map(|(name, raw)| Some((name, value(raw)?))).collect();
        let wire: Self = serde_json::from_value(Value::Object(members)).map_err(|_| Refusal::Malformed)?;
        if wire.r#type.is_empty() { Err(Refusal::Malformed) } else { Ok(wire) }
    }

    fn into_webhook(self) -> Webhook {
        let id = self.webhook_id.as_ref().and_then(Value::as_str);
        let id = id.filter(|id| (1..=MAX_ID_LENGTH).contains(&id.len())).map(str::to_owned);
        // Payments, invoices and products name the account in `altId`, and its kind in `altType`.
        let alternative = |kind: Kind| {
            self.alt_id.as_ref().filter(|_| self.alt_type.as_ref().is_some_and(|alt| alt == kind.as_str()))
        };
        let named = |kind, id: &Option<Value>| {
            let id = id.as_ref().or_else(|| alternative(kind))?.as_str()?;
            Resource::new(kind, id).ok()
        };
        let list = self.location_ids.as_ref().and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let locations = list.iter().filter_map(|id| Resource::location(id.as_str()?).ok()).collect();
        Webhook {
            id,
            location: named(Kind::Location, &self.location_id),
            company: named(Kind::Company, &self.company_id),
            locations,
            change: self.change(),
            kind: self.r#type,
        }
    }

    fn change(&self) -> Change {
        let kind = self.r#type.as_str();
        if !matches!(kind, "INSTALL" | "UNINSTALL" | "UPDATE" | "PLAN_CHANGE") {
            return Change::None;
        }
        let at = self.timestamp.as_ref().and_then(reported);
        let Some(resources) = self.app_id.as_ref().and_then(|_| self.resources()) else { return Change::Unreadable };
        let details = Box::new(self.details());
        match kind {
            "UNINSTALL" => Change::Uninstall { resources, at },
            "UPDATE" => {
                let details = Box::new(AppDetails { version_id: details.version_id, ..AppDetails::default() });
                Change::Details { resources, name: Name::Updated, at, details }
            }
            "PLAN_CHANGE" => {
                let AppDetails { plan_id, trial_ends_at, .. } = *details;
                let details = Box::new(AppDetails { plan_id, trial_ends_at, ..AppDetails::default() });
                Change::Details { resources, name: Name::PlanChanged, at, details }
            }
            _ => {
                let is_of_locations = resources.iter().all(|resource| resource.kind() == Kind::Location);
                let company = self.company_id.as_ref().and_then(Value::as_str).filter(|_| is_of_locations);
                let company = company.filter(|id| Resource::company(id).is_ok()).map(str::to_owned);
                Change::Install { resources, company, at, details }
            }
        }
    }

    /// The app's version, plan and installer, without the times of the report.
    fn details(&self) -> AppDetails {
        let is_white_label = self.is_whitelabel_company == Some(Value::Bool(true));
        let domain = self.whitelabel_details.as_ref().filter(|_| is_white_label).and_then(|label| label.get("domain"));
        AppDetails {
            version_id: short_text(self.version_id.as_ref()),
            plan_id: short_text(self.new_plan_id.as_ref().or(self.plan_id.as_ref())),
            trial_ends_at: self.trial.as_ref().and_then(end_of_trial),
            installed_by: short_text(self.user_id.as_ref()),
            white_label: short_text(domain),
            version_at: None,
            plan_at: None,
        }
    }

    /// The named locations, or the company if no location is named. A company that is named together with locations (or
    /// with an empty list of them) is not a resource of the event: otherwise an uninstall would erase all of the
    /// company's locations. `None` if no name is valid.
    fn resources(&self) -> Option<Vec<Resource>> {
        let given = |id: &&Value| !id.is_null() && id.as_str() != Some("");
        let location = self.location_id.as_ref().filter(given);
        let Some(list) = self.location_ids.as_ref().filter(|list| !list.is_null()) else {
            let resource = match (location, self.company_id.as_ref().filter(given)) {
                (Some(location), _) => location.as_str().map(Resource::location),
                (None, Some(company)) => company.as_str().map(Resource::company),
                (None, None) => None,
            };
            return resource.and_then(Result::ok).map(|resource| vec![resource]);
        };
        let unreadable = std::slice::from_ref(list);
        let entries = location.into_iter().chain(list.as_array().map_or(unreadable, Vec::as_slice));
        let mut resources = Vec::new();
        let mut unread = 0;
        for entry in entries {
            match entry.as_str().map(Resource::location) {
                Some(Ok(resource)) => resources.push(resource),
                _ => unread += 1,
            }
        }
        if unread > 0 {
            tracing::warn!(
                unread,
                read = resources.len(),
                "a webhook lists malformed location ids; only its other locations are processed"
            );
        }
        if unread > 0 && resources.is_empty() {
            return None;
        }
        resources.sort();
        resources.dedup();
        Some(resources)
    }
}

/// A text that is neither empty nor long.
fn short_text(value: Option<&Value>) -> Option<String> {
    let text = value?.as_str()?.trim();
    (1..=MAX_ID_LENGTH).contains(&text.len()).then(|| text.to_owned())
}

/// The end of a trial period: `{"onTrial":true,"trialDuration":<days>,"trialStartDate":"…"}`.
fn end_of_trial(trial: &Value) -> Option<Millis> {
    let days = trial["trialDuration"].as_u64().filter(|days| *days <= MOST_DAYS && trial["onTrial"] == true)?;
    let start = reported(&trial["trialStartDate"])?.at;
    Some(start + Duration::from_hours(24 * days))
}

/// Reads a timestamp: RFC 3339, or a number of milliseconds or seconds since the Unix epoch, also as text.
fn reported(timestamp: &Value) -> Option<Reported> {
    let number = match timestamp {
        Value::Number(number) => number.as_i64()?,
        Value::String(text) => {
            if let Ok(date) = OffsetDateTime::parse(text, &Rfc3339) {
                let at = i64::try_from(date.unix_timestamp_nanos() / 1_000_000).ok().map(Millis)?;
                let precision = if text.contains('.') { MILLISECOND } else { SECOND };
                return Some(Reported { at, precision });
            }
            text.parse().ok()?
        }
        _ => return None,
    };
    if number <= 0 {
        return None;
    }
    Some(if number < SECONDS_BELOW {
        Reported { at: Millis(number.checked_mul(1000)?), precision: SECOND }
    } else {
        Reported { at: Millis(number), precision: MILLISECOND }
    })
}

#[cfg(test)]
mod tests;
