//! The page where somebody chooses a location, or the agency, and says yes or no.

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::State as Shared,
    response::Response,
    routing::get,
};
use http::{Request, StatusCode};
use maud::{DOCTYPE, Markup, html};
use url::Url;

use super::{Location, Options, Platform, grants::Resource};
use crate::form::Form;

pub(super) fn routes() -> Router<Arc<Platform>> {
    let page = || get(ask).post(decide);
    Router::new()
        .route("/oauth/chooselocation", page())
        .route("/v2/oauth/chooselocation", page())
        // The marketplace's own install button: the same page, and no state.
        .route("/install", get(from_marketplace))
}

/// A consent request that may be shown.
struct Wanted {
    redirect_uri: String,
    state: Option<String>,
}

impl Wanted {
    /// What is wrong with a request is said on the page: nothing is ever sent to an unknown redirect URI.
    fn of(form: &Form, options: &Options) -> Result<Self, &'static str> {
        if form.get("client_id") != Some(options.client_id.as_str()) {
            return Err("error.noAppVersionIdFound");
        }
        let redirect_uri = form.get("redirect_uri").ok_or("error.redirectUriMissing")?;
        if !options.redirect_uris.iter().any(|known| known == redirect_uri) {
            return Err("error.redirectUriMismatch");
        }
        if form.get("response_type") != Some("code") {
            return Err("error.responseTypeInvalid");
        }
        Ok(Self { redirect_uri: redirect_uri.to_owned(), state: form.get("state").map(str::to_owned) })
    }
}

async fn ask(Shared(platform): Shared<Arc<Platform>>, request: Request<Body>) -> Response {
    let options = platform.options();
    let form = Form::of_query(request.uri().query().unwrap_or_default());
    match Wanted::of(&form, &options) {
        Ok(wanted) => page(StatusCode::OK, &choice(&wanted, &options)),
        Err(problem) => page(StatusCode::BAD_REQUEST, &complaint(problem)),
    }
}

async fn from_marketplace(Shared(platform): Shared<Arc<Platform>>) -> Response {
    let options = platform.options();
    match options.redirect_uris.first() {
        Some(uri) => page(StatusCode::OK, &choice(&Wanted { redirect_uri: uri.clone(), state: None }, &options)),
        None => page(StatusCode::BAD_REQUEST, &complaint("error.redirectUriMissing")),
    }
}

async fn decide(Shared(platform): Shared<Arc<Platform>>, request: Request<Body>) -> Response {
    let headers = request.headers().clone();
    let body = to_bytes(request.into_body(), 64 * 1024).await.unwrap_or_default();
    let options = platform.options();
    let form = Form::read(&headers, &body).unwrap_or_default();
    let wanted = match Wanted::of(&form, &options) {
        Ok(wanted) => wanted,
        Err(problem) => return page(StatusCode::BAD_REQUEST, &complaint(problem)),
    };
    let Ok(mut target) = Url::parse(&wanted.redirect_uri) else {
        return page(StatusCode::BAD_REQUEST, &complaint("error.redirectUriMismatch"));
    };
    let choice = form.get("choice").unwrap_or_default();
    if choice == REFUSE {
        platform.control("consent refused");
        target
            .query_pairs_mut()
            .append_pair("error", "access_denied")
            .append_pair("error_description", "The user denied the request");
    } else {
        let known = choice.parse().ok().filter(|resource| options.has(resource));
        let Some(resource) = known else {
            return page(StatusCode::BAD_REQUEST, &complaint("error.locationNotFound"));
        };
        let code = platform.consent(resource, wanted.redirect_uri);
        target.query_pairs_mut().append_pair("code", &code);
    }
    if let Some(state) = &wanted.state {
        target.query_pairs_mut().append_pair("state", state);
    }
    redirect(target.as_str())
}

/// Value of the button that says no.
const REFUSE: &str = "refuse";

impl Platform {
    fn consent(&self, chosen: Resource, redirect_uri: String) -> String {
        self.control(format!("consent given for {chosen}"));
        self.code(chosen, Some(redirect_uri))
    }
}

fn redirect(target: &str) -> Response {
    let response = Response::builder().status(StatusCode::FOUND).header("location", target).body(Body::empty());
    response.unwrap_or_else(|_| crate::server::hang_up())
}

fn page(status: StatusCode, content: &Markup) -> Response {
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { "Sandbox marketplace" }
                style { (STYLE) }
            }
            body { main { (content) } }
        }
    };
    let response = Response::builder()
        .status(status)
        .header("content-type", "text/html; charset=utf-8")
        .header("cache-control", "no-store")
        .body(Body::from(document.into_string()));
    response.unwrap_or_else(|_| crate::server::hang_up())
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;background:#f4f5f7;color:#1b2430}\
main{max-width:32rem;margin:8vh auto;padding:2rem;background:#fff;border-radius:.75rem;box-shadow:0 1px 8px #0002}\
button{display:block;width:100%;margin:.5rem 0;padding:.75rem 1rem;font:inherit;text-align:left;border:1px solid #c9d0d9;border-radius:.5rem;background:#fff;cursor:pointer}\
button:hover,button:focus{border-color:#2563eb}small{color:#5b6675;display:block}.refuse{text-align:center;border-color:transparent;color:#b42318}";

fn choice(wanted: &Wanted, options: &Options) -> Markup {
    html! {
        h1 { "Install the app" }
        p { "This page stands in for the platform's consent page. Choose where the app is installed." }
        form method="post" action="/oauth/chooselocation" {
            input type="hidden" name="response_type" value="code";
            input type="hidden" name="client_id" value=(options.client_id);
            input type="hidden" name="redirect_uri" value=(wanted.redirect_uri);
            @if let Some(state) = &wanted.state { input type="hidden" name="state" value=(state); }
            @for Location { id, name } in &options.locations {
                button name="choice" value=(format!("location:{id}")) { (name) small { "Location " (id) } }
            }
            button name="choice" value=(format!("company:{}", options.company)) {
                "The whole agency" small { "Company " (options.company) ", its locations are minted from it" }
            }
            button.refuse name="choice" value=(REFUSE) { "Refuse" }
        }
    }
}

fn complaint(problem: &str) -> Markup {
    html! {
        h1 { "This link does not work" }
        p { code { (problem) } }
        p { "The client id, the redirect URI or the response type is not what this app is registered with." }
    }
}
