//! What a webhook says. Only `INSTALL` and `UNINSTALL` concern this system; the app's default webhook URL may be sent
//! anything else, and all that is required of it is a type.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use shared::domain::clock::Millis;
use shared::domain::resource::{Kind, Resource};
use shared::install::uninstall::Reported;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::verdict::Refusal;

/// Epoch numbers below this are seconds and not milliseconds: as milliseconds they would be from before 1973-03-03.
const SECONDS_BELOW: i64 = 100_000_000_000;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// Longer ids than this are no ids.
const LONGEST_ID: usize = 200;

/// A webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// Its id, which it keeps when it is sent again.
    pub id: Option<String>,
    /// What it says.
    pub notice: Notice,
}

/// What is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The app was installed. The grant itself comes by the redirect, if it is not the company's.
    Install {
        /// Where: one company, or any number of locations.
        resources: Vec<Resource>,
        /// The locations' company, where the webhook says so: one for a location that was made later may not.
        company: Option<String>,
        /// When, where the webhook says so.
        at: Option<Reported>,
    },
    /// The app was uninstalled.
    Uninstall {
        /// From where: one company, or any number of locations.
        resources: Vec<Resource>,
        /// When, where the webhook says so.
        at: Option<Reported>,
    },
    /// Something that does not concern this system.
    Other,
}

/// Members that only some types have are read where they are needed: a type of which nothing is known may give them
/// any form.
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
    /// Reads a body whose signature was checked, for the app with this id.
    ///
    /// # Errors
    /// [`Refusal::Malformed`], or [`Refusal::ForeignApp`]: the platform signs for all apps with one key, so a webhook
    /// of another app, sent on by whoever received it, has a good signature.
    pub fn read(body: &[u8], app_id: &str) -> Result<Self, Refusal> {
        // By way of a map: serde would read the members of a struct from a JSON array, too.
        let object: Map<String, Value> = serde_json::from_slice(body).map_err(|_| Refusal::Malformed)?;
        let wire: Wire = serde_json::from_value(Value::Object(object)).map_err(|_| Refusal::Malformed)?;
        if wire.r#type.is_empty() {
            return Err(Refusal::Malformed);
        }
        if wire.app_id.as_ref().is_some_and(|id| id != app_id) {
            return Err(Refusal::ForeignApp);
        }
        let id = wire.webhook_id.as_ref().and_then(Value::as_str);
        let id = id.filter(|id| (1..=LONGEST_ID).contains(&id.len())).map(str::to_owned);
        Ok(Self { id, notice: wire.notice()? })
    }
}

impl Wire {
    fn notice(&self) -> Result<Notice, Refusal> {
        let at = self.timestamp.as_ref().and_then(reported);
        let resources = match (self.r#type.as_str(), &self.app_id) {
            ("INSTALL" | "UNINSTALL", Some(_)) => self.resources()?,
            ("INSTALL" | "UNINSTALL", None) => return Err(Refusal::Malformed),
            _ => return Ok(Notice::Other),
        };
        if self.r#type == "UNINSTALL" {
            return Ok(Notice::Uninstall { resources, at });
        }
        let is_of_locations = resources.iter().all(|resource| resource.kind() == Kind::Location);
        let company = self.company_id.as_ref().and_then(Value::as_str).filter(|_| is_of_locations);
        let company = company.filter(|id| Resource::company(id).is_ok()).map(str::to_owned);
        Ok(Notice::Install { resources, company, at })
    }

    /// The locations, where any are named; the company otherwise. A company that is named beside a location, or beside
    /// a list of locations (an empty list too), must not lose all of its locations.
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
            tracing::warn!(unread, read = resources.len(), "a webhook names locations that cannot be read");
        }
        if unread > 0 && resources.is_empty() {
            return Err(Refusal::Malformed);
        }
        resources.sort();
        resources.dedup();
        Ok(resources)
    }
}

/// RFC 3339, or a number of milliseconds or seconds since the epoch, also as text.
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

    fn read(body: &Value) -> Result<Notice, Refusal> {
        Webhook::read(body.to_string().as_bytes(), "app").map(|webhook| webhook.notice)
    }

    #[test]
    fn an_uninstall_names_a_location_or_a_company() {
        let uninstall = |resource: Resource, at| Ok(Notice::Uninstall { resources: vec![resource], at });
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
    fn another_app_is_refused_and_other_types_are_let_be() {
        for (body, expected) in [
            (json!({"type": "UNINSTALL", "appId": "other", "locationId": "L1"}), Err(Refusal::ForeignApp)),
            (json!({"type": "INSTALL", "appId": "app-2"}), Err(Refusal::ForeignApp)),
            (json!({"type": "ContactCreate", "appId": "other"}), Err(Refusal::ForeignApp)),
            (json!({"type": "UNINSTALL", "locationId": "L1"}), Err(Refusal::Malformed)),
            (json!({"type": "INSTALL", "appId": "app"}), Err(Refusal::Malformed)),
            (json!({"type": "ContactCreate", "locationId": "L1"}), Ok(Notice::Other)),
            (json!({"type": "PlanChange", "appId": "app", "locationId": ["L1"]}), Ok(Notice::Other)),
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
            Ok(Notice::Install { resources: vec![location.clone()], company: company.map(str::to_owned), at: None })
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
        assert_eq!(read(&whole), Ok(Notice::Install { resources: vec![resource], company: None, at: None }));
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
                let found = read(&whole).map(|notice| match notice {
                    Notice::Install { resources, company, .. } => {
                        let is_of_company = resources.iter().any(|resource| resource.kind() == Kind::Company);
                        assert_eq!(company.is_none(), is_of_company, "{whole}");
                        resources
                    }
                    Notice::Uninstall { resources, .. } => resources,
                    Notice::Other => panic!("{whole}"),
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
    fn a_timestamp_has_many_spellings_and_a_precision() {
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
