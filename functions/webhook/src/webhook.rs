//! The content of a webhook. This system acts on `INSTALL` and `UNINSTALL` only. The platform sends other types of
//! events to the same URL; of these, only the member `type` is required.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use shared::domain::clock::Millis;
use shared::domain::resource::{Kind, Resource};
use shared::install::uninstall::Reported;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::response::Refusal;

/// A timestamp below this number is in seconds, not milliseconds. As milliseconds it would lie before 1973-03-03.
const SECONDS_BELOW: i64 = 100_000_000_000;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// The longest accepted webhook id, in bytes.
const MAX_ID_LENGTH: usize = 200;

/// A webhook of this app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// The id of the webhook. A repeated delivery has the same id.
    pub id: Option<String>,
    /// The event that the webhook reports.
    pub event: MarketplaceEvent,
}

/// An event that the marketplace reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MarketplaceEvent {
    /// The app was installed. The tokens come by the redirect, or are minted from the company's token.
    Install {
        /// The company, or any number of locations.
        resources: Vec<Resource>,
        /// The locations' company. `None` if absent, as it may be for a location that was made later.
        company: Option<String>,
        /// The time of the event. `None` if absent.
        at: Option<Reported>,
    },
    /// The app was uninstalled.
    Uninstall {
        /// The company, or any number of locations.
        resources: Vec<Resource>,
        /// The time of the event. `None` if absent.
        at: Option<Reported>,
    },
    /// An event of another type.
    Other,
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
    timestamp: Option<Value>,
    webhook_id: Option<Value>,
}

impl Webhook {
    /// Reads the body of a webhook for the app with this id. The caller has verified the signature.
    ///
    /// # Errors
    /// [`Refusal::Malformed`], or [`Refusal::ForeignApp`]: the platform signs the webhooks of all apps with one key, so
    /// the receiver of another app's webhook could forward it here with a valid signature.
    pub fn read(body: &[u8], app_id: &str) -> Result<Self, Refusal> {
        // The map refuses a JSON array, which serde would accept as the members of a struct.
        let object: Map<String, Value> = serde_json::from_slice(body).map_err(|_| Refusal::Malformed)?;
        let wire: Wire = serde_json::from_value(Value::Object(object)).map_err(|_| Refusal::Malformed)?;
        if wire.r#type.is_empty() {
            return Err(Refusal::Malformed);
        }
        if wire.app_id.as_ref().is_some_and(|id| id != app_id) {
            return Err(Refusal::ForeignApp);
        }
        let id = wire.webhook_id.as_ref().and_then(Value::as_str);
        let id = id.filter(|id| (1..=MAX_ID_LENGTH).contains(&id.len())).map(str::to_owned);
        Ok(Self { id, event: wire.event()? })
    }
}

impl Wire {
    fn event(&self) -> Result<MarketplaceEvent, Refusal> {
        let at = self.timestamp.as_ref().and_then(reported);
        let resources = match (self.r#type.as_str(), &self.app_id) {
            ("INSTALL" | "UNINSTALL", Some(_)) => self.resources()?,
            ("INSTALL" | "UNINSTALL", None) => return Err(Refusal::Malformed),
            _ => return Ok(MarketplaceEvent::Other),
        };
        if self.r#type == "UNINSTALL" {
            return Ok(MarketplaceEvent::Uninstall { resources, at });
        }
        let is_of_locations = resources.iter().all(|resource| resource.kind() == Kind::Location);
        let company = self.company_id.as_ref().and_then(Value::as_str).filter(|_| is_of_locations);
        let company = company.filter(|id| Resource::company(id).is_ok()).map(str::to_owned);
        Ok(MarketplaceEvent::Install { resources, company, at })
    }

    /// The named locations, or the company if no location is named. A company that is named together with locations (or
    /// with an empty list of them) is not a resource of the event: otherwise an uninstall would erase all of the
    /// company's locations.
    fn resources(&self) -> Result<Vec<Resource>, Refusal> {
        let given = |id: &&Value| !id.is_null() && id.as_str() != Some("");
        let location = self.location_id.as_ref().filter(given);
        let Some(list) = self.location_ids.as_ref().filter(|list| !list.is_null()) else {
            let resource = match (location, self.company_id.as_ref().filter(given)) {
                (Some(location), _) => location.as_str().map(Resource::location),
                (None, Some(company)) => company.as_str().map(Resource::company),
                (None, None) => None,
            };
            return resource.and_then(Result::ok).map(|resource| vec![resource]).ok_or(Refusal::Malformed);
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
            return Err(Refusal::Malformed);
        }
        resources.sort();
        resources.dedup();
        Ok(resources)
    }
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
    use serde_json::json;

    fn read(body: &Value) -> Result<MarketplaceEvent, Refusal> {
        Webhook::read(body.to_string().as_bytes(), "app").map(|webhook| webhook.event)
    }

    #[test]
    fn an_uninstall_names_a_location_or_a_company() {
        let uninstall = |resource: Resource, at| Ok(MarketplaceEvent::Uninstall { resources: vec![resource], at });
        let (location, company) = (Resource::location("L1").expect("an id"), Resource::company("C1").expect("an id"));
        for (body, expected) in [
            (json!({"locationId": "L1"}), uninstall(location.clone(), None)),
            (json!({"companyId": "C1"}), uninstall(company.clone(), None)),
            (json!({"locationId": "L1", "companyId": "C1"}), uninstall(location, None)),
            (
                json!({"locationId": "", "companyId": "C1", "timestamp": 1_750_000_000_000_i64}),
                uninstall(company, Some(Reported { at: Millis(1_750_000_000_000), precision: MILLISECOND })),
            ),
            (json!({}), Err(Refusal::Malformed)),
            (json!({"locationId": "../x"}), Err(Refusal::Malformed)),
            (json!({"locationId": 7}), Err(Refusal::Malformed)),
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
            (json!({"type": "UNINSTALL", "locationId": "L1"}), Err(Refusal::Malformed)),
            (json!({"type": "INSTALL", "appId": "app"}), Err(Refusal::Malformed)),
            (json!({"type": "ContactCreate", "locationId": "L1"}), Ok(MarketplaceEvent::Other)),
            (json!({"type": "PlanChange", "appId": "app", "locationId": ["L1"]}), Ok(MarketplaceEvent::Other)),
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
        assert_eq!(Webhook::read(b"\xff{", "app"), Err(Refusal::Malformed));
        assert_eq!(Webhook::read(b"", "app"), Err(Refusal::Malformed));
    }

    #[test]
    fn an_install_names_its_company_if_it_can() {
        let location = Resource::location("L1").expect("an id");
        let install = |company: Option<&str>| {
            Ok(MarketplaceEvent::Install {
                resources: vec![location.clone()],
                company: company.map(str::to_owned),
                at: None,
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
        assert_eq!(read(&whole), Ok(MarketplaceEvent::Install { resources: vec![resource], company: None, at: None }));
    }

    #[test]
    fn a_list_of_locations_never_means_the_whole_company() {
        let locations = |ids: &[&str]| ids.iter().map(|id| Resource::location(id).expect("an id")).collect::<Vec<_>>();
        for (body, expected) in [
            (json!({"locationIds": ["L2", "L1", "L2"]}), Ok(locations(&["L1", "L2"]))),
            (json!({"locationIds": ["L1"], "locationId": "L3"}), Ok(locations(&["L1", "L3"]))),
            (json!({"locationIds": ["L1", 7, null, "", "../x", {"id": "L2"}, ["L3"]]}), Ok(locations(&["L1"]))),
            (json!({"locationIds": ["L1"], "locationId": 7}), Ok(locations(&["L1"]))),
            (json!({"locationIds": []}), Ok(Vec::new())),
            (json!({"locationIds": [], "locationId": ""}), Ok(Vec::new())),
            (json!({"locationIds": [], "locationId": "L3"}), Ok(locations(&["L3"]))),
            (json!({"locationIds": "L1"}), Ok(locations(&["L1"]))),
            (json!({"locationIds": {"0": "L1"}, "locationId": "L3"}), Ok(locations(&["L3"]))),
            (json!({"locationIds": {"0": "L1"}}), Err(Refusal::Malformed)),
            (json!({"locationIds": true}), Err(Refusal::Malformed)),
            (json!({"locationIds": [7, "../x"]}), Err(Refusal::Malformed)),
            (json!({"locationIds": null}), Ok(vec![Resource::company("C1").expect("an id")])),
        ] {
            for kind in ["INSTALL", "UNINSTALL"] {
                let mut whole = json!({"type": kind, "appId": "app", "companyId": "C1"});
                whole.as_object_mut().expect("an object").extend(body.as_object().expect("an object").clone());
                let found = read(&whole).map(|event| match event {
                    MarketplaceEvent::Install { resources, company, .. } => {
                        let is_of_company = resources.iter().any(|resource| resource.kind() == Kind::Company);
                        assert_eq!(company.is_none(), is_of_company, "{whole}");
                        resources
                    }
                    MarketplaceEvent::Uninstall { resources, .. } => resources,
                    MarketplaceEvent::Other => panic!("{whole}"),
                });
                assert_eq!(found, expected, "{whole}");
            }
        }
    }

    #[test]
    fn an_id_is_a_short_text() {
        let id = |id: Value| {
            let body = json!({"type": "X", "webhookId": id}).to_string();
            Webhook::read(body.as_bytes(), "app").expect("a webhook").id
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
