//! A part of the platform's API: enough resources to see how a relay changed a request. Every check answers in the
//! platform's own words.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, to_bytes},
    extract::State as Shared,
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Uri};
use serde_json::{Value, json};

use super::{
    ApiRequest, ApiVersions, Platform, State,
    faults::{Endpoint, Fault, PlatformAnswer, strike},
    grants::{AccessProblem, Resource},
    published::Operation,
    window::{Limits, Remaining, Verdict},
};
use crate::{events::Event, form::Form};

pub(super) const WRONG_CLASS: &str = "This authClass type is not allowed to access this scope. Please verify your IAM configuration if this is not the case.";
const LARGEST_BODY: usize = 32 << 20;

/// The caller of an API request, as its access token identifies it.
pub(super) enum Caller {
    /// A valid token: its resource, and the id of the agency to which the resource belongs.
    Known(Resource, String),
    /// A token that was valid once.
    Expired(Resource),
    /// No token, or a token that was never issued.
    Unknown,
}

impl Caller {
    pub(super) fn of(state: &State, headers: &HeaderMap, now_ms: u64) -> Self {
        let bearer = headers.get("authorization").and_then(|value| value.to_str().ok());
        let Some(token) = bearer.and_then(|value| value.strip_prefix("Bearer ")) else { return Self::Unknown };
        match state.grants.check_access(token, now_ms) {
            Ok((resource, company)) => Self::Known(resource, company),
            Err(AccessProblem::Expired(resource)) => Self::Expired(resource),
            Err(AccessProblem::Unknown) => Self::Unknown,
        }
    }

    fn bucket(&self) -> Option<&Resource> {
        match self {
            Self::Known(resource, _) | Self::Expired(resource) => Some(resource),
            Self::Unknown => None,
        }
    }
}

/// Returns the platform's message if the `Version` header is missing or wrong.
pub(super) fn version_problem(api: ApiVersions, headers: &HeaderMap) -> Option<&'static str> {
    match headers.get("version").map(http::HeaderValue::as_bytes) {
        None => Some("version header was not found."),
        Some(b"v3") if api == ApiVersions::V2 => Some("version header is invalid"),
        // The official Node SDK sends 2023-02-21 by default.
        Some(b"2021-04-15" | b"2021-07-28" | b"2023-02-21" | b"v3") => None,
        Some(_) => Some("version header is invalid"),
    }
}

/// A request as the fake platform received it.
struct Received {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

pub(super) async fn serve(Shared(platform): Shared<Arc<Platform>>, request: Request<Body>) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, LARGEST_BODY).await.unwrap_or_default();
    let received = Received { method: head.method, uri: head.uri, headers: head.headers, body };
    let at = platform.clock.now();
    let fault = platform.state().plans.take(&[Endpoint::Api]);
    if let Some(Fault::Delay { millis }) = &fault {
        tokio::time::sleep(Duration::from_millis(*millis)).await;
    }
    let (caller, counted) = platform.count(&received.headers, at);
    let truth = match (&fault, counted.as_ref().map(|counted| counted.verdict)) {
        (Some(fault), _) if !fault.lets_work_happen() => None,
        (_, Some(Verdict::Burst | Verdict::Daily)) if matches!(caller, Caller::Known(..)) => {
            Some(PlatformAnswer::refusal(429, "Too Many Requests"))
        }
        _ => Some(platform.resource(&caller, &received)),
    };
    let status = match (&fault, &truth) {
        (Some(Fault::HangUp { .. } | Fault::Stall { .. }), _) => None,
        (Some(Fault::Answer { status, .. }), _) => Some(*status),
        (_, truth) => truth.as_ref().map(|answer| answer.status.as_u16()),
    };
    platform.note(&received, caller.bucket(), at, status, counted.as_ref().map_or(0, |counted| counted.in_window));
    if let (Some(answer), Caller::Known(resource, _)) = (&truth, &caller)
        && answer.status.is_success()
    {
        let segments: Vec<&str> = received.uri.path().trim_start_matches('/').split('/').collect();
        platform.after_call(resource, received.method.as_str(), &segments, &received.body);
    }
    let mut answer = truth.unwrap_or_else(|| PlatformAnswer::refusal(500, "not processed"));
    answer.headers.extend(counted.into_iter().flat_map(Counted::headers));
    strike(fault, Some(answer)).await
}

/// The result of counting a request in the window of its resource.
struct Counted {
    verdict: Verdict,
    in_window: usize,
    limits: Limits,
    remaining: Remaining,
}

impl Counted {
    fn headers(self) -> [(String, String); 6] {
        let header = |name: &str, value: u64| (name.to_owned(), value.to_string());
        [
            header("x-ratelimit-limit-daily", self.limits.daily),
            header("x-ratelimit-daily-remaining", self.remaining.daily),
            header("x-ratelimit-daily-reset", self.remaining.daily_reset_ms),
            header("x-ratelimit-interval-milliseconds", self.limits.interval_ms),
            header("x-ratelimit-max", self.limits.burst as u64),
            header("x-ratelimit-remaining", self.remaining.burst as u64),
        ]
    }
}

impl Platform {
    /// Counts the request in its resource's window. A request with an expired token counts too, because the platform
    /// knows the token's resource.
    fn count(&self, headers: &HeaderMap, now: Duration) -> (Caller, Option<Counted>) {
        let mut state = self.state();
        let caller = Caller::of(&state, headers, self.clock.now_ms());
        let counted = caller.bucket().map(|resource| {
            let limits = state.limits(resource);
            let window = state.windows.entry(resource.clone()).or_default();
            let verdict = window.arrive(now, limits);
            Counted { verdict, in_window: window.in_window(), limits, remaining: window.remaining(now, limits) }
        });
        (caller, counted)
    }

    fn note(
        &self,
        received: &Received,
        bucket: Option<&Resource>,
        at: Duration,
        status: Option<u16>,
        in_window: usize,
    ) {
        let method = received.method.to_string();
        let path = received.uri.path().to_owned();
        let target = received.uri.path_and_query().map_or_else(|| path.clone(), ToString::to_string);
        self.state().ledger.api(bucket, ApiRequest { at, method: method.clone(), target, status });
        self.bus.publish(Event::Platform {
            resource: bucket.map(ToString::to_string),
            method,
            path,
            status,
            in_window,
        });
    }

    fn resource(&self, caller: &Caller, received: &Received) -> PlatformAnswer {
        let Caller::Known(resource, company) = caller else { return PlatformAnswer::refusal(401, "Invalid JWT") };
        if let Some(problem) = version_problem(self.state().options.api, &received.headers) {
            return PlatformAnswer::refusal(401, problem);
        }
        let path = received.uri.path();
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match (received.method.as_str(), segments.as_slice()) {
            (_, ["echo", ..]) => echo(received, resource),
            (_, ["status", status]) => answer_status(status),
            (_, ["mcp", ..]) => mcp(received, resource),
            (_, ["gzip"]) => compressed(),
            (_, ["bytes"]) => PlatformAnswer::new(200, "application/octet-stream", every_byte()),
            ("GET", ["payments", "orders"]) => {
                PlatformAnswer::refusal(401, "The token is not authorized for this scope.")
            }
            ("GET", ["locations", id]) => self.location(resource, company, id),
            ("GET", ["companies", id]) => self.company(resource, id),
            ("DELETE", ["marketplace", "app", app, "installations"]) => self.uninstall_by(resource, app, received),
            ("GET" | "POST", ["marketplace", "billing", "charges"]) => self.charges(resource, received),
            ("GET" | "POST", ["contacts", ..]) => self.contacts(resource, received, &segments[1..]),
            (method, _) => published(method, path, received, resource),
        }
    }

    /// Returns a location. Location tokens and agency tokens are both accepted.
    fn location(&self, resource: &Resource, company: &str, id: &str) -> PlatformAnswer {
        let state = self.state();
        let known = state.options.locations_of(company).iter().find(|location| location.id == id);
        let allowed = match resource {
            Resource::Location(own) => own == id,
            Resource::Company(own) => own == company && known.is_some(),
        };
        match known {
            Some(location) if allowed => {
                let value = json!({ "location": { "id": location.id, "name": location.name, "companyId": company } });
                PlatformAnswer::json(200, &value)
            }
            _ => PlatformAnswer::refusal(403, NO_ACCESS),
        }
    }

    fn company(&self, resource: &Resource, id: &str) -> PlatformAnswer {
        let state = self.state();
        match resource {
            Resource::Location(_) => PlatformAnswer::refusal(401, WRONG_CLASS),
            Resource::Company(own) if own == id => {
                let count = state.options.locations.len();
                PlatformAnswer::json(
                    200,
                    &json!({ "company": { "id": own, "name": "Grove Agency", "locationCount": count } }),
                )
            }
            Resource::Company(_) => PlatformAnswer::refusal(403, "The token does not have access to this company."),
        }
    }

    /// Uninstalls the app from the resource of the token: a location, or an agency with all its locations. The body must
    /// name the resource, and have the reason that the platform demands of developers.
    fn uninstall_by(&self, resource: &Resource, app: &str, received: &Received) -> PlatformAnswer {
        let is_v3 = received.headers.get("version").is_some_and(|version| version == "v3");
        let api = self.state().options.api;
        if api == ApiVersions::V3 && !is_v3 {
            let path = received.uri.path();
            let message = format!("Endpoint DELETE {path} not available in API version 2021-07-28");
            return PlatformAnswer::refusal(400, &message);
        }
        let app_id = self.options().client_id.split('-').next().unwrap_or_default().to_owned();
        if app != app_id {
            return PlatformAnswer::refusal(400, "App not found");
        }
        let body: Value = serde_json::from_slice(&received.body).unwrap_or_default();
        let (name, id) = match resource {
            Resource::Location(id) => ("locationId", id),
            Resource::Company(id) => ("companyId", id),
        };
        if body[name] != **id || body["reason"].as_str().is_none_or(str::is_empty) {
            let message = [format!("{name} and reason must be strings")];
            let body = json!({ "statusCode": 422, "message": message, "error": "Unprocessable Entity" });
            return PlatformAnswer::json(422, &body);
        }
        self.uninstall_whole(resource);
        PlatformAnswer::json(200, &json!({ "success": true }))
    }

    /// Makes a charge, or lists the charges of a location, all of them or the one with an `eventId`.
    fn charges(&self, resource: &Resource, received: &Received) -> PlatformAnswer {
        let Resource::Location(own) = resource else { return PlatformAnswer::refusal(401, WRONG_CLASS) };
        let charges = &mut self.state().charges;
        if received.method == Method::GET {
            let query = Form::of_query(received.uri.query().unwrap_or_default());
            let asked = |charge: &&Value| query.get("eventId").is_none_or(|event| charge["eventId"] == *event);
            let found: Vec<&Value> =
                charges.iter().filter(|charge| charge["locationId"] == **own).filter(asked).collect();
            return PlatformAnswer::json(200, &json!({ "charges": found, "total": found.len() }));
        }
        let Ok(Value::Object(mut charge)) = serde_json::from_slice(&received.body) else {
            return PlatformAnswer::refusal(422, "body must be a JSON object");
        };
        charge.insert("chargeId".to_owned(), json!(shared::domain::random::hex::<10>()));
        charge.insert("locationId".to_owned(), json!(own));
        let answer = PlatformAnswer::json(201, &json!({ "chargeId": charge["chargeId"] }));
        charges.push(Value::Object(charge));
        answer
    }

    fn contacts(&self, resource: &Resource, received: &Received, rest: &[&str]) -> PlatformAnswer {
        let Resource::Location(own) = resource else { return PlatformAnswer::refusal(401, WRONG_CLASS) };
        let query = Form::of_query(received.uri.query().unwrap_or_default());
        let body: Option<Value> = serde_json::from_slice(&received.body).ok();
        let named = query.get("locationId").or_else(|| body.as_ref()?.get("locationId")?.as_str());
        if named.is_some_and(|named| named != own) {
            return PlatformAnswer::refusal(403, NO_ACCESS);
        }
        let mut state = self.state();
        let contacts = state.contacts.entry(own.clone()).or_insert_with(|| vec![first_contact(own)]);
        match (received.method.as_str(), rest) {
            ("GET", [] | [""]) => {
                let limit = query.get("limit").and_then(|text| text.parse().ok()).unwrap_or(20);
                let after = query.get("startAfterId");
                let known = after.and_then(|id| contacts.iter().position(|contact| contact["id"] == *id));
                let from = known.map_or(0, |known| known + 1);
                let page: Vec<&Value> = contacts.iter().skip(from).take(limit).collect();
                let mut meta = json!({ "total": contacts.len() });
                if let Some(last) = page.last().filter(|_| from + page.len() < contacts.len()) {
                    let id = last["id"].as_str().unwrap_or_default();
                    meta["startAfterId"] = json!(id);
                    // The URL is the platform's own, whichever way the request came.
                    meta["nextPageUrl"] = json!(format!(
                        "https://services.leadconnectorhq.com/contacts/?locationId={own}&limit={limit}&startAfterId={id}"
                    ));
                }
                PlatformAnswer::json(200, &json!({ "contacts": page, "meta": meta }))
            }
            ("GET", [id]) => match contacts.iter().find(|contact| contact["id"] == **id) {
                Some(contact) => PlatformAnswer::json(200, &json!({ "contact": contact })),
                None => PlatformAnswer::refusal(400, "Contact not found"),
            },
            ("POST", [] | [""]) => {
                let Some(Value::Object(mut contact)) = body else {
                    return PlatformAnswer::refusal(422, "body must be a JSON object");
                };
                contact.insert("id".to_owned(), json!(shared::domain::random::hex::<10>()));
                contact.insert("locationId".to_owned(), json!(own));
                let contact = Value::Object(contact);
                contacts.push(contact.clone());
                PlatformAnswer::json(201, &json!({ "contact": contact }))
            }
            (method, _) => PlatformAnswer::refusal(404, &format!("Cannot {method} {}", received.uri.path())),
        }
    }
}

const NO_ACCESS: &str = "The token does not have access to this location.";

fn first_contact(location: &str) -> Value {
    json!({ "id": "HLcontact0000000001", "locationId": location, "firstName": "Ada", "email": "ada@example.com" })
}

/// Answers an operation that the fake does not model: echoes the request if the operation is published and accepts this
/// class of token.
fn published(method: &str, path: &str, received: &Received, resource: &Resource) -> PlatformAnswer {
    let version = received.headers.get("version").and_then(|version| version.to_str().ok()).unwrap_or_default();
    match Operation::of(method, path, version == "v3") {
        Ok(operation) if operation.takes(resource) => echo(received, resource),
        Ok(_) => PlatformAnswer::refusal(401, WRONG_CLASS),
        Err(true) => {
            PlatformAnswer::refusal(400, &format!("Endpoint {method} {path} not available in API version {version}"))
        }
        Err(false) => PlatformAnswer::refusal(404, &format!("Cannot {method} {path}")),
    }
}

/// Returns the request as it arrived, except for the value of `Authorization`. Nothing is decoded or sorted.
fn echo(received: &Received, resource: &Resource) -> PlatformAnswer {
    let headers: Vec<[String; 2]> = received
        .headers
        .iter()
        .filter(|(name, _)| *name != "authorization")
        .map(|(name, value)| [name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()])
        .collect();
    let value = json!({
        "method": received.method.as_str(),
        "path": received.uri.path(),
        "query": received.uri.query(),
        "headers": headers,
        "authorization": received.headers.get_all("authorization").iter().count(),
        "resource": resource,
        "body_base64": STANDARD.encode(&received.body),
    });
    PlatformAnswer::json(200, &value)
}

/// The MCP endpoint as a relay sees it. The answer is an event stream of one event, which echoes the request.
fn mcp(received: &Received, resource: &Resource) -> PlatformAnswer {
    let body = [b"event: message\ndata: ", echo(received, resource).body.as_ref(), b"\n\n"].concat();
    let mut answer = PlatformAnswer::new(200, "text/event-stream", Bytes::from(body));
    let headers = [("mcp-session-id", "session-of-the-platform"), ("mcp-protocol-version", "2025-06-18")];
    answer.headers.extend(headers.map(|(name, value)| (name.to_owned(), value.to_owned())));
    answer
}

fn answer_status(status: &str) -> PlatformAnswer {
    match status.parse::<u16>() {
        Ok(204) => PlatformAnswer::new(204, "text/plain", Bytes::new()),
        Ok(status @ 200..=599) => PlatformAnswer::json(status, &json!({ "statusCode": status, "message": "as asked" })),
        _ => PlatformAnswer::refusal(400, "not a status"),
    }
}

/// Returns a compressed answer even if the request did not ask for compression. The answer has every header that a
/// relay might keep or drop.
fn compressed() -> PlatformAnswer {
    let mut answer = PlatformAnswer::new(200, "application/json", Bytes::from_static(&GZIP));
    let headers = [
        ("content-encoding", "gzip"),
        ("etag", "\"7\""),
        ("vary", "accept-encoding"),
        ("cache-control", "private, max-age=5"),
        ("x-request-id", "of-the-platform"),
        ("link", "</a>; rel=next"),
        ("set-cookie", "session=of-the-platform"),
        ("access-control-allow-origin", "*"),
        ("keep-alive", "timeout=5"),
        ("server", "fake-platform"),
    ];
    answer.headers.extend(headers.map(|(name, value)| (name.to_owned(), value.to_owned())));
    answer
}

/// The JSON `{"a":1}`, compressed with gzip.
const GZIP: [u8; 27] = [
    0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0xab, 0x56, 0x4a, 0x54, 0xb2, 0x32, 0xac, 0x05, 0x00,
    0xaf, 0xac, 0x1b, 0x56, 0x07, 0x00, 0x00, 0x00,
];

/// All 256 byte values twice, the second time in reverse order. The bytes are not valid UTF-8 and are not a palindrome.
fn every_byte() -> Bytes {
    (0..=255).chain((0..=254).rev()).collect()
}
