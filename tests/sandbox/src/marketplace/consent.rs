//! The consent page, on which a user chooses a location or the agency, and accepts or refuses.

use std::{collections::HashSet, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::State as Shared,
    response::{Redirect, Response},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Request, StatusCode};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use url::Url;

use super::{Location, Options, Platform, grants::Resource, webhooks::Kind};
use crate::{form::Form, identity::SCOPES};

pub(super) fn routes() -> Router<Arc<Platform>> {
    let page = || get(ask).post(decide);
    Router::new()
        .route("/oauth/chooselocation", page())
        .route("/v2/oauth/chooselocation", page())
        // The marketplace's own install button opens the same page, without a state.
        .route("/install", get(from_marketplace))
        // The app's pages lead back to the marketplace.
        .route("/", get(|| async { Redirect::to("/install") }))
}

/// A valid consent request, which the page may show.
struct Wanted {
    redirect_uri: String,
    state: Option<String>,
}

impl Wanted {
    /// Reads a consent request. An error is shown on the page, because nothing may be sent to an unknown redirect URI.
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
    if choice == REFUSE || form.get("decision") == Some(REFUSE) {
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
        let left_out = left_out(&form, &options, &resource);
        let code = platform.consent(&resource, left_out, wanted.redirect_uri);
        target.query_pairs_mut().append_pair("code", &code);
    }
    if let Some(state) = &wanted.state {
        target.query_pairs_mut().append_pair("state", state);
    }
    redirect(target.as_str())
}

/// Value of the button that refuses.
const REFUSE: &str = "refuse";

/// Returns the locations whose check box the user cleared. The page lists the locations if the user chose the agency.
fn left_out(form: &Form, options: &Options, chosen: &Resource) -> Option<HashSet<String>> {
    let is_agency = matches!(chosen, Resource::Company(_));
    (is_agency && form.get("listed").is_some()).then(|| {
        let ticked: HashSet<&str> = form.all("approved").collect();
        options
            .locations
            .iter()
            .filter(|known| !ticked.contains(known.id.as_str()))
            .map(|known| known.id.clone())
            .collect()
    })
}

impl Platform {
    fn consent(&self, chosen: &Resource, left_out: Option<HashSet<String>>, redirect_uri: String) -> String {
        self.control(format!("consent given for {chosen}"));
        if let Some(left_out) = left_out {
            self.state().not_installed = left_out;
        }
        let code = self.code(chosen.clone(), Some(redirect_uri));
        self.tell(Kind::Install, chosen);
        code
    }
}

fn redirect(target: &str) -> Response {
    let response = Response::builder().status(StatusCode::FOUND).header("location", target).body(Body::empty());
    response.unwrap_or_else(|_| crate::server::hang_up())
}

/// Builds the answer with a page. Its content security policy allows one style. The policy does not name `form-action`,
/// because that directive would also apply to the redirect after the form.
fn page(status: StatusCode, content: &Markup) -> Response {
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Sandbox marketplace" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header { p { strong { "Sandbox marketplace" } } p { "stands in for the platform’s consent page" } }
                main { (content) }
            }
        }
    };
    let style = STANDARD.encode(digest(&SHA256, STYLE.as_bytes()));
    let policy = format!("default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; frame-ancestors 'none'");
    let response = Response::builder()
        .status(status)
        .header("content-type", "text/html; charset=utf-8")
        .header("content-security-policy", policy)
        .header("referrer-policy", "no-referrer")
        .header("x-content-type-options", "nosniff")
        .header("cache-control", "no-store")
        .body(Body::from(document.into_string()));
    response.unwrap_or_else(|_| crate::server::hang_up())
}

const STYLE: &str = include_str!("consent.css");

fn choice(wanted: &Wanted, options: &Options) -> Markup {
    html! {
        h1 { "Install the app?" }
        p { "It asks for access to your account. Choose where it is installed, then approve or refuse." }
        form method="post" action="/oauth/chooselocation" {
            input type="hidden" name="response_type" value="code";
            input type="hidden" name="client_id" value=(options.client_id);
            input type="hidden" name="redirect_uri" value=(wanted.redirect_uri);
            @if let Some(state) = &wanted.state { input type="hidden" name="state" value=(state); }
            fieldset {
                legend { "One location" }
                @for (number, Location { id, name }) in options.locations.iter().enumerate() {
                    label.choice {
                        input type="radio" name="choice" value=(format!("location:{id}")) required checked[number == 0];
                        span { (name) small { (id) } }
                    }
                }
            }
            fieldset {
                legend { "Or the whole agency" }
                label.choice {
                    input type="radio" name="choice" value=(format!("company:{}", options.company)) required;
                    span { "Grove Agency" small { (options.company) } }
                }
                details {
                    summary { "with all its locations, or only some" }
                    input type="hidden" name="listed" value="yes";
                    @for Location { id, name } in &options.locations {
                        label.tick { input type="checkbox" name="approved" value=(id) checked; (name) }
                    }
                }
            }
            details {
                summary { "What the app will be able to do" }
                ul.scopes { @for scope in SCOPES.split(' ') { li { code { (scope) } } } }
            }
            div.decide {
                button.approve name="decision" value="approve" { "Approve" }
                button.refuse name="decision" value=(REFUSE) { "Refuse" }
            }
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
