//! The handler of this function's requests: calls the pure modules, the platform and the table, and makes the response.

use std::time::Duration;

use http::header::{LOCATION, SET_COOKIE};
use http::{HeaderName, StatusCode};
use lambda_http::{Body, Context, Request, RequestExt as _, Response};
use shared::app::App;
use shared::config::{Authorization, Brand, InstallChoice};
use shared::domain::resource::Kind;
use shared::lambda::gateway;
use shared::lambda::serve::HttpFunction;
use shared::table::redirect::Ending;

use crate::authorize::{Marketplace, authorization_url};
use crate::browser::Browser;
use crate::done::Done;
use crate::event::{Sender, cookies, is_prefetch, response, with_header};
use crate::failure::{self, InstallFailure};
use crate::pages::{self, PageContext};
use crate::public_url::PublicUrl;
use crate::query::parameter;
use crate::redirect::Redirect;
use crate::redirect_claim::{ArrivingRedirect, NextStep, Visitor};
use crate::route::{self, Route, route};
use crate::state::StateKey;

/// The response header with the Lambda request id, which is also on the log lines of the invocation.
const REQUEST_ID: HeaderName = HeaderName::from_static("relay-request-id");

/// An exchange waits for this time for a permit of the token endpoint, which is the longest wait for a free place at 5
/// requests a minute. The connection (3 s), the exchange (8 s) and the write of the installation follow within the invocation.
const EXCHANGE_WAIT: Duration = Duration::from_millis(12_500);

/// A response, and its name in logs and metrics.
type NamedResponse = (Response<Body>, &'static str);

/// The state of a code whose exchange brought no installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CodeState {
    /// The code cannot be exchanged any more.
    Spent,
    /// The code may still be valid: the platform was not reached, or did not check the code.
    MaybeUsable,
    /// The code is as good as before: the token endpoint took no request.
    NotPresented,
}

/// The HTTP handler that installs one app.
pub struct Installer {
    app: App,
    authorization: Authorization,
    brand: Brand,
}

impl Installer {
    /// A handler for one app.
    pub fn new(app: App, authorization: Authorization, brand: Brand) -> Self {
        Self { app, authorization, brand }
    }

    async fn page(&self, request: &Request, request_id: &str) -> Response<Body> {
        let config = &self.authorization;
        let domain = gateway::context(request).and_then(|context| context.domain_name.as_deref());
        let public =
            PublicUrl::of(config.public_url.as_ref(), domain, gateway::stage(request), request.raw_http_path());
        let mut page_context = PageContext { public: public.as_ref().ok(), ..self.page_context(request_id) };
        let began = self.app.clock.now();
        let found = route(request, config.public_url.as_ref());
        let installs = matches!(found, Ok(Route::Callback(_))).then_some(1);
        let outcome = match (found, &public) {
            (Err(failure), _) => Err(failure),
            (Ok(Route::Done), _) => return pages::done(Done::read(query(request)), page_context),
            (Ok(_), Err(error)) => {
                tracing::error!(%error, "the public URL of this deployment is unknown, so there is no redirect URI");
                Err(InstallFailure::Misconfigured)
            }
            (Ok(Route::Install), Ok(public)) => match self.requested_marketplace(request) {
                Ok(None) => return pages::choice(page_context),
                Ok(Some(chosen)) => {
                    page_context.marketplace = chosen;
                    self.start_install(request, public, chosen).await
                }
                Err(failure) => Err(failure),
            },
            (Ok(Route::Callback(path)), Ok(public)) => {
                let sender = Sender::read(request, began);
                self.finish_install(request, path, public, sender, &mut page_context.marketplace).await
            }
        };
        let name = outcome.as_ref().map_or_else(|failure| failure.name(), |(_, name)| name);
        // The code that decided on a failure of our own has already logged the reason.
        let is_ours = outcome.as_ref().is_err_and(|failure| failure.is_ours());
        tracing::info!(
            outcome = name,
            status = outcome.as_ref().map_or_else(|failure| failure.status(), |(page, _)| page.status()).as_u16(),
            total_ms = u64::try_from(self.app.clock.now().since(began).as_millis()).unwrap_or(u64::MAX),
            Installs = installs,
            InstallFailures = u8::from(is_ours),
            "install"
        );
        outcome.map_or_else(|failure| pages::failure(failure, page_context), |(page, _)| page)
    }

    /// The context of a page before its request was read.
    fn page_context<'a>(&'a self, request_id: &'a str) -> PageContext<'a> {
        let (config, brand) = (&self.authorization, &self.brand);
        PageContext { config, brand, public: None, marketplace: Marketplace::Standard, request_id }
    }

    /// The marketplace host that `GET /oauth/install` names. `None` if the admin must choose.
    fn requested_marketplace(&self, request: &Request) -> Result<Option<Marketplace>, InstallFailure> {
        match (parameter(query(request), "white_label")?.as_deref(), self.authorization.install_choice) {
            (None, InstallChoice::Ask) => Ok(None),
            (None, InstallChoice::Direct) | (Some("0" | "false"), _) => Ok(Some(Marketplace::Standard)),
            (Some("1" | "true"), _) => Ok(Some(Marketplace::WhiteLabel)),
            (Some(_), _) => Err(InstallFailure::Malformed),
        }
    }

    /// `GET /oauth/install`: redirects to the authorization page.
    async fn start_install(
        &self,
        request: &Request,
        public: &PublicUrl,
        marketplace: Marketplace,
    ) -> Result<NamedResponse, InstallFailure> {
        let (key, client_id) = self.credentials().await?;
        let browser = Browser::known(cookies(request), public).unwrap_or_default();
        let redirect_uri = public.at(route::CALLBACK);
        let state = key.sign(marketplace, &browser, &redirect_uri, self.app.clock.now());
        let link = authorization_url(&self.authorization, marketplace, &client_id, &redirect_uri, &state);
        let redirect = with_header(response(StatusCode::FOUND, Body::Empty), LOCATION, link.as_str());
        Ok((with_header(redirect, SET_COOKIE, &browser.cookie(public)), "redirected"))
    }

    /// `GET /oauth/callback`: exchanges the code once, stores the installation, and redirects to a URL without the
    /// code.
    async fn finish_install(
        &self,
        request: &Request,
        path: &str,
        public: &PublicUrl,
        sender: Sender,
        marketplace: &mut Marketplace,
    ) -> Result<NamedResponse, InstallFailure> {
        // This check comes first, because a prefetch must not spend the code.
        if is_prefetch(request) {
            return Err(InstallFailure::Prefetched);
        }
        let redirect = Redirect::read(query(request))?;
        let redirect_uri = public.at(redirect.path(path));
        let (key, _) = self.credentials().await?;
        let known = Browser::known(cookies(request), public);
        let without_state = self.authorization.marketplace_installs;
        let admitted = redirect.admit(&key, known.as_ref(), &redirect_uri, without_state)?;
        *marketplace = admitted.marketplace();

        // Codes are single-use: no code is spent while the installation cannot be stored.
        self.app.installations.ready().await.map_err(|error| {
            tracing::error!(%error, "the installation could not be stored, so the code is not exchanged");
            failure::of_install(&error).unwrap_or(InstallFailure::Unavailable)
        })?;
        let visitor = Visitor { has_cookie: known.is_some(), browser: known.unwrap_or_default(), sender };
        let clock = &self.app.clock;
        let arriving = ArrivingRedirect::new(&self.app, &key, &admitted, &redirect.code, &visitor);
        let exchange = || Box::pin(self.exchange(&redirect, &redirect_uri, public));
        let (kind, name) =
            match arriving.next_step(admitted.check_age(clock.now()).map_err(InstallFailure::from)).await? {
                NextStep::Repeated(kind) => (kind, "repeated"),
                NextStep::ExchangeUnclaimed => (exchange().await.map_err(|(failure, _)| failure)?, "installed"),
                NextStep::Exchange(claim) => {
                    let exchanged = exchange().await;
                    let ending = match exchanged {
                        Ok(kind) => Ending::Connected(kind),
                        Err((failure, CodeState::Spent)) => Ending::Failed(failure.name()),
                        Err((failure, CodeState::MaybeUsable)) => Ending::Open(failure.name()),
                        Err((failure, CodeState::NotPresented)) => Ending::NotPresented(failure.name()),
                    };
                    claim.end(ending).await;
                    (exchanged.map_err(|(failure, _)| failure)?, "installed")
                }
            };
        let done = Done { kind: Some(kind), marketplace: *marketplace };
        let mut page = with_header(response(StatusCode::SEE_OTHER, Body::Empty), LOCATION, &public.at(&done.path()));
        // A repeated arrival without a cookie gets no cookie, because its new browser secret is not the secret of the
        // first arrival.
        if name == "installed" || visitor.has_cookie {
            page = with_header(page, SET_COOKIE, &visitor.browser.cookie(public));
        }
        Ok((page, name))
    }

    /// Exchanges the code, and stores the installation.
    async fn exchange(
        &self,
        redirect: &Redirect,
        redirect_uri: &str,
        public: &PublicUrl,
    ) -> Result<Kind, (InstallFailure, CodeState)> {
        let started = self.app.clock.now();
        let until = started + EXCHANGE_WAIT;
        let exchanged = self.app.codes.exchange(&redirect.code, redirect_uri, until).await;
        let grant = exchanged.map_err(|error| {
            let failure = InstallFailure::from(&error);
            if failure.is_ours() {
                tracing::error!(?error, "the code could not be exchanged");
            }
            let state = match failure {
                InstallFailure::CodeRefused => CodeState::Spent,
                InstallFailure::Busy => CodeState::NotPresented,
                _ => CodeState::MaybeUsable,
            };
            (failure, state)
        })?;
        match self.app.installations.install(&grant, started, public.as_str()).await {
            Ok(installed) => Ok(installed.resource.kind()),
            Err(error) => {
                tracing::error!(%error, resource = %grant.resource, "the code was exchanged, and the table did not take the installation");
                failure::of_install(&error)
                    .map_or(Ok(grant.resource.kind()), |failure| Err((failure, CodeState::Spent)))
            }
        }
    }

    /// The key that signs states, and the client id.
    async fn credentials(&self) -> Result<(StateKey, String), InstallFailure> {
        let credentials = self.app.app_secret.get().await.map_err(|error| {
            tracing::error!(%error, "the app's credentials cannot be read");
            InstallFailure::from(&error)
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
        tracing::warn!("the event is not an HTTP request");
        let request_id = &invocation.request_id;
        with_header(pages::failure(InstallFailure::Malformed, self.page_context(request_id)), REQUEST_ID, request_id)
    }
}

/// The query of a request, not decoded.
fn query(request: &Request) -> &str {
    request.uri().query().unwrap_or_default()
}
