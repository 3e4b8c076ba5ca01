//! Operations that the platform allows with a company's token only. Pure.
//!
//! Many of them carry a location's id, so that they look like calls for a location; the platform would refuse them with
//! a text about the class of the token. `/oauth/**` is never relayed and not in the table. The table is short because nearly all operations take a location's token, and
//! it is compared with the platform's whole list by a test.

use http::Method;

use super::path::Path;
use super::request::Request;
use crate::problem::{Code, Problem};
use crate::resource::Kind;

/// Methods and the segments of a path. `*` is any segment; `**`, at the end, any number of them, none included.
const COMPANYS: [(&[Method], &str); 10] = [
    (&[Method::GET], "companies/*"),
    (&[Method::GET, Method::POST, Method::PUT, Method::DELETE], "custom-menus/**"),
    (&[Method::POST], "locations"),
    (&[Method::PUT, Method::DELETE], "locations/*"),
    (&[Method::GET, Method::PUT], "locations/*/permissions"),
    (&[Method::POST], "objects"),
    (&[Method::GET, Method::POST, Method::PUT], "saas/**"),
    (&[Method::GET, Method::POST, Method::PUT], "saas-api/**"),
    (&[Method::GET, Method::POST], "snapshots/**"),
    (&[Method::POST], "users/search/filter-by-email"),
];

/// Refuses a call for a location that only its company's token may make, and says which route takes it.
///
/// # Errors
/// [`Code::InvalidRequest`].
pub fn check(request: &Request) -> Result<(), Problem> {
    if request.resource.kind() == Kind::Company || !needs_company(&request.method, &request.path) {
        return Ok(());
    }
    let detail = "the platform takes this operation with a company's token only: call /relay/companies/{companyId}/… \
                  with the same path (or the resource {\"company\":\"{companyId}\"})";
    Err(Problem::new(Code::InvalidRequest, detail)
        .with("route", format!("/relay/companies/{{companyId}}{}", request.path.as_str())))
}

/// Whether the platform takes an operation with a company's token only.
#[must_use]
pub fn needs_company(method: &Method, path: &Path) -> bool {
    // Where routers could read the path differently both must agree: what may be meant otherwise is the platform's.
    path.readings().iter().all(|segments| {
        COMPANYS.iter().any(|(methods, pattern)| methods.contains(method) && matches(pattern, segments))
    })
}

fn matches(pattern: &str, segments: &[String]) -> bool {
    let mut segments = segments.iter();
    for part in pattern.split('/') {
        match (part, segments.next()) {
            ("**", _) => return true,
            ("*", Some(_)) => {}
            (name, Some(segment)) if name == segment => {}
            _ => return false,
        }
    }
    segments.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Resource;

    fn path(text: &str) -> Path {
        Path::parse(text).expect("a path")
    }

    #[test]
    fn the_table_says_what_the_published_operations_say() {
        let (mut companys, mut others) = (0, 0);
        for line in include_str!("../../../tests/it/data/operations.tsv").lines().skip(1) {
            let fields: Vec<_> = line.split('\t').collect();
            let (method, template, classes) = (fields[2], fields[3], fields[4]);
            if template.starts_with("/oauth/") {
                continue;
            }
            let expected = matches!(classes, "Agency-Access" | "Agency-Access-Only");
            *(if expected { &mut companys } else { &mut others }) += 1;
            let method: Method = method.parse().expect("a method");
            let found = needs_company(&method, &path(&template.replace(['{', '}'], "")));
            assert_eq!(found, expected, "{method} {template}: {classes}");
        }
        assert!(companys > 70 && others > 1_000, "only {companys} and {others} operations were looked at");
    }

    #[test]
    fn the_refusal_names_the_route_and_a_companys_call_is_let_be() {
        let (location, company) = (Resource::location("L1").expect("an id"), Resource::company("C1").expect("an id"));
        let request = |resource: &Resource| Request::new(resource.clone(), Method::PUT, path("/locations/L1"));
        let problem = check(&request(&location)).expect_err("refused");
        assert_eq!(problem.code, Code::InvalidRequest);
        assert_eq!(problem.members["route"], "/relay/companies/{companyId}/locations/L1");
        assert_eq!(check(&request(&company)), Ok(()));
        let read = Request::new(location, Method::GET, path("/locations/L1"));
        assert_eq!(check(&read), Ok(()));
    }
}
