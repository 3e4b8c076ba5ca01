//! Refusal of operations that need a company's token, on a location's route. Pure.
//!
//! Many of these operations have a location's id, so they look like calls for a location. The platform would refuse them
//! with a text about the class of the token, which does not help the caller.

use crate::domain::problem::{Code, Problem};
use crate::domain::resource::Kind;
use crate::platform::operations::needs_company_token;
use crate::request::Request;

/// Refuses a call for a location if the operation needs its company's token. The refusal names the route to use.
pub fn check(request: &Request) -> Result<(), Problem> {
    if request.resource.kind() == Kind::Company || !needs_company_token(&request.method, request.path.readings()) {
        return Ok(());
    }
    let detail = "the platform takes only a company's token for this operation: call /relay/companies/{companyId}/… \
                  with the same path (or the resource {\"company\":\"{companyId}\"})";
    Err(Problem::new(Code::InvalidRequest, detail)
        .with("route", format!("/relay/companies/{{companyId}}{}", request.path.as_str())))
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::domain::resource::Resource;
    use crate::request::path::Path;

    fn path(text: &str) -> Path {
        Path::parse(text).expect("a path")
    }

    #[test]
    fn the_refusal_names_the_route_and_a_companys_call_passes() {
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
