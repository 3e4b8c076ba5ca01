//! Which locations and companies a request names, wherever it does. Pure.
//!
//! Two use it: [`crate::relay::inference`], for requests that name their resource nowhere else, and [`crate::caller`], which
//! lets no request pass that names another location than the one its caller was allowed.
//!
//! | where | what names a location or company |
//! |---|---|
//! | headers | `x-location-id`, `location-id`, `locationId`, and the same for a company |
//! | path | the segment that stands for one in the platform's operations: [`operations`] |
//! | query, body | `locationId`, `location_id`, `companyId`, `company_id`, and `altId` for what `altType` says, but in the operations where `altId` is the caller's own id of a message |
//!
//! In a body these are members at the top: what is nested belongs to the platform's own objects. A body that is
//! compressed, in another encoding than UTF-8 or of an unknown type names nothing: it is passed on and not looked into.
//! Nothing depends on that but convenience, since a location's token works for that location only.

mod body;

use http::{HeaderMap, Method};

use super::path::{Path, Query};
use crate::domain::resource::{InvalidId, Kind, Resource};
use crate::platform::operations;
use crate::request::{Request, Unaddressed};

/// The parts of a request that can name something.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
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

impl<'a> From<&'a Request> for Parts<'a> {
    fn from(Request { method, path, query, headers, body, .. }: &'a Request) -> Self {
        Self { method, path, query, headers, body }
    }
}

impl<'a> From<&'a Unaddressed> for Parts<'a> {
    fn from(Unaddressed { method, path, query, headers, body, .. }: &'a Unaddressed) -> Self {
        Self { method, path, query, headers, body }
    }
}

/// Ids as they were written, each as often as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    locations: Vec<String>,
    companies: Vec<String>,
}

impl Names {
    /// What the headers name.
    #[must_use]
    pub fn in_headers(headers: &HeaderMap) -> Self {
        const LOCATION: [&str; 3] = ["x-location-id", "location-id", "locationid"];
        const COMPANY: [&str; 3] = ["x-company-id", "company-id", "companyid"];
        let mut names = Self::default();
        for (kind, spellings) in [(Kind::Location, LOCATION), (Kind::Company, COMPANY)] {
            for value in spellings.iter().flat_map(|spelling| headers.get_all(*spelling)) {
                // API Gateway joins several headers of a name. What is no text is no id, and must not go unnoticed.
                let values = value.to_str().unwrap_or("?").split(',');
                values.for_each(|value| names.add(kind, value.trim()));
            }
        }
        names
    }

    /// What path, query and body name.
    #[must_use]
    pub fn elsewhere(parts: &Parts<'_>) -> Self {
        let mut names = Self::default();
        let readings = parts.path.readings();
        operations::ids_in_path(parts.method, readings, |kind, id| names.add(kind, id));
        let mut tell = |mut fields: Fields| {
            if !fields.alternates.is_empty() && !operations::alt_id_names_an_account(parts.method, readings) {
                fields.alternates.clear();
            }
            fields.tell(&mut names);
        };
        if let Some(query) = parts.query.as_str() {
            let mut fields = Fields::default();
            fields.read_form(query.as_bytes());
            tell(fields);
        }
        if !parts.body.is_empty() {
            let mut fields = Fields::default();
            body::read(parts.headers, parts.body, &mut fields);
            tell(fields);
        }
        names
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

    /// The first of a kind, if one is named.
    ///
    /// # Errors
    /// It is no id.
    #[must_use]
    pub fn first(&self, kind: Kind) -> Option<Result<Resource, InvalidId>> {
        self.of(kind).first().map(|id| Resource::new(kind, id))
    }

    /// Whether another of the same kind is named. A company's request may name its locations, and a location's request
    /// its company: the platform knows whose they are.
    #[must_use]
    pub fn contradict(&self, resource: &Resource) -> bool {
        self.of(resource.kind()).iter().any(|id| id != resource.id())
    }
}

/// The members of a query or body that can name something.
#[derive(Debug, Default)]
struct Fields {
    names: Names,
    alternates: Vec<String>,
    /// Each one that is there: of several, servers differ in which they take.
    alternate_types: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Id(Kind),
    Alternate,
    AlternateType,
}

impl Field {
    fn of(name: &[u8]) -> Option<Self> {
        match name {
            b"locationId" | b"location_id" => Some(Self::Id(Kind::Location)),
            b"companyId" | b"company_id" => Some(Self::Id(Kind::Company)),
            b"altId" => Some(Self::Alternate),
            b"altType" => Some(Self::AlternateType),
            _ => None,
        }
    }

    /// The same for a form, with the brackets that the platform's servers read as the same name: `a[]`, `a[0]`, `[a]`.
    fn of_form(name: &str) -> Option<Self> {
        let name = name.strip_prefix('[').unwrap_or(name);
        Self::of(name.split(['[', ']']).next().unwrap_or_default().as_bytes())
    }
}

impl Fields {
    fn take(&mut self, field: Field, value: &str) {
        let value = value.trim();
        match field {
            Field::Id(kind) => self.names.add(kind, value),
            Field::Alternate if !value.is_empty() => self.alternates.push(value.to_owned()),
            Field::Alternate => {}
            Field::AlternateType => self.alternate_types.push(value.to_ascii_lowercase()),
        }
    }

    /// `a=1&b=2`.
    fn read_form(&mut self, form: &[u8]) {
        for (name, value) in url::form_urlencoded::parse(form) {
            if let Some(field) = Field::of_form(&name) {
                self.take(field, &value);
            }
        }
    }

    fn tell(self, names: &mut Names) {
        let Self { names: mut named, alternates, alternate_types: types } = self;
        // Operations that know locations only leave the type out.
        if types.is_empty() || types.iter().any(|t| matches!(&**t, "" | "location")) {
            named.locations.extend_from_slice(&alternates);
        }
        if types.iter().any(|t| matches!(&**t, "company" | "agency")) {
            named.companies.extend(alternates);
        }
        names.locations.append(&mut named.locations);
        names.companies.append(&mut named.companies);
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn of(path: &str, query: &str, headers: &[(&str, &str)], body: &[u8]) -> (Names, Names) {
        let headers: HeaderMap = headers
            .iter()
            .map(|(n, v)| {
                (n.parse::<HeaderName>().expect("a name"), HeaderValue::from_bytes(v.as_bytes()).expect("a value"))
            })
            .collect();
        let (path, query) = (Path::parse(path).expect("a path"), Query::parse(query).expect("a query"));
        let parts = Parts { method: &Method::POST, path: &path, query: &query, headers: &headers, body };
        (Names::in_headers(&headers), Names::elsewhere(&parts))
    }

    fn names(locations: &[&str], companies: &[&str]) -> Names {
        let texts = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        Names { locations: texts(locations), companies: texts(companies) }
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
    fn a_request_is_contradicted_by_another_of_its_kind_only() {
        let resource = |kind, id| Resource::new(kind, id).expect("an id");
        let (location, company) = (resource(Kind::Location, "L1"), resource(Kind::Company, "C1"));
        for (names, of_location, of_company) in [
            (names(&[], &[]), false, false),
            (names(&["L1"], &["C1"]), false, false),
            (names(&["L1", "L2"], &[]), true, false),
            (names(&[], &["C1", "C2"]), false, true),
            (names(&["?"], &[]), true, false),
        ] {
            assert_eq!(names.contradict(&location), of_location, "{names:?}");
            assert_eq!(names.contradict(&company), of_company, "{names:?}");
        }
    }
}
