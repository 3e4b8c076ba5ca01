//! From a request to a page: asks the pure modules, calls the platform and the store.

use http::header::{LOCATION, SET_COOKIE};
use http::{HeaderName, StatusCode};
use lambda_http::{Body, Context, Request, RequestExt as _, Response};
use shared::app::App;
use shared::config::{Authorization, Brand, InstallChoice};
use shared::domain::resource::Kind;
use shared::lambda::gateway;
use shared::lambda::serve::HttpFunction;
use shared::table::redirect::Ending;

use crate::authorize::{Entrance, authorization_url};
use crate::browser::Browser;
use crate::done::Done;
use crate::event::{Sender, cookies, is_prefetch, response, with_header};
use crate::failure::{self, Failure};
use crate::once::{Once, Turn, Visitor};
use crate::pages::{self, Surroundings};
use crate::public_url::PublicUrl;
use crate::query::parameter;
use crate::redirect::Redirect;
use crate::route::{self, Route, route};
use crate::state::StateKey;

/// The header with the runtime's id of an invocation, by which its log lines are found.
const REQUEST_ID: HeaderName = HeaderName::from_static("relay-request-id");

/// A response, and its name in the log and its metric.
type Named = (Response<Body>, &'static str);

/// The knowledge about a code that has brought no installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    /// It will bring none.
    Spent,
    /// It may still be good: the platform was not reached, or has not looked at it.
    PerhapsGood,
}

/// Installs the app for whoever comes by.
pub struct Installer {
    app: App,
    authorization: Authorization,
    brand: Brand,
}

impl Installer {
    /// An installer for one app.
    #[must_use]
    pub fn new(app: App, authorization: Authorization, brand: Brand) -> Self {
        Self { app, authorization, brand }
    }

    async fn page(&self, request: &Request, request_id: &str) -> Response<Body> {
        let config = &self.authorization;
        let context = gateway::context(request);
        let domain = context.and_then(|context| context.domain_name.as_deref());
        let public =
            PublicUrl::of(config.public_url.as_ref(), domain, gateway::stage(request), request.raw_http_path());
        let mut around = Surroundings { public: public.as_ref().ok(), ..self.surroundings(request_id) };
        let began = self.app.clock.now();
        let found = route(request, config.public_url.as_ref());
        let installs = matches!(found, Ok(Route::Callback(_))).then_some(1);
        let outcome = match (found, &public) {
            (Err(failure), _) => Err(failure),
            (Ok(Route::Done), _) => return pages::done(Done::read(query(request)), around),
            (Ok(_), Err(error)) => {
                tracing::error!(%error, "no redirect URI can be made");
                Err(Failure::Misconfigured)
            }
            (Ok(Route::Install), Ok(public)) => match self.chosen(request) {
                Ok(None) => return pages::choice(around),
                Ok(Some(chosen)) => {
                    around.entrance = chosen;
                    self.begin(request, public, chosen).await
                }
                Err(failure) => Err(failure),
            },
            (Ok(Route::Callback(path)), Ok(public)) => {
                let sender = Sender::read(request, began);
                self.finish(request, path, public, sender, &mut around.entrance).await
            }
        };
        let name = outcome.as_ref().map_or_else(|failure| failure.name(), |(_, name)| name);
        // A failure that is ours to repair was logged with its reason where it was found.
        let is_ours = outcome.as_ref().is_err_and(|failure| failure.is_ours());
        tracing::info!(
            outcome = name,
            status = outcome.as_ref().map_or_else(|failure| failure.status(), |(page, _)| page.status()).as_u16(),
            total_ms = u64::try_from(self.app.clock.now().since(began).as_millis()).unwrap_or(u64::MAX),
            Installs = installs,
            InstallFailures = u8::from(is_ours),
            "install"
        );
        outcome.map_or_else(|failure| pages::failure(failure, around), |(page, _)| page)
    }

    /// The surroundings of a page as long as nothing is known of its request.
    fn surroundings<'a>(&'a self, request_id: &'a str) -> Surroundings<'a> {
        let (config, brand) = (&self.authorization, &self.brand);
        Surroundings { config, brand, public: None, entrance: Entrance::Standard, request_id }
    }

    /// Which of the marketplace's hosts `GET /oauth/install` is to take; nothing where the admin is to be asked.
    fn chosen(&self, request: &Request) -> Result<Option<Entrance>, Failure> {
        match (parameter(query(request), "white_label")?.as_deref(), self.authorization.install_choice) {
            (None, InstallChoice::Ask) => Ok(None),
            (None, InstallChoice::Direct) | (Some("0" | "false"), _) => Ok(Some(Entrance::Standard)),
            (Some("1" | "true"), _) => Ok(Some(Entrance::WhiteLabel)),
            (Some(_), _) => Err(Failure::Malformed),
        }
    }

    /// `GET /oauth/install`: to the authorization page.
    async fn begin(&self, request: &Request, public: &PublicUrl, entrance: Entrance) -> Result<Named, Failure> {
        let (key, client_id) = self.credentials().await?;
        let browser = Browser::known(cookies(request), public).unwrap_or_default();
        let redirect_uri = public.at(route::CALLBACK);
        let state = key.sign(entrance, &browser, &redirect_uri, self.app.clock.now());
        let link = authorization_url(&self.authorization, entrance, &client_id, &redirect_uri, &state);
        let redirect = with_header(response(StatusCode::FOUND, Body::Empty), LOCATION, link.as_str());
        Ok((with_header(redirect, SET_COOKIE, &browser.cookie(public)), "redirected"))
    }

    /// `GET /oauth/callback`: exchange once, store, and away from the URL that holds the code.
    async fn finish(
        &self,
        request: &Request,
        path: &str,
        public: &PublicUrl,
        sender: Sender,
        entrance: &mut Entrance,
    ) -> Result<Named, Failure> {
        // Before anything else: what was not asked for must not spend the code.
        if is_prefetch(request) {
            return Err(Failure::Prefetched);
        }
        let redirect = Redirect::read(query(request))?;
        let redirect_uri = public.at(redirect.path(path));
        let (key, _) = self.credentials().await?;
        let known = Browser::known(cookies(request), public);
        let without_state = self.authorization.marketplace_installs;
        let admitted = redirect.admit(&key, known.as_ref(), &redirect_uri, without_state)?;
        *entrance = admitted.entrance();

        // A code is single use: it is not spent where it is known that nothing could be stored.
        self.app.installations.ready().await.map_err(|error| {
            tracing::error!(%error, "a grant could not be stored: the code is not spent");
            failure::of_install(&error).unwrap_or(Failure::Unavailable)
        })?;
        let visitor = Visitor { has_cookie: known.is_some(), browser: known.unwrap_or_default(), sender };
        let App { table, clock, .. } = &self.app;
        let once = Once::new(table, clock, &key, &admitted, &redirect.code, &visitor);
        let exchange = || Box::pin(self.exchange(&redirect, &redirect_uri, public));
        let (kind, name) = match once.turn(admitted.check_age(clock.now()).map_err(Failure::from)).await? {
            Turn::Repeat(kind) => (kind, "repeated"),
            Turn::Unguarded => (exchange().await.map_err(|(failure, _)| failure)?, "installed"),
            Turn::First(claim) => {
                let exchanged = exchange().await;
                let ending = match exchanged {
                    Ok(kind) => Ending::Connected(kind),
                    Err((failure, Code::Spent)) => Ending::Failed(failure.name()),
                    Err((failure, Code::PerhapsGood)) => Ending::Open(failure.name()),
                };
                claim.end(ending).await;
                (exchanged.map_err(|(failure, _)| failure)?, "installed")
            }
        };
        let done = Done { kind: Some(kind), entrance: *entrance };
        let mut page = with_header(response(StatusCode::SEE_OTHER, Body::Empty), LOCATION, &public.at(&done.path()));
        // A repeat that was recognised without a cookie has none to keep: its value is not the first arrival's.
        if name == "installed" || visitor.has_cookie {
            page = with_header(page, SET_COOKIE, &visitor.browser.cookie(public));
        }
        Ok((page, name))
    }

    /// Presents the code, and stores what it brings.
    async fn exchange(
        &self,
        redirect: &Redirect,
        redirect_uri: &str,
        public: &PublicUrl,
    ) -> Result<Kind, (Failure, Code)> {
        let started = self.app.clock.now();
        let grant = self.app.endpoint.exchange(&redirect.code, redirect_uri).await.map_err(|error| {
            let failure = Failure::from(&error);
            if failure.is_ours() {
                tracing::error!(?error, "the code could not be exchanged");
            }
            (failure, if failure == Failure::CodeRefused { Code::Spent } else { Code::PerhapsGood })
        })?;
        match self.app.installations.install(&grant, started, public.as_str()).await {
            Ok(installed) => Ok(installed.resource.kind()),
            Err(error) => {
                tracing::error!(%error, resource = %grant.resource, "the installation could not be stored now");
                failure::of_install(&error).map_or(Ok(grant.resource.kind()), |failure| Err((failure, Code::Spent)))
            }
        }
    }

    /// The key of states, and the client id.
    async fn credentials(&self) -> Result<(StateKey, String), Failure> {
        let credentials = self.app.app_secret.get().await.map_err(|error| {
            tracing::error!(%error, "the app's credentials cannot be read");
            Failure::from(&error)
        })?;
        Ok((StateKey::derive(&credentials.client_secret), credentials.client_id.clone()))
    }
}

impl HttpFunction for Installer {
    async fn answer(&self, request: Request) -> Response<Body> {
        let request_id = request.lambda_context().request_id;
        with_header(self.page(&request, &request_id).await, REQUEST_ID, &request_id)
    }

    fn answer_malformed(&self, invocation: &Context) -> Response<Body> {
        tracing::warn!("an event is not an HTTP request");
        let request_id = &invocation.request_id;
        with_header(pages::failure(Failure::Malformed, self.surroundings(request_id)), REQUEST_ID, request_id)
    }
}

/// The query, still encoded.
fn query(request: &Request) -> &str {
    request.uri().query().unwrap_or_default()
}
