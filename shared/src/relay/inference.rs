//! Inference of the target of a request from the ids in it ([`crate::request::target_ids`]). Pure.
//!
//! Clients of the platform's own API name the target in this way. Ids in headers come first, then ids in path, query and
//! body. If the request names a location and a company, the operation decides: some operations take only a company's token
//! ([`crate::platform::operations`]), all others are for the location. Two different ids of the chosen kind are a conflict.

use crate::domain::problem::{Code, Problem};
use crate::domain::resource::{InvalidId, Kind, Resource};
use crate::platform::operations::needs_company_token;
use crate::request::target_ids::{RequestParts, TargetIds};

/// The target of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This resource.
    Resource(Resource),
    /// The company of this location: the operation needs the company's token, and the request names only the location.
    CompanyOf(Resource),
}

/// The reason why the target is unclear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// The request names no location or company.
    Unclear,
    /// The request names two different ones.
    Conflict,
    /// A named id is not valid.
    NoId(InvalidId),
}

/// Finds the target of a request.
pub fn infer(parts: &RequestParts<'_>) -> Result<Target, TargetError> {
    let by_header = TargetIds::in_headers(parts.headers);
    let elsewhere = TargetIds::elsewhere(parts);
    let sources = [&by_header, &elsewhere];
    let first = |kind| sources.iter().find_map(|ids| ids.first(kind));
    let agreed = |found: Option<Result<Resource, InvalidId>>| -> Result<Option<Resource>, TargetError> {
        let Some(resource) = found.transpose().map_err(TargetError::NoId)? else { return Ok(None) };
        if sources.iter().any(|ids| ids.conflict_with(&resource)) {
            return Err(TargetError::Conflict);
        }
        Ok(Some(resource))
    };
    if needs_company_token(parts.method, parts.path.readings()) {
        if let Some(company) = agreed(first(Kind::Company))? {
            return Ok(Target::Resource(company));
        }
        return agreed(first(Kind::Location))?.map(Target::CompanyOf).ok_or(TargetError::Unclear);
    }
    // A company in the headers is the target, even if the rest of the request names one of its locations.
    let by_kind = [
        by_header.first(Kind::Location),
        by_header.first(Kind::Company),
        elsewhere.first(Kind::Location),
        elsewhere.first(Kind::Company),
    ];
    agreed(by_kind.into_iter().flatten().next())?.map(Target::Resource).ok_or(TargetError::Unclear)
}

impl From<TargetError> for Problem {
    fn from(error: TargetError) -> Self {
        match error {
            TargetError::Unclear => Self::new(
                Code::ResourceUnclear,
                "nothing in this request names its location or company: send the header x-location-id or x-company-id",
            ),
            TargetError::Conflict => Self::new(
                Code::ResourceConflict,
                "headers, path, query and body of this request name different locations or companies",
            ),
            TargetError::NoId(error) => Self::new(Code::InvalidRequest, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::header::CONTENT_TYPE;
    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::*;
    use crate::request::path::{Path, Query};

    struct Sent<'a> {
        method: &'a str,
        path: &'a str,
        query: &'a str,
        headers: &'a [(&'static str, &'static str)],
        body: &'a str,
    }

    const GET: Sent<'static> = Sent { method: "GET", path: "/contacts/1", query: "", headers: &[], body: "" };

    fn inferred(sent: &Sent<'_>) -> Result<Target, TargetError> {
        let mut headers: HeaderMap =
            sent.headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect();
        headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        let (path, query) = (Path::parse(sent.path).expect("a path"), Query::parse(sent.query).expect("a query"));
        let method = sent.method.parse().expect("a method");
        infer(&RequestParts {
            method: &method,
            path: &path,
            query: &query,
            headers: &headers,
            body: sent.body.as_bytes(),
        })
    }

    fn location(id: &str) -> Target {
        Target::Resource(Resource::location(id).expect("an id"))
    }

    fn company(id: &str) -> Target {
        Target::Resource(Resource::company(id).expect("an id"))
    }

    #[test]
    fn headers_come_first_and_no_id_may_conflict() {
        let both = &[("x-location-id", "L1"), ("x-company-id", "C1")][..];
        let cases = [
            ("nothing", GET, Err(TargetError::Unclear)),
            ("a header", Sent { headers: &[("locationid", "L1")], ..GET }, Ok(location("L1"))),
            (
                "two that agree",
                Sent { headers: &[("locationid", "L1"), ("x-location-id", "L1")], ..GET },
                Ok(location("L1")),
            ),
            (
                "two that do not",
                Sent { headers: &[("locationid", "L1"), ("x-location-id", "L2")], ..GET },
                Err(TargetError::Conflict),
            ),
            ("both kinds", Sent { headers: both, ..GET }, Ok(location("L1"))),
            (
                "both kinds where a company is needed",
                Sent { headers: both, method: "POST", path: "/locations/", ..GET },
                Ok(company("C1")),
            ),
            (
                "a header against the query",
                Sent { headers: both, query: "locationId=L2", ..GET },
                Err(TargetError::Conflict),
            ),
            (
                "a header against the path",
                Sent { headers: both, path: "/locations/L2/tags", ..GET },
                Err(TargetError::Conflict),
            ),
            (
                "a header against the body",
                Sent { headers: both, body: r#"{"altId":"L2"}"#, ..GET },
                Err(TargetError::Conflict),
            ),
            (
                "a location and another company",
                Sent { headers: both, query: "companyId=C2", ..GET },
                Ok(location("L1")),
            ),
            (
                "a company that names a location",
                Sent { headers: &[("companyid", "C1")], query: "locationId=L1", ..GET },
                Ok(company("C1")),
            ),
            (
                "a company against another",
                Sent { headers: &[("companyid", "C1")], query: "companyId=C2", ..GET },
                Err(TargetError::Conflict),
            ),
            (
                "query against body",
                Sent { query: "locationId=L1", body: r#"{"locationId":"L2"}"#, ..GET },
                Err(TargetError::Conflict),
            ),
            (
                "the query",
                Sent { query: "companyId=C1&locationId=L1", path: "/users/search", ..GET },
                Ok(location("L1")),
            ),
            ("the query's company", Sent { query: "companyId=C1", path: "/users/search", ..GET }, Ok(company("C1"))),
            (
                "a company needed, one named",
                Sent { method: "PUT", path: "/locations/L1", body: r#"{"companyId":"C1"}"#, ..GET },
                Ok(company("C1")),
            ),
            (
                "a company needed, its location named",
                Sent { method: "DELETE", path: "/locations/L1", ..GET },
                Ok(Target::CompanyOf(Resource::location("L1").expect("an id"))),
            ),
            ("a company needed, nobody named", Sent { path: "/custom-menus/", ..GET }, Err(TargetError::Unclear)),
            ("no id", Sent { query: "locationId=a/b", ..GET }, Err(TargetError::NoId(InvalidId))),
        ];
        for (name, sent, expected) in cases {
            assert_eq!(inferred(&sent), expected, "{name}");
        }
    }

    /// Values of `altId`: the account's id, another account's id, a UUID, the id of an email.
    const ALT_IDS: [&str; 4] = ["L1", "L2", "0f8c1e6a-7b1d-4c55-9a0e-1f2e3d4c5b6a", "<1.2@mail.example>"];

    /// The request of an operation, with its ids in the documented places.
    fn documented(template: &str, places: &str, alt_id: &str) -> (String, String, String) {
        let path = template.replace("{locationId}", "L1").replace("{companyId}", "C1").replace(['{', '}'], "");
        let (mut query, mut body) = (Vec::new(), serde_json::Map::new());
        for place in places.split(',').filter(|place| *place != "-") {
            let (part, name) = place.split_once(':').expect("part:name");
            let value = match name {
                "locationId" | "location_id" => "L1",
                "altId" => alt_id,
                "companyId" => "C1",
                "altType" => "location",
                other => panic!("{other} is new in the table"),
            };
            match part {
                "path" => assert!(path.contains(value), "{template}"),
                "query" => query.push(format!("{name}={value}")),
                "body" => {
                    body.insert(name.to_owned(), value.into());
                }
                other => panic!("{other} is new in the table"),
            }
        }
        let body = if body.is_empty() { String::new() } else { serde_json::Value::Object(body).to_string() };
        (path, query.join("&"), body)
    }

    #[test]
    fn every_published_operation_finds_its_resource_or_asks_for_a_header() {
        const BOTH: &[(&str, &str)] = &[("x-location-id", "L1"), ("x-company-id", "C1")];
        let (mut named, mut unnamed) = (0, 0);
        for line in include_str!("../../../tests/it/data/operations.tsv").lines().skip(1) {
            let fields: Vec<_> = line.split('\t').collect();
            let (method, template, classes, places) = (fields[2], fields[3], fields[4], fields[6]);
            let case = format!("{method} {template} ({classes}, {places})");
            let is_disputed =
                matches!((method, template), ("GET", "/locations/{locationId}/permissions") | ("POST", "/objects/"));
            let of_company = matches!(classes, "Agency-Access" | "Agency-Access-Only")
                && !template.starts_with("/oauth/")
                && !is_disputed;
            // Here `altId` is the id of the message. No other operation has `altId` without `altType`.
            let is_own_id =
                method == "POST" && template.starts_with("/conversations/messages/") && places == "body:altId";
            let names_location = places.contains("ocation") || (places.contains("altId") && !is_own_id);
            let expected = match (of_company, places.contains("companyId"), names_location) {
                (_, false, false) => Err(TargetError::Unclear),
                (true, true, _) | (false, true, false) => Ok(company("C1")),
                (true, false, true) => Ok(Target::CompanyOf(Resource::location("L1").expect("an id"))),
                (false, _, true) => Ok(location("L1")),
            };
            *(if expected.is_ok() { &mut named } else { &mut unnamed }) += 1;
            let with_headers = if of_company { company("C1") } else { location("L1") };
            for alt_id in ALT_IDS {
                let (path, query, body) = documented(template, places, alt_id);
                let sent = Sent { method, path: &path, query: &query, headers: &[], body: &body };
                let is_another_account = places.contains("altId") && !is_own_id && alt_id != "L1";
                if !is_another_account {
                    assert_eq!(inferred(&sent), expected, "{case} {alt_id}");
                }
                let helped = inferred(&Sent { headers: BOTH, ..sent });
                let expected = if is_another_account { Err(TargetError::Conflict) } else { Ok(with_headers.clone()) };
                assert_eq!(helped, expected, "{case} {alt_id}");
            }
        }
        assert_eq!((named, unnamed), (952, 251), "of 1,203 operations");
    }
}
