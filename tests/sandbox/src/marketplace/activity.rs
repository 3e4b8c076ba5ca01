//! The webhooks that follow a call of the platform's API, such as `ContactCreate` after a contact was created.

use serde_json::{Map, Value, json};

use super::{Platform, grants::Resource};

/// Types of events that a location has all day, for a burst of webhooks.
const BURST: [&str; 4] = ["ContactCreate", "InboundMessage", "OpportunityStageUpdate", "AppointmentCreate"];

/// Returns the type of the event that follows a call which the platform has carried out.
fn kind_of(method: &str, segments: &[&str], body: &Value) -> Option<&'static str> {
    let segments: Vec<&str> = segments.iter().copied().filter(|segment| !segment.is_empty()).collect();
    Some(match (method, segments.as_slice()) {
        ("POST", ["contacts"]) => "ContactCreate",
        ("PUT", ["contacts", _]) => "ContactUpdate",
        ("DELETE", ["contacts", _]) => "ContactDelete",
        ("POST", ["contacts", _, "notes"]) => "NoteCreate",
        ("POST", ["contacts", _, "tasks"]) => "TaskCreate",
        ("POST", ["conversations", "messages"]) => "OutboundMessage",
        ("POST", ["conversations", "messages", "inbound"]) => "InboundMessage",
        ("POST", ["opportunities"]) => "OpportunityCreate",
        ("PUT", ["opportunities", _]) if body["pipelineStageId"].is_string() => "OpportunityStageUpdate",
        ("PUT", ["opportunities", _]) => "OpportunityUpdate",
        ("PUT", ["opportunities", _, "status"]) => "OpportunityStatusUpdate",
        ("DELETE", ["opportunities", _]) => "OpportunityDelete",
        ("POST", ["calendars", "events", "appointments"]) => "AppointmentCreate",
        ("PUT", ["calendars", "events", "appointments", _]) => "AppointmentUpdate",
        ("POST", ["invoices"]) => "InvoiceCreate",
        _ => return None,
    })
}

impl Platform {
    /// Sends the webhook that follows a call, if there is one.
    pub(super) fn after_call(&self, resource: &Resource, method: &str, segments: &[&str], body: &[u8]) {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let Some(kind) = kind_of(method, segments, &body) else { return };
        let mut members = body.as_object().cloned().unwrap_or_default();
        // A call names the channel of a message in `type`, and the event names it in `messageType`.
        if kind.ends_with("Message")
            && let Some(channel) = members.remove("type")
        {
            members.insert("messageType".to_owned(), channel);
        }
        let id = segments.iter().skip(1).find(|segment| segment.len() > 12 && !segment.contains("appointments"));
        members.insert("id".to_owned(), id.map_or_else(|| json!(shared::domain::random::hex::<10>()), |id| json!(id)));
        self.send_event(kind, resource, members);
    }

    /// Sends events of several types at once, as after a bulk import.
    pub fn send_events(&self, resource: &Resource, times: usize) {
        self.control(format!("{times} webhooks of {resource} at once"));
        for kind in BURST.into_iter().cycle().take(times) {
            let id = json!(shared::domain::random::hex::<10>());
            self.send_event(kind, resource, Map::from_iter([("id".to_owned(), id)]));
        }
    }

    /// Sends one event of a resource.
    fn send_event(&self, kind: &str, resource: &Resource, mut members: Map<String, Value>) {
        if kind.starts_with("Appointment") {
            members = Map::from_iter([("appointment".to_owned(), Value::Object(members))]);
        }
        let (name, id) = match resource {
            Resource::Location(id) => ("locationId", id),
            Resource::Company(id) => ("companyId", id),
        };
        members.insert(name.to_owned(), json!(id));
        self.webhooks.send_event(kind, resource, members, self.clock.now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_changes_something_is_followed_by_its_event() {
        for (method, path, body, expected) in [
            ("POST", "contacts/", json!({}), Some("ContactCreate")),
            ("GET", "contacts/", json!({}), None),
            ("POST", "conversations/messages", json!({}), Some("OutboundMessage")),
            ("PUT", "opportunities/o1", json!({"pipelineStageId": "s"}), Some("OpportunityStageUpdate")),
            ("PUT", "opportunities/o1", json!({"name": "n"}), Some("OpportunityUpdate")),
            ("POST", "calendars/events/appointments", json!({}), Some("AppointmentCreate")),
            ("POST", "calendars/", json!({}), None),
        ] {
            let segments: Vec<&str> = path.split('/').collect();
            assert_eq!(kind_of(method, &segments, &body), expected, "{method} {path}");
        }
    }
}
