//! The ids of locations and companies in a request. Pure.
//!
//! There are two users. [`crate::relay::inference`] finds the target of a request that names it only in this way.
//! [`crate::caller`] refuses a request that names another location than its target.
//!
//! | part | names of ids |
//! |---|---|
//! | headers | `x-location-id`, `location-id`, `locationId`, and the same for a company |
//! | path | the segments that are ids in the platform's operations: [`operations`] |
//! | query, body | `locationId`, `location_id`, `companyId`, `company_id`, and `altId` of the kind in `altType`, except in operations where `altId` is the caller's own id of a message |
//!
//! In a body, only members at the top count: nested members belong to the platform's own objects. A body that is
//! compressed, not in UTF-8, or of an unknown type is not read. That is safe, because a location's token works for that
//! location only.

mod body;

use http::{HeaderMap, Method};

use super::path::{Path, Query};
use crate::domain::resource::{InvalidId, Kind, Resource};
use crate::platform::operations;
use crate::request::Request;

/// The parts of a request that can contain ids.
#[derive(Clone, Copy, Debug)]
pub struct RequestParts<'a> {
    /// The method.
    pub method: &'a Method,
    /// The platform's path.
    pub path: &'a Path,
    /// The query.
    pub query: &'a Query,
    /// The caller's headers.
    pub headers: &'a HeaderMap,
    /// The body as sent.
    pub body: &'a [u8],
}

impl<'a, T> From<&'a Request<T>> for RequestParts<'a> {
    fn from(Request { method, path, query, headers, body, .. }: &'a Request<T>) -> Self {
        Self { method, path, query, headers, body }
    }
}

/// The ids in a request, in the order in which they occur. An id may occur several times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetIds {
    locations: Vec<String>,
    companies: Vec<String>,
}

impl TargetIds {
    /// The ids in the headers.
    pub fn in_headers(headers: &HeaderMap) -> Self {
        const LOCATION: [&str; 3] = ["x-location-id", "location-id", "locationid"];
        const COMPANY: [&str; 3] = ["x-company-id", "company-id", "companyid"];
        let mut ids = Self::default();
        for (kind, spellings) in [(Kind::Location, LOCATION), (Kind::Company, COMPANY)] {
            for value in spellings.iter().flat_map(|spelling| headers.get_all(*spelling)) {
                // API Gateway joins repeated headers with commas. A value that is not text becomes `?`, an invalid id, so
                // that the request is refused.
                let values = value.to_str().unwrap_or("?").split(',');
                values.for_each(|value| ids.add(kind, value.trim()));
            }
        }
        ids
    }

    /// The ids in path, query and body.
    pub fn elsewhere(parts: &RequestParts<'_>) -> Self {
        let mut ids = Self::default();
        let readings = parts.path.readings();
        operations::ids_in_path(parts.method, readings, |kind, id| ids.add(kind, id));
        let mut collect = |mut fields: IdFields| {
            if !fields.alt_ids.is_empty() && !operations::alt_id_names_an_account(parts.method, readings) {
                fields.alt_ids.clear();
            }
            fields.move_into(&mut ids);
        };
        if let Some(query) = parts.query.as_str() {
            let mut fields = IdFields::default();
            fields.read_form(query.as_bytes());
            collect(fields);
        }
        if !parts.body.is_empty() {
            let mut fields = IdFields::default();
            body::read(parts.headers, parts.body, &mut fields);
            collect(fields);
        }
        ids
    }

    fn add(&mut self, kind: Kind, id: &str) {
        if !id.is_empty() {
            self.of_mut(kind).push(id.to_owned());
        }
    }

    fn of_mut(&mut self, kind: Kind) -> &mut Vec<String> {
        match kind {
            Kind::Location => &mut self.locations,
            Kind::Company => &mut self.companies,
        }
    }

    fn of(&self, kind: Kind) -> &[String] {
        match kind {
            Kind::Location => &self.locations,
            Kind::Company => &self.companies,
        }
    }

    /// The first id of a kind, if there is one. It is an error if it is not a valid id.
    pub fn first(&self, kind: Kind) -> Option<Result<Resource, InvalidId>> {
        self.of(kind).first().map(|id| Resource::new(kind, id))
    }

    /// True if the request names another resource of the same kind. A company's request may name its locations, and a
    /// location's request its company: the platform checks that they belong together.
    pub fn conflict_with(&self, resource: &Resource) -> bool {
        self.of(resource.kind()).iter().any(|id| id != resource.id())
    }
}

/// The members of a query or body that can be ids.
#[derive(Debug, Default)]
struct IdFields {
    ids: TargetIds,
    alt_ids: Vec<String>,
    /// All values of `altType`. If there are several, servers differ in which one they take.
    alt_types: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IdField {
    Id(Kind),
    AltId,
    AltType,
}

impl IdField {
    fn of(name: &[u8]) -> Option<Self> {
        match name {
            b"locationId" | b"location_id" => Some(Self::Id(Kind::Location)),
            b"companyId" | b"company_id" => Some(Self::Id(Kind::Company)),
            b"altId" => Some(Self::AltId),
            b"altType" => Some(Self::AltType),
            _ => None,
        }
    }

    /// The field of a form. The platform's servers read `a[]`, `a[0]` and `[a]` as the name `a`.
    fn of_form(name: &str) -> Option<Self> {
        let name = name.strip_prefix('[').unwrap_or(name);
        Self::of(name.split(['[', ']']).next().unwrap_or_default().as_bytes())
    }
}

impl IdFields {
    fn take(&mut self, field: IdField, value: &str) {
        let value = value.trim();
        match field {
            IdField::Id(kind) => self.ids.add(kind, value),
            IdField::AltId if !value.is_empty() => self.alt_ids.push(value.to_owned()),
            IdField::AltId => {}
            IdField::AltType => self.alt_types.push(value.to_ascii_lowercase()),
        }
    }

    /// Reads the fields of a form or query: `a=1&b=2`.
    fn read_form(&mut self, form: &[u8]) {
        for (name, value) in url::form_urlencoded::parse(form) {
            if let Some(field) = IdField::of_form(&name) {
                self.take(field, &value);
            }
        }
    }

    fn move_into(self, ids: &mut TargetIds) {
        let Self { ids: mut own, alt_ids, alt_types: types } = self;
        // Operations that take locations only have no `altType`.
        if types.is_empty() || types.iter().any(|t| matches!(&**t, "" | "location")) {
            own.locations.extend_from_slice(&alt_ids);
        }
        if types.iter().any(|t| matches!(&**t, "company" | "agency")) {
            own.companies.extend(alt_ids);
        }
        ids.locations.append(&mut own.locations);
        ids.companies.append(&mut own.companies);
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn of(path: &str, query: &str, headers: &[(&str, &str)], body: &[u8]) -> (TargetIds, TargetIds) {
        let headers: HeaderMap = headers
            .iter()
            .map(|(n, v)| {
                (n.parse::<HeaderName>().expect("a name"), HeaderValue::from_bytes(v.as_bytes()).expect("a value"))
            })
            .collect();
        let (path, query) = (Path::parse(path).expect("a path"), Query::parse(query).expect("a query"));
        let parts = RequestParts { method: &Method::POST, path: &path, query: &query, headers: &headers, body };
        (TargetIds::in_headers(&headers), TargetIds::elsewhere(&parts))
    }

    fn names(locations: &[&str], companies: &[&str]) -> TargetIds {
        let texts = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        TargetIds { locations: texts(locations), companies: texts(companies) }
    }

    #[test]
    fn every_spelling_of_a_header_names() {
        for (header, value, expected) in [
            ("x-location-id", "L1", names(&["L1"], &[])),
            ("Location-Id", " L1 ", names(&["L1"], &[])),
            ("locationId", "L1,L2", names(&["L1", "L2"], &[])),
            ("X-Company-ID", "C1", names(&[], &["C1"])),
            ("company-id", "C1", names(&[], &["C1"])),
            ("companyId", "", names(&[], &[])),
            ("locationId", "é", names(&["?"], &[])),
            ("x-location", "L1", names(&[], &[])),
        ] {
            assert_eq!(of("/x", "", &[(header, value)], b"").0, expected, "{header}: {value}");
        }
    }

    #[test]
    fn a_query_names_by_its_own_names() {
        for (query, expected) in [
            ("locationId=L1", names(&["L1"], &[])),
            ("location_id=L1&companyId=C1", names(&["L1"], &["C1"])),
            ("company_id=C1&locationId=", names(&[], &["C1"])),
            ("locationId=L1&locationId=L2", names(&["L1", "L2"], &[])),
            ("%6CocationId=%4C1", names(&["L1"], &[])),
            ("locationId%5B%5D=L1&locationId[0]=L2&[locationId]=L3", names(&["L1", "L2", "L3"], &[])),
            ("filter[locationId]=L9&locationIds=L9&xlocationId=L9&q=locationId=L9", names(&[], &[])),
            ("altId=L1&altType=location", names(&["L1"], &[])),
            ("altType=company&altId=C1", names(&[], &["C1"])),
            ("altId=L1", names(&["L1"], &[])),
            ("altId=U1&altType=user", names(&[], &[])),
            ("altType=location", names(&[], &[])),
            ("altId=L1&altType=Location", names(&["L1"], &[])),
            ("altId=L1&altType=location&altType=user", names(&["L1"], &[])),
            ("altId=X1&altType=company&altType=location", names(&["X1"], &["X1"])),
        ] {
            assert_eq!(of("/x", query, &[], b"").1, expected, "{query}");
        }
    }

    #[test]
    fn a_messages_own_id_names_no_account() {
        for body in [r#"{"altId":"M1"}"#, r#"{"altId":"M1","altType":"location"}"#, r#"{"altId":"<a@b.example>"}"#] {
            let (none, account) = (names(&[], &[]), !body.contains('@'));
            assert_eq!(of("/conversations/messages/inbound", "altId=M2", &[], body.as_bytes()).1, none, "{body}");
            let elsewhere = of("/invoices/", "", &[], body.as_bytes()).1;
            assert_eq!(elsewhere == names(&["M1"], &[]), account, "the control: {body}");
        }
        let both = br#"{"altId":"M1","locationId":"L1"}"#;
        assert_eq!(of("/conversations/messages/outbound", "", &[], both).1, names(&["L1"], &[]));
    }

    #[test]
    fn a_request_conflicts_with_another_id_of_its_kind_only() {
        let resource = |kind, id| Resource::new(kind, id).expect("an id");
        let (location, company) = (resource(Kind::Location, "L1"), resource(Kind::Company, "C1"));
        for (names, of_location, of_company) in [
            (names(&[], &[]), false, false),
            (names(&["L1"], &["C1"]), false, false),
            (names(&["L1", "L2"], &[]), true, false),
            (names(&[], &["C1", "C2"]), false, true),
            (names(&["?"], &[]), true, false),
        ] {
            assert_eq!(names.conflict_with(&location), of_location, "{names:?}");
            assert_eq!(names.conflict_with(&company), of_company, "{names:?}");
        }
    }
}
