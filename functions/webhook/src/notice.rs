//! What a webhook says. Only `INSTALL` and `UNINSTALL` concern this system; the app's default webhook URL may be sent
//! anything else, and all that is required of it is a type.

use serde::Deserialize;
use serde_json::Value;
use shared::clock::Millis;
use shared::resource::Resource;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::verdict::Refusal;

/// Epoch numbers below this are seconds and not milliseconds: as milliseconds they would be from before 1973-03-03.
const SECONDS_BELOW: i64 = 100_000_000_000;

/// What is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The app was installed. The grant itself comes by the redirect.
    Install,
    /// The app was uninstalled.
    Uninstall {
        /// From where.
        resource: Resource,
        /// When, where the webhook says so.
        at: Option<Millis>,
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
    company_id: Option<Value>,
    timestamp: Option<Value>,
}

impl Notice {
    /// Reads a body whose signature was checked, for the app with this id.
    ///
    /// # Errors
    /// [`Refusal::Malformed`], or [`Refusal::ForeignApp`]: the platform signs for all apps with one key, so a webhook
    /// of another app, sent on by whoever received it, has a good signature.
    pub fn read(body: &[u8], app_id: &str) -> Result<Self, Refusal> {
        let wire: Wire = serde_json::from_slice(body).map_err(|_| Refusal::Malformed)?;
        if wire.app_id.as_ref().is_some_and(|id| id != app_id) {
            return Err(Refusal::ForeignApp);
        }
        if !matches!(wire.r#type.as_str(), "INSTALL" | "UNINSTALL") {
            return Ok(Self::Other);
        }
        if wire.app_id.is_none() {
            return Err(Refusal::Malformed);
        }
        if wire.r#type == "INSTALL" {
            return Ok(Self::Install);
        }
        Ok(Self::Uninstall { resource: wire.resource()?, at: wire.timestamp.as_ref().and_then(instant) })
    }
}

impl Wire {
    /// A location where one is named: its company may be named beside it, and must not lose all others with it.
    fn resource(&self) -> Result<Resource, Refusal> {
        let given = |id: &&Value| id.as_str() != Some("");
        let resource = match (self.location_id.as_ref().filter(given), self.company_id.as_ref().filter(given)) {
            (Some(location), _) => location.as_str().map(Resource::location),
            (None, Some(company)) => company.as_str().map(Resource::company),
            (None, None) => None,
        };
        resource.and_then(Result::ok).ok_or(Refusal::Malformed)
    }
}

/// RFC 3339, or a number of milliseconds or seconds since the epoch, also as text.
fn instant(timestamp: &Value) -> Option<Millis> {
    let number = match timestamp {
        Value::Number(number) => number.as_i64()?,
        Value::String(text) => {
            if let Ok(date) = OffsetDateTime::parse(text, &Rfc3339) {
                return i64::try_from(date.unix_timestamp_nanos() / 1_000_000).ok().map(Millis);
            }
            text.parse().ok()?
        }
        _ => return None,
    };
    let milliseconds = if number < SECONDS_BELOW { number.checked_mul(1000)? } else { number };
    (number > 0).then_some(Millis(milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: &Value) -> Result<Notice, Refusal> {
        Notice::read(body.to_string().as_bytes(), "app")
    }

    #[test]
    fn an_uninstall_names_a_location_or_a_company() {
        let uninstall = |resource, at| Ok(Notice::Uninstall { resource, at });
        let (location, company) = (Resource::location("L1").expect("an id"), Resource::company("C1").expect("an id"));
        for (body, expected) in [
            (json!({"locationId": "L1"}), uninstall(location.clone(), None)),
            (json!({"companyId": "C1"}), uninstall(company.clone(), None)),
            (json!({"locationId": "L1", "companyId": "C1"}), uninstall(location, None)),
            (
                json!({"locationId": "", "companyId": "C1", "timestamp": 1_750_000_000_000_i64}),
                uninstall(company, Some(Millis(1_750_000_000_000))),
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
            (json!({"type": "INSTALL", "appId": "app"}), Ok(Notice::Install)),
            (json!({"type": "ContactCreate", "locationId": "L1"}), Ok(Notice::Other)),
            (json!({"type": "PlanChange", "appId": "app", "locationId": ["L1"]}), Ok(Notice::Other)),
            (json!({"appId": "app"}), Err(Refusal::Malformed)),
            (json!([]), Err(Refusal::Malformed)),
            (json!("UNINSTALL"), Err(Refusal::Malformed)),
        ] {
            assert_eq!(read(&body), expected, "{body}");
        }
        assert_eq!(Notice::read(b"\xff{", "app"), Err(Refusal::Malformed));
        assert_eq!(Notice::read(b"", "app"), Err(Refusal::Malformed));
    }

    #[test]
    fn an_instant_has_many_spellings() {
        let then = Some(Millis(1_750_000_000_123));
        for (timestamp, expected) in [
            (json!("2025-06-15T15:06:40.123Z"), then),
            (json!("2025-06-15T17:06:40.123+02:00"), then),
            (json!(1_750_000_000_123_i64), then),
            (json!("1750000000123"), then),
            (json!(1_750_000_000), Some(Millis(1_750_000_000_000))),
            (json!("yesterday"), None),
            (json!(""), None),
            (json!(0), None),
            (json!(-5), None),
            (json!(1.5), None),
            (json!(null), None),
            (json!({}), None),
            (json!("9999-12-31T23:59:59Z"), Some(Millis(253_402_300_799_000))),
        ] {
            assert_eq!(instant(&timestamp), expected, "{timestamp}");
        }
    }
}
