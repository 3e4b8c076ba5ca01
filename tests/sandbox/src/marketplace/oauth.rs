//! The endpoints `/oauth/token`, `/oauth/locationToken` and `/oauth/installedLocations`, the last two also under their
//! names of v3, with the platform's own messages.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::State as Shared,
    response::Response,
    routing::{get, post},
};
use http::{HeaderMap, Method, Request};
use serde_json::{Value, json};

use super::{
    ApiVersions, Platform, State, TokenRequest,
    api::{Caller, version_problem},
    faults::{Endpoint, Fault, PlatformAnswer, strike},
    grants::{Pair, Refusal, Resource},
};
use crate::{events::Event, form::Form, identity::SCOPES};

pub(super) fn routes() -> Router<Arc<Platform>> {
    Router::new()
        .route("/oauth/token", post(token))
        .route("/oauth/locationToken", post(mint))
        .route("/oauth/location-token", post(mint))
        .route("/oauth/installedLocations", get(installed_locations))
        .route("/oauth/installed-locations", get(installed_locations))
}

const LARGEST_FORM: usize = 64 * 1024;

/// The platform's decision about a token request.
struct Decision {
    grant: String,
    resource: Option<Resource>,
    outcome: String,
    answer: PlatformAnswer,
}

impl Decision {
    fn refused(grant: &str, resource: Option<Resource>, answer: PlatformAnswer, outcome: &str) -> Self {
        Self { grant: grant.to_owned(), resource, outcome: outcome.to_owned(), answer }
    }
}

async fn token(Shared(platform): Shared<Arc<Platform>>, request: Request<Body>) -> Response {
    let headers = request.headers().clone();
    let body = to_bytes(request.into_body(), LARGEST_FORM).await.unwrap_or_default();
    let Some(form) = Form::read(&headers, &body) else {
        let refusal = PlatformAnswer::json(
            422,
            &json!({ "statusCode": 422, "message": ["body must be a form or JSON"], "error": "Unprocessable Entity" }),
        );
        return refusal.into_response();
    };
    let camel = says_v3(&headers);
    let form = if camel { form.camel_case_only() } else { form };
    let grant = form.get("grant_type").unwrap_or_default().to_owned();
    if let Some((noted_as, refusal)) = platform.token_endpoint_refusal(&headers) {
        let noted_as = if noted_as.is_empty() { &grant } else { noted_as };
        return platform.refuse_early(noted_as, refusal);
    }
    let at: &[Endpoint] = match grant.as_str() {
        "authorization_code" => &[Endpoint::Token, Endpoint::Exchange],
        "refresh_token" => &[Endpoint::Token, Endpoint::Refresh],
        _ => &[Endpoint::Token],
    };
    platform.answer(at, &grant, || decide(&platform, &grant, &form, camel)).await
}

/// The grant under which requests are recorded that the platform does not have in the version that they name.
const OTHER_VERSION: &str = "other_version";

fn says_v3(headers: &HeaderMap) -> bool {
    headers.get("version").is_some_and(|version| version == "v3")
}

/// Returns the answer for a path that the platform does not have in the version that the request names.
fn not_offered(api: ApiVersions, method: &Method, path: &str, headers: &HeaderMap) -> Option<PlatformAnswer> {
    let is_v3_path = path.contains('-');
    let version = headers.get("version").and_then(|version| version.to_str().ok()).unwrap_or("none");
    let other_version = format!("Endpoint {method} {path} not available in API version {version}");
    match (api, is_v3_path, says_v3(headers)) {
        (ApiVersions::V2, _, true) => Some(PlatformAnswer::refusal(401, "version header is invalid")),
        (ApiVersions::V2, true, false) => Some(PlatformAnswer::refusal(404, &format!("Cannot {method} {path}"))),
        (ApiVersions::Both, true, false) => Some(PlatformAnswer::refusal(404, "Not Found")),
        (ApiVersions::Both, false, true) => Some(PlatformAnswer::refusal(400, &other_version)),
        (ApiVersions::V3, false, _) | (ApiVersions::V3, _, false) => {
            let error = json!({ "code": "FAILED_PRECONDITION", "message": other_version, "resolution": "use v3" });
            Some(PlatformAnswer::json(400, &json!({ "error": error })))
        }
        (ApiVersions::Both | ApiVersions::V2 | ApiVersions::V3, ..) => None,
    }
}

fn decide(platform: &Platform, grant: &str, form: &Form, camel: bool) -> Decision {
    let now_ms = platform.clock.now_ms();
    let mut state = platform.state();
    let refused = |resource, answer: PlatformAnswer, why: &str| Decision::refused(grant, resource, answer, why);
    let bad = |message: &str| refused(None, PlatformAnswer::refusal(400, message), message);
    let wrong_client = || {
        let why = "Invalid client credentials!";
        refused(None, unauthorized(why), why)
    };
    for (field, name) in [("client_id", "clientId"), ("client_secret", "clientSecret"), ("grant_type", "grantType")] {
        if form.get(field).is_none_or(str::is_empty) {
            return bad(&format!("Missing parameter: {name}"));
        }
    }
    let client_is_right = form.get("client_id") == Some(state.options.client_id.as_str())
        && form.get("client_secret") == Some(state.options.client_secret.as_str());
    let life_ms = state.life_ms();
    let granted = match grant {
        "authorization_code" => {
            let Some(code) = form.get("code") else { return bad("Missing parameter: code") };
            state.ledger.code(code);
            // The platform checks the code before it checks the client.
            if !state.grants.knows_code(code, now_ms) {
                let why = "Authorization code not found";
                return refused(None, unauthorized(why), why);
            }
            if !client_is_right {
                return wrong_client();
            }
            state.grants.redeem(code, form.get("redirect_uri"), life_ms, now_ms)
        }
        "refresh_token" => {
            let Some(token) = form.get("refresh_token") else { return bad("Missing parameter: refreshToken") };
            if !client_is_right {
                return wrong_client();
            }
            let rotation = state.options.rotation;
            let rotated = state.grants.rotate(token, rotation, life_ms, now_ms);
            if let Err(refusal) = rotated {
                let owner = state.grants.owner(token).cloned();
                let (answer, why) = refusal_answer(refusal);
                return refused(owner, answer, why);
            }
            rotated
        }
        _ => return bad("Invalid parameter: grantType"),
    };
    match granted {
        Ok(pair) => {
            let value = pair_answer(&pair, life_ms, camel, &state);
            Decision {
                grant: grant.to_owned(),
                resource: Some(pair.resource),
                outcome: "granted".to_owned(),
                answer: PlatformAnswer::json(200, &value),
            }
        }
        Err(refusal) => {
            let (answer, why) = refusal_answer(refusal);
            refused(None, answer, why)
        }
    }
}

fn unauthorized(description: &str) -> PlatformAnswer {
    PlatformAnswer::json(401, &json!({ "error": "UnAuthorized!", "error_description": description }))
}

fn refusal_answer(refusal: Refusal) -> (PlatformAnswer, &'static str) {
    let message = match refusal {
        Refusal::CodeNotFound => return (unauthorized("Authorization code not found"), "Authorization code not found"),
        Refusal::RedirectMismatch => "Invalid parameter: redirectUri",
        Refusal::RefreshTokenInvalid => "Invalid grant: refresh token is invalid",
        Refusal::NotActive => "Location is not active",
    };
    (PlatformAnswer::refusal(400, message), message)
}

/// Builds the answer with a token pair. The five names of RFC 6749 are in snake case and the others in camel case; in
/// v3, all names are in camel case.
fn pair_answer(pair: &Pair, life_ms: u64, camel: bool, state: &State) -> Value {
    let name = |snake: &'static str, camel_name: &'static str| if camel { camel_name } else { snake };
    let mut value = json!({
        name("access_token", "accessToken"): pair.access,
        name("token_type", "tokenType"): "Bearer",
        name("expires_in", "expiresIn"): life_ms / 1000,
        name("refresh_token", "refreshToken"): pair.refresh,
        "scope": SCOPES,
        "refreshTokenId": shared::domain::random::hex::<12>(),
        "companyId": pair.company,
        "userId": "HLuser00000000000001",
        "traceId": crate::identity::uuid(),
    });
    match &pair.resource {
        Resource::Location(id) => {
            value["userType"] = json!("Location");
            value["locationId"] = json!(id);
            value["isBulkInstallation"] = json!(false);
        }
        Resource::Company(_) => {
            let approved: Vec<_> = state.installed_of(&pair.company).map(|location| location.id.as_str()).collect();
            value["userType"] = json!("Company");
            value["isBulkInstallation"] = json!(true);
            value["approvedLocations"] = json!(approved);
            value["approveAllLocations"] = json!(state.not_installed.is_empty());
            value["installToFutureLocations"] = json!(state.not_installed.is_empty());
        }
    }
    value
}

async fn mint(Shared(platform): Shared<Arc<Platform>>, request: Request<Body>) -> Response {
    let headers = request.headers().clone();
    if let Some(refusal) = not_offered(platform.options().api, request.method(), request.uri().path(), &headers) {
        return platform.refuse_early(OTHER_VERSION, refusal);
    }
    let body = to_bytes(request.into_body(), LARGEST_FORM).await.unwrap_or_default();
    platform.answer(&[Endpoint::Mint], "mint", || mint_one(&platform, &headers, &body)).await
}

fn mint_one(platform: &Platform, headers: &HeaderMap, body: &[u8]) -> Decision {
    let now_ms = platform.clock.now_ms();
    let mut state = platform.state();
    let form = Form::read(headers, body);
    let location = form.as_ref().and_then(|form| form.get("locationId")).unwrap_or_default().to_owned();
    let resource = Some(Resource::Location(location.clone()));
    let refused = |answer: PlatformAnswer, why: &str| Decision::refused("mint", resource.clone(), answer, why);
    let company = match company_caller(&state, headers, now_ms) {
        Ok(company) => company,
        Err((answer, why)) => return refused(answer, why),
    };
    let Some(form) = form else {
        return refused(PlatformAnswer::refusal(422, "body must be a form"), "unreadable");
    };
    if form.get("companyId") != Some(company.as_str()) {
        return refused(PlatformAnswer::refusal(403, NO_ACCESS), "other company");
    }
    if !state.installed_of(&company).any(|known| known.id == location) {
        return refused(PlatformAnswer::refusal(403, NO_ACCESS), "not installed there");
    }
    let life_ms = state.life_ms();
    let pair = state.grants.begin(Resource::Location(location), &company, life_ms, now_ms);
    let value = pair_answer(&pair, life_ms, says_v3(headers), &state);
    Decision {
        grant: "mint".to_owned(),
        resource: Some(pair.resource),
        outcome: "granted".to_owned(),
        answer: PlatformAnswer::json(201, &value),
    }
}

const NO_ACCESS: &str = "The token does not have access to this location.";

/// Returns the id of the agency that calls. The headers must have a valid agency token and a valid version.
fn company_caller(state: &State, headers: &HeaderMap, now_ms: u64) -> Result<String, (PlatformAnswer, &'static str)> {
    let caller = Caller::of(state, headers, now_ms);
    let (resource, company) = match caller {
        Caller::Known(resource, company) => (resource, company),
        Caller::Expired(_) | Caller::Unknown => {
            return Err((PlatformAnswer::refusal(401, "Invalid JWT"), "invalid token"));
        }
    };
    if let Some(problem) = version_problem(state.options.api, headers) {
        return Err((PlatformAnswer::refusal(401, problem), problem));
    }
    match resource {
        Resource::Company(_) => Ok(company),
        Resource::Location(_) => Err((PlatformAnswer::refusal(401, super::api::WRONG_CLASS), "wrong class")),
    }
}

async fn installed_locations(Shared(platform): Shared<Arc<Platform>>, request: Request<Body>) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    if let Some(refusal) = not_offered(platform.options().api, method, path, request.headers()) {
        return platform.refuse_early(OTHER_VERSION, refusal);
    }
    let fault = platform.state().plans.take(&[Endpoint::InstalledLocations]);
    let query = Form::of_query(request.uri().query().unwrap_or_default());
    let answer = locations_page(&platform, request.headers(), &query);
    strike(fault, Some(answer)).await
}

fn locations_page(platform: &Platform, headers: &HeaderMap, query: &Form) -> PlatformAnswer {
    let state = platform.state();
    let company = match company_caller(&state, headers, platform.clock.now_ms()) {
        Ok(company) => company,
        Err((answer, _)) => return answer,
    };
    let app = state.options.client_id.split('-').next().unwrap_or_default();
    let wrong: Vec<&str> = [
        (query.get("companyId") != Some(company.as_str()), "companyId is missing or not the token's"),
        (query.get("appId") != Some(app), "appId is missing or not the token's"),
    ]
    .into_iter()
    .filter_map(|(wrong, message)| wrong.then_some(message))
    .collect();
    if !wrong.is_empty() {
        return PlatformAnswer::json(
            422,
            &json!({ "statusCode": 422, "message": wrong, "error": "Unprocessable Entity" }),
        );
    }
    let number = |name: &str, default: usize| query.get(name).map_or(Some(default), |text| text.parse().ok());
    let is_v3 = says_v3(headers);
    // The token of a page is opaque to clients.
    let token = query.get("pageToken").map_or(Some(0), |token| token.strip_prefix("page-after-")?.parse().ok());
    let (skip, limit) = if is_v3 { (token, number("pageSize", 20)) } else { (number("skip", 0), number("limit", 20)) };
    let (Some(skip), Some(limit)) = (skip, limit) else {
        return PlatformAnswer::refusal(422, "the position or the size of the page is malformed");
    };
    let only_installed = query.get("isInstalled") == Some("true");
    let listed: Vec<_> = state
        .options
        .locations_of(&company)
        .iter()
        .map(|location| (location, !state.not_installed.contains(&location.id)))
        .filter(|(_, installed)| *installed || !only_installed)
        .collect();
    let page: Vec<Value> = listed
        .iter()
        .skip(skip)
        .take(limit.min(100))
        .map(|(location, installed)| {
            json!({ "_id": location.id, "name": location.name, "address": "1 Main Street", "isInstalled": installed })
        })
        .collect();
    if is_v3 {
        let read = skip + page.len();
        let next = (read < listed.len()).then(|| format!("page-after-{read}"));
        let pagination = json!({ "hasNextPage": next.is_some(), "nextPageToken": next, "totalRecords": listed.len() });
        return PlatformAnswer::json(
            200,
            &json!({ "items": page, "pagination": pagination, "installToFutureLocations": true }),
        );
    }
    PlatformAnswer::json(200, &json!({ "locations": page, "count": listed.len(), "installToFutureLocations": true }))
}

impl State {
    /// Returns the locations of an agency that have the app.
    fn installed_of(&self, company: &str) -> impl Iterator<Item = &super::Location> {
        self.options.locations_of(company).iter().filter(|location| !self.not_installed.contains(&location.id))
    }
}

impl Platform {
    /// Records a request that is refused before anything else about it is looked at.
    fn refuse_early(&self, grant: &str, answer: PlatformAnswer) -> Response {
        let (status, outcome) = (Some(answer.status.as_u16()), "refused early".to_owned());
        self.bus.publish(Event::Token { grant: grant.to_owned(), resource: None, outcome: outcome.clone(), status });
        let (at, grant) = (self.clock.now(), grant.to_owned());
        self.state().ledger.token(TokenRequest { at, grant, resource: None, outcome, status, fault: None });
        answer.into_response()
    }

    /// Returns the answer to a token request in a version that the token endpoint does not have, or above its limit; and
    /// the grant under which the request is recorded, empty for its own.
    fn token_endpoint_refusal(&self, headers: &HeaderMap) -> Option<(&'static str, PlatformAnswer)> {
        let now = self.clock.now();
        let mut state = self.state();
        match (state.options.api, says_v3(headers)) {
            (ApiVersions::V2, true) => {
                return Some((OTHER_VERSION, PlatformAnswer::refusal(401, "version header is invalid")));
            }
            (ApiVersions::V3, false) => {
                return Some((OTHER_VERSION, PlatformAnswer::refusal(401, "version header was not found.")));
            }
            _ => {}
        }
        let most = state.options.token_requests_per_minute?;
        let minute = &mut state.token_minute;
        while minute.front().is_some_and(|at| *at + Duration::from_mins(1) <= now) {
            minute.pop_front();
        }
        if minute.len() < most {
            minute.push_back(now);
            return None;
        }
        let wait =
            minute.front().map_or(Duration::from_mins(1), |at| (*at + Duration::from_mins(1)).saturating_sub(now));
        let mut refusal = PlatformAnswer::refusal(429, "Too Many Requests");
        refusal.headers.push(("retry-after".to_owned(), wait.as_secs().max(1).to_string()));
        Some(("", refusal))
    }

    /// Answers a token request: applies the planned fault, does the work unless the fault prevents it, and records the
    /// request.
    async fn answer(&self, at: &[Endpoint], grant: &str, work: impl FnOnce() -> Decision) -> Response {
        let at_time = self.clock.now();
        let fault = self.state().plans.take(at);
        if let Some(Fault::Delay { millis }) = &fault {
            tokio::time::sleep(Duration::from_millis(*millis)).await;
        }
        let decision = fault.as_ref().is_none_or(Fault::lets_work_happen).then(work);
        if decision.is_some() {
            self.save();
        }
        let (grant, resource, outcome, answer) = match decision {
            Some(decision) => (decision.grant, decision.resource, decision.outcome, Some(decision.answer)),
            None => (grant.to_owned(), None, "not processed".to_owned(), None),
        };
        let dropped = matches!(fault, Some(Fault::HangUp { .. } | Fault::Stall { .. }));
        let status = match &fault {
            Some(Fault::Answer { status, .. }) => Some(*status),
            _ if dropped => None,
            _ => answer.as_ref().map(|answer| answer.status.as_u16()),
        };
        self.bus.publish(Event::Token {
            grant: grant.clone(),
            resource: resource.as_ref().map(ToString::to_string),
            outcome: outcome.clone(),
            status,
        });
        self.state().ledger.token(TokenRequest { at: at_time, grant, resource, outcome, status, fault: fault.clone() });
        strike(fault, answer).await
    }
}
