//! The content of a webhook. This system acts on `INSTALL`, `UNINSTALL`, `UPDATE` and `PLAN_CHANGE`. The platform sends
//! other types of events to the same URL; of these, only the member `type` is required. All types are passed on to the bus.

use std::time::Duration;

use serde::Deserialize;
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
        let object: Map<String, Value> = serde_json::from_slice(body).map_err(|_| Refusal::Malformed)?;
        let wire: Self = serde_json::from_value(Value::Object(object)).map_err(|_| Refusal::Malformed)?;
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
        if !matches!(self.r#type.as_str(), "INSTALL" | "UNINSTALL" | "UPDATE" | "PLAN_CHANGE") {
            return Change::None;
        }
        let at = self.timestamp.as_ref().and_then(reported);
        let Some(resources) = self.app_id.as_ref().and_then(|_| self.resources()) else { return Change::Unreadable };
        let AppDetails { version_id, plan_id, trial_ends_at, installed_by, white_label, .. } = self.details();
        match self.r#type.as_str() {
            "UNINSTALL" => return Change::Uninstall { resources, at },
            "UPDATE" => {
                let details = Box::new(AppDetails { version_id, ..AppDetails::default() });
                return Change::Details { resources, name: Name::Updated, at, details };
            }
            "PLAN_CHANGE" => {
                let details = Box::new(AppDetails { plan_id, trial_ends_at, ..AppDetails::default() });
                return Change::Details { resources, name: Name::PlanChanged, at, details };
            }
            _ => {}
        }
        let details =
            AppDetails { version_id, plan_id, trial_ends_at, installed_by, white_label, ..AppDetails::default() };
        let is_of_locations = resources.iter().all(|resource| resource.kind() == Kind::Location);
        let company = self.company_id.as_ref().and_then(Value::as_str).filter(|_| is_of_locations);
        let company = company.filter(|id| Resource::company(id).is_ok()).map(str::to_owned);
        Change::Install { resources, company, at, details: Box::new(details) }
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
mod tests {
    use super::*;

    fn read(body: &Value) -> Result<Change, Refusal> {
        Webhook::of_app(body.to_string().as_bytes(), "app").map(|webhook| webhook.change)
    }

    #[test]
    fn an_uninstall_names_a_location_or_a_company() {
        let uninstall = |resource: Resource, at| Ok(Change::Uninstall { resources: vec![resource], at });
        let (location, company) = (Resource::location("L1").expect("an id"), Resource::company("C1").expect("an id"));
        for (body, expected) in [
            (json!({"locationId": "L1"}), uninstall(location.clone(), None)),
            (json!({"companyId": "C1"}), uninstall(company.clone(), None)),
            (json!({"locationId": "L1", "companyId": "C1"}), uninstall(location, None)),
            (
                json!({"locationId": "", "companyId": "C1", "timestamp": 1_750_000_000_000_i64}),
                uninstall(company, Some(Reported { at: Millis(1_750_000_000_000), precision: MILLISECOND })),
            ),
            (json!({}), Ok(Change::Unreadable)),
            (json!({"locationId": "../x"}), Ok(Change::Unreadable)),
            (json!({"locationId": 7}), Ok(Change::Unreadable)),
        ] {
            let mut whole = json!({"type": "UNINSTALL", "appId": "app"});
            whole.as_object_mut().expect("an object").extend(body.as_object().expect("an object").clone());
            assert_eq!(read(&whole), expected, "{whole}");
        }
    }

    #[test]
    fn another_app_is_refused_and_other_types_are_ignored() {
        for (body, expected) in [
            (json!({"type": "UNINSTALL", "appId": "other", "locationId": "L1"}), Err(Refusal::ForeignApp)),
            (json!({"type": "INSTALL", "appId": "app-2"}), Err(Refusal::ForeignApp)),
            (json!({"type": "ContactCreate", "appId": "other"}), Err(Refusal::ForeignApp)),
            (json!({"type": "UNINSTALL", "locationId": "L1"}), Ok(Change::Unreadable)),
            (json!({"type": "INSTALL", "appId": "app"}), Ok(Change::Unreadable)),
            (json!({"type": "ContactCreate", "locationId": "L1"}), Ok(Change::None)),
            (json!({"type": "PlanChange", "appId": "app", "locationId": ["L1"]}), Ok(Change::None)),
            (json!({"appId": "app"}), Err(Refusal::Malformed)),
            (json!([]), Err(Refusal::Malformed)),
            (json!("UNINSTALL"), Err(Refusal::Malformed)),
            (json!(["UNINSTALL", "app", "L1", null, null, null, null]), Err(Refusal::Malformed)),
            (json!({"type": "", "appId": "app"}), Err(Refusal::Malformed)),
            (json!({"type": null, "appId": "app"}), Err(Refusal::Malformed)),
            (json!({"type": ["UNINSTALL"], "appId": "app"}), Err(Refusal::Malformed)),
        ] {
            assert_eq!(read(&body), expected, "{body}");
        }
        assert_eq!(Webhook::of_app(b"\xff{", "app"), Err(Refusal::Malformed));
        assert_eq!(Webhook::of_app(b"", "app"), Err(Refusal::Malformed));
    }

    #[test]
    fn an_install_names_its_company_if_it_can() {
        let location = Resource::location("L1").expect("an id");
        let install = |company: Option<&str>| {
            Ok(Change::Install {
                resources: vec![location.clone()],
                company: company.map(str::to_owned),
                at: None,
                details: Box::default(),
            })
        };
        for (company, expected) in [
            (json!("C1"), install(Some("C1"))),
            (json!(null), install(None)),
            (json!(""), install(None)),
            (json!("../x"), install(None)),
            (json!(7), install(None)),
        ] {
            let whole = json!({"type": "INSTALL", "appId": "app", "locationId": "L1", "companyId": company});
            assert_eq!(read(&whole), expected, "{whole}");
        }
        let whole = json!({"type": "INSTALL", "appId": "app", "companyId": "C1"});
        let resource = Resource::company("C1").expect("an id");
        let details = Box::default();
        assert_eq!(read(&whole), Ok(Change::Install { resources: vec![resource], company: None, at: None, details }));
    }

    #[test]
    fn a_list_of_locations_never_means_the_whole_company() {
        let locations = |ids: &[&str]| ids.iter().map(|id| Resource::location(id).expect("an id")).collect::<Vec<_>>();
        for (body, expected) in [
            (json!({"locationIds": ["L2", "L1", "L2"]}), Some(locations(&["L1", "L2"]))),
            (json!({"locationIds": ["L1"], "locationId": "L3"}), Some(locations(&["L1", "L3"]))),
            (json!({"locationIds": ["L1", 7, null, "", "../x", {"id": "L2"}, ["L3"]]}), Some(locations(&["L1"]))),
            (json!({"locationIds": ["L1"], "locationId": 7}), Some(locations(&["L1"]))),
            (json!({"locationIds": []}), Some(Vec::new())),
            (json!({"locationIds": [], "locationId": ""}), Some(Vec::new())),
            (json!({"locationIds": [], "locationId": "L3"}), Some(locations(&["L3"]))),
            (json!({"locationIds": "L1"}), Some(locations(&["L1"]))),
            (json!({"locationIds": {"0": "L1"}, "locationId": "L3"}), Some(locations(&["L3"]))),
            (json!({"locationIds": {"0": "L1"}}), None),
            (json!({"locationIds": true}), None),
            (json!({"locationIds": [7, "../x"]}), None),
            (json!({"locationIds": null}), Some(vec![Resource::company("C1").expect("an id")])),
        ] {
            for kind in ["INSTALL", "UNINSTALL"] {
                let mut whole = json!({"type": kind, "appId": "app", "companyId": "C1"});
                whole.as_object_mut().expect("an object").extend(body.as_object().expect("an object").clone());
                let found = match read(&whole).expect("of this app") {
                    Change::Install { resources, company, .. } => {
                        let is_of_company = resources.iter().any(|resource| resource.kind() == Kind::Company);
                        assert_eq!(company.is_none(), is_of_company, "{whole}");
                        Some(resources)
                    }
                    Change::Uninstall { resources, .. } => Some(resources),
                    Change::Unreadable => None,
                    Change::Details { .. } | Change::None => panic!("{whole}"),
                };
                assert_eq!(found, expected, "{whole}");
            }
        }
    }

    /// The entry that the bus gets for a body: its body, and the resources that it is about.
    fn event(body: &Value) -> PlatformEvent {
        let text = body.to_string();
        Webhook::of_app(text.as_bytes(), "app").expect("a webhook").platform_event(&text, Millis(1))
    }

    #[test]
    fn an_install_an_update_and_a_plan_change_carry_details() {
        let of = |kind: &str, members: &Value| {
            let mut whole = json!({"type": kind, "appId": "app", "locationId": "L1", "companyId": "C1"});
            whole.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
            match read(&whole).expect("of this app") {
                Change::Install { details, .. } => (None, *details),
                Change::Details { name, details, .. } => (Some(name), *details),
                other => panic!("{other:?}"),
            }
        };
        let text = |text: &str| Some(text.to_owned());
        let trial = json!({"onTrial": true, "trialDuration": 10, "trialStartDate": "2024-07-23T23:54:51.264Z"});
        let install = json!({
            "versionId": "v1", "planId": "p1", "trial": trial, "userId": "u1", "isWhitelabelCompany": true,
            "whitelabelDetails": {"domain": "app.example.com", "logoUrl": "https://example.com/logo.png"},
        });
        let trial_ends_at = Some(Millis(1_721_778_891_264 + 10 * 86_400_000));
        let expected = AppDetails {
            version_id: text("v1"),
            plan_id: text("p1"),
            trial_ends_at,
            installed_by: text("u1"),
            white_label: text("app.example.com"),
            ..AppDetails::default()
        };
        assert_eq!(of("INSTALL", &install), (None, expected));
        let update = json!({"versionId": "v2", "previousVersionId": "v1", "planId": "p1", "userId": "u2"});
        let expected = AppDetails { version_id: text("v2"), ..AppDetails::default() };
        assert_eq!(of("UPDATE", &update), (Some(Name::Updated), expected));
        let change = json!({"currentPlanId": "p1", "newPlanId": "p2", "userId": "u2", "trial": trial});
        let expected = AppDetails { plan_id: text("p2"), trial_ends_at, ..AppDetails::default() };
        assert_eq!(of("PLAN_CHANGE", &change), (Some(Name::PlanChanged), expected));
        let odd = json!({
            "versionId": 7, "planId": "", "trial": {"onTrial": true, "trialDuration": -1}, "userId": {},
            "isWhitelabelCompany": false, "whitelabelDetails": {"domain": "x"},
        });
        assert_eq!(of("INSTALL", &odd), (None, AppDetails::default()));
    }

    #[test]
    fn an_event_names_what_it_is_about() {
        for (members, expected) in [
            (json!({}), vec![]),
            (json!({"locationId": "L1"}), vec!["location:L1"]),
            (json!({"locationId": "L1", "companyId": "C1"}), vec!["location:L1", "company:C1"]),
            (
                json!({"companyId": "C1", "locationIds": ["L2", "L1", 7, "../x"]}),
                vec!["location:L1", "location:L2", "company:C1"],
            ),
            (json!({"altId": "L1", "altType": "location"}), vec!["location:L1"]),
            (json!({"altId": "C1", "altType": "company"}), vec!["company:C1"]),
            (json!({"altId": "message-7"}), vec![]),
            (json!({"altId": "L2", "altType": "location", "locationId": "L1"}), vec!["location:L1"]),
            (json!({"locationId": ["L1"], "companyId": "a b"}), vec![]),
        ] {
            let mut body = json!({"type": "InvoicePaid"});
            body.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
            let found = event(&body);
            let resources: Vec<_> = found.resources().iter().map(ToString::to_string).collect();
            assert_eq!(
                (resources, found.body()),
                (expected.iter().map(ToString::to_string).collect(), &*body.to_string())
            );
        }
    }

    #[test]
    fn an_event_that_is_too_large_is_named_only() {
        let large = "x".repeat(1024 * 1024);
        let whole = json!({
            "type": "NoteCreate", "webhookId": "w1", "locationId": "L1", "companyId": "C1", "body": large,
            "locationIds": ["L2"],
        });
        let found = event(&whole);
        let expected = json!({
            "type": "NoteCreate", "webhookId": "w1", "locationId": "L1", "companyId": "C1", "truncated": true,
        });
        assert_eq!(serde_json::from_str::<Value>(found.body()).expect("JSON"), expected);
        assert_eq!((found.kind(), found.resources().len(), found.fits()), ("NoteCreate", 2, true));
        let found = event(&json!({"type": large, "webhookId": large, "locationId": large}));
        let expected = json!({"type": "x".repeat(128), "truncated": true});
        assert_eq!(serde_json::from_str::<Value>(found.body()).expect("JSON"), expected);
        assert!(found.fits());
    }

    #[test]
    fn an_id_is_a_short_text() {
        let id = |id: Value| {
            let body = json!({"type": "X", "webhookId": id}).to_string();
            Webhook::of_app(body.as_bytes(), "app").expect("a webhook").id
        };
        assert_eq!(id(json!("w-1")), Some("w-1".to_owned()));
        for none in [json!(""), json!(7), json!(null), json!("x".repeat(201))] {
            assert_eq!(id(none.clone()), None, "{none}");
        }
    }

    #[test]
    fn a_timestamp_is_read_from_each_form_with_its_precision() {
        let ms = |at| Some(Reported { at: Millis(at), precision: MILLISECOND });
        let s = |at| Some(Reported { at: Millis(at), precision: SECOND });
        for (timestamp, expected) in [
            (json!("2025-06-15T15:06:40.123Z"), ms(1_750_000_000_123)),
            (json!("2025-06-15T17:06:40.123+02:00"), ms(1_750_000_000_123)),
            (json!("2025-06-15T15:06:40.000Z"), ms(1_750_000_000_000)),
            (json!("2025-06-15T15:06:40Z"), s(1_750_000_000_000)),
            (json!(1_750_000_000_123_i64), ms(1_750_000_000_123)),
            (json!("1750000000123"), ms(1_750_000_000_123)),
            (json!(1_750_000_000), s(1_750_000_000_000)),
            (json!("1750000000"), s(1_750_000_000_000)),
            (json!("yesterday"), None),
            (json!("2025-06-15T15:06:40"), None),
            (json!(""), None),
            (json!(0), None),
            (json!(-5), None),
            (json!(1.5), None),
            (json!(1e300), None),
            (json!(null), None),
            (json!({}), None),
            (json!("9999-12-31T23:59:59Z"), s(253_402_300_799_000)),
        ] {
            assert_eq!(reported(&timestamp), expected, "{timestamp}");
        }
    }
}
