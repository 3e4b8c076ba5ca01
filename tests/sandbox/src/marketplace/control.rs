//! The controls of the fake platform over HTTP, for people with `curl`. Tests call [`Platform`] directly.
//!
//! | | body | |
//! |---|---|---|
//! | `GET /_sandbox/state` | | counts, limits, faults, which refresh tokens are alive (never the tokens) |
//! | `GET /_sandbox/environment` | | the environment with which `ops` uses this sandbox |
//! | `POST /_sandbox/expire-access-tokens` | | every access token expires now |
//! | `POST /_sandbox/advance` | `{"seconds":31}` | the platform's clock moves forwards |
//! | `POST /_sandbox/faults` | [`Plan`]: `{"at":"refresh","fault":{"kind":"hang_up","processed":true},"times":1}` | |
//! | `DELETE /_sandbox/faults` | | removes all faults |
//! | `POST /_sandbox/active` | `{"resource":{"location":"L1"},"active":false}` | pauses a location, or resumes it |
//! | `POST /_sandbox/uninstall` | `{"resource":{"location":"L1"}}` | revokes its tokens, and sends the webhook |
//! | `POST /_sandbox/webhooks` | `{"resource":{"location":"L1"},"times":200}` | sends so many events at once |
//! | `PUT /_sandbox/limits` | `{"burst":25,"interval_ms":10000,"daily":10000}` | for all; for one with `"resource"` |
//! | `PUT /_sandbox/rotation` | `{"rotation":"strict"}` | `strict`, `forgiving`, `family_revoking` |
//! | `PUT /_sandbox/token-life` | `{"seconds":120}` | life of access tokens that are issued from now on |
//! | `POST /_sandbox/install` | `{"resource":{"location":"L1"}}` | installs the app as after consent: leads to the app's redirect URI |
//! | `POST /_sandbox/codes` | `{"resource":{"company":"C1"}}` | a code as after consent |

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::State as Shared,
    response::{IntoResponse as _, Response},
    routing::{get, post, put},
};
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Platform,
    faults::{Plan, PlatformAnswer},
    grants::{Resource, Rotation},
    window::Limits,
};
use crate::{local, lock::lock};

pub(super) fn routes() -> Router<Arc<Platform>> {
    Router::new()
        .route("/_sandbox/state", get(state))
        .route("/_sandbox/environment", get(environment))
        .route("/_sandbox/expire-access-tokens", post(expire))
        .route("/_sandbox/advance", post(advance))
        .route("/_sandbox/faults", post(add_fault).delete(clear_faults))
        .route("/_sandbox/active", post(set_active))
        .route("/_sandbox/uninstall", post(uninstall))
        .route("/_sandbox/webhooks", post(send_events))
        .route("/_sandbox/limits", put(set_limits))
        .route("/_sandbox/rotation", put(set_rotation))
        .route("/_sandbox/token-life", put(set_token_life))
        .route("/_sandbox/codes", post(issue_code))
        .route("/_sandbox/install", post(install))
        .layer(axum::middleware::from_fn(local::only_this_machine))
}

type ThePlatform = Shared<Arc<Platform>>;

fn done() -> Response {
    PlatformAnswer::json(200, &json!({ "done": true })).into_response()
}

/// Parses the body of a control request and calls `act`. Answers with the error if the body is not valid.
fn with<T: for<'a> Deserialize<'a>>(body: &[u8], act: impl FnOnce(T) -> Response) -> Response {
    match serde_json::from_slice(body) {
        Ok(value) => act(value),
        Err(error) => PlatformAnswer::refusal(400, &error.to_string()).into_response(),
    }
}

async fn state(Shared(platform): ThePlatform) -> Response {
    PlatformAnswer::json(200, &platform.summary()).into_response()
}

async fn environment(Shared(platform): ThePlatform) -> Response {
    PlatformAnswer::json(200, &json!(*lock(&platform.operators_environment))).into_response()
}

async fn expire(Shared(platform): ThePlatform) -> Response {
    platform.expire_access_tokens();
    done()
}

#[derive(Deserialize)]
struct Seconds {
    seconds: u64,
}

async fn advance(Shared(platform): ThePlatform, body: Bytes) -> Response {
    with(&body, |Seconds { seconds }| {
        platform.advance(Duration::from_secs(seconds));
        done()
    })
}

async fn add_fault(Shared(platform): ThePlatform, body: Bytes) -> Response {
    with(&body, |plan: Plan| {
        platform.plan(plan);
        done()
    })
}

async fn clear_faults(Shared(platform): ThePlatform) -> Response {
    platform.clear_faults();
    done()
}

#[derive(Deserialize)]
struct Activity {
    resource: Resource,
    active: bool,
}

async fn set_active(Shared(platform): ThePlatform, body: Bytes) -> Response {
    with(&body, |Activity { resource, active }| {
        platform.set_active(resource, active);
        done()
    })
}

#[derive(Deserialize)]
struct One {
    resource: Resource,
}

async fn uninstall(Shared(platform): ThePlatform, body: Bytes) -> Response {
    with(&body, |One { resource }| {
        platform.uninstall(&resource);
        done()
    })
}

#[derive(Deserialize)]
struct Burst {
    resource: Resource,
    times: usize,
}

async fn send_events(Shared(platform): ThePlatform, body: Bytes) -> Response {
    with(&body, |Burst { resource, times }| {
        platform.send_events(&resource, times);
        done()
    })
}

#[derive(Deserialize)]
struct NewLimits {
    resource: Option<Resource>,
    #[serde(flatten)]
    limits: Limits,
}

async fn set_limits(Shared(platform): ThePlatform, body: Bytes) -> Response {
    with(&body, |NewLimits { resource, limits }| {
        match resource {
            Some(resource) => platform.set_limits_of(resource, limits),
            None => platform.change(|options| options.limits = limits),
        }
        done()
    })
}

#[derive(Deserialize)]
struct NewRotation {
    rotation: Rotation,
}

async fn set_rotation(Shared(platform): ThePlatform, body: Bytes) -> Response {
    with(&body, |NewRotation { rotation }| {
        platform.change(|options| options.rotation = rotation);
        done()
    })
}

async fn set_token_life(Shared(platform): ThePlatform, body: Bytes) -> Response {
    with(&body, |Seconds { seconds }| {
        platform.change(|options| options.token_life = Duration::from_secs(seconds));
        done()
    })
}

async fn issue_code(Shared(platform): ThePlatform, body: Bytes) -> Response {
    with(&body, |One { resource }| {
        let code = platform.authorize(resource);
        PlatformAnswer::json(200, &json!({ "code": code })).into_response()
    })
}

/// Answers with a redirect, so that a client that follows redirects installs the app with one command.
async fn install(Shared(platform): ThePlatform, body: Bytes) -> Response {
    with(&body, |One { resource }| {
        let options = platform.options();
        let Some(uri) = options.redirect_uris.last().filter(|_| options.has(&resource)) else {
            return PlatformAnswer::refusal(400, "the agency has no such location").into_response();
        };
        let code = platform.install(&resource);
        (StatusCode::SEE_OTHER, [(header::LOCATION, format!("{uri}?code={code}"))]).into_response()
    })
}

impl Platform {
    /// Returns all counts and states as JSON, without any token.
    pub fn summary(&self) -> Value {
        let now = self.clock.now();
        let state = self.state();
        let resources: Vec<Value> = state
            .windows
            .iter()
            .map(|(resource, window)| {
                let limits = state.limits(resource);
                json!({
                    "resource": resource,
                    "requests": window.total(),
                    "worst_window": window.worst(),
                    "limits": limits,
                    "remaining": window.remaining(now, limits),
                    "live_refresh_tokens": state.grants.live_refresh_tokens(resource).len(),
                })
            })
            .collect();
        json!({
            "token_requests": state.ledger.counts(),
            "strangers": state.ledger.strangers(),
            "resources": resources,
            "faults": state.plans.list(),
            "rotation": state.options.rotation,
            "token_life_seconds": state.options.token_life.as_secs(),
        })
    }
}
