//! Groups of event types, for metrics. A dimension of a metric must have few values, and the platform may add types.

/// Groups of types by the beginning of their names, in the order in which they are tried.
const FAMILIES: [(&str, &[&str]); 11] = [
    ("app", &["INSTALL", "UNINSTALL", "UPDATE", "PLAN_CHANGE"]),
    ("appointment", &["Appointment"]),
    ("contact", &["Contact"]),
    ("conversation", &["Conversation", "InboundMessage", "OutboundMessage", "ProviderOutboundMessage", "LCEmailStats"]),
    ("invoice", &["Invoice"]),
    ("location", &["Location"]),
    ("note", &["Note"]),
    ("opportunity", &["Opportunity"]),
    ("order", &["Order", "Product", "Price"]),
    ("task", &["Task"]),
    ("user", &["User"]),
];

/// The group of an event type.
pub fn family(kind: &str) -> &'static str {
    let is_of = |names: &[&str]| names.iter().any(|name| kind.starts_with(name));
    FAMILIES.iter().find(|(_, names)| is_of(names)).map_or("other", |(family, _)| family)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_in_one_of_few_groups() {
        for (kind, expected) in [
            ("INSTALL", "app"),
            ("PLAN_CHANGE", "app"),
            ("ContactDndUpdate", "contact"),
            ("InboundMessage", "conversation"),
            ("OpportunityStageUpdate", "opportunity"),
            ("PriceDelete", "order"),
            ("RecordCreate", "other"),
            ("", "other"),
        ] {
            assert_eq!(family(kind), expected, "{kind}");
        }
    }
}
