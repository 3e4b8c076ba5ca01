//! The fake platform: consent page, token endpoint, minting, a part of the API, and records of every request.
//!
//! A wrong fake makes every other test worthless, so the decisions of the fake are pure code with tests, in [`grants`]
//! and [`window`]. Tests control the fake with [`Platform`]. The same controls are served under `/_sandbox/` for people
//! with `curl`.

mod activity;
mod api;
mod consent;
mod control;
pub mod faults;
pub mod grants;
mod ledger;
mod oauth;
mod options;
mod published;
pub mod webhooks;
pub mod window;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use serde::Serialize;

pub use self::ledger::{ApiRequest, TokenRequest};
pub use self::options::{ApiVersions, Location, Options};
use self::{
    faults::{Endpoint, Fault, Plan, Plans},
    grants::{Grants, RefreshTokenState, Resource},
    ledger::Ledger,
    webhooks::{Kind, Webhooks},
    window::{Limits, Remaining, Window},
};
use crate::{
    clock::Clock,
    events::{Event, EventBus},
    lock::lock,
    server::{Server, StartError, WhenClientLeaves},
};

/// The fake platform without its server: tests read its state and control it. See [`Marketplace`].
#[derive(Debug)]
pub struct Platform {
    state: Mutex<State>,
    clock: Clock,
    bus: EventBus,
    /// File to which the grants are saved after each change, if [`Platform::keep_in`] named one.
    saved_to: Mutex<Option<std::path::PathBuf>>,
    /// Environment for `ops`, which requests it from the fake platform.
    operators_environment: Mutex<BTreeMap<String, String>>,
    webhooks: Webhooks,
}

#[derive(Debug)]
struct State {
    options: Options,
    grants: Grants,
    windows: BTreeMap<Resource, Window>,
    limits_of: HashMap<Resource, Limits>,
    plans: Plans,
    ledger: Ledger,
    not_installed: HashSet<String>,
    /// The times of the requests that the token endpoint has admitted in the last minute.
    token_minute: VecDeque<Duration>,
    contacts: BTreeMap<String, Vec<serde_json::Value>>,
    charges: Vec<serde_json::Value>,
}

/// State of a resource at the platform.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Glance {
    /// True if the platform refuses the resource's access token, even if the holder believes that the token is valid.
    pub refuses_token: bool,
    /// True if the resource is paused.
    pub paused: bool,
    /// Rate limits of the resource.
    pub limits: Limits,
    /// Remaining requests within the limits.
    pub remaining: Remaining,
}

/// The fake platform and its server. Dropping this ends the server.
#[derive(Debug)]
pub struct Marketplace {
    platform: Arc<Platform>,
    server: Server,
}

impl Deref for Marketplace {
    type Target = Platform;

    fn deref(&self) -> &Platform {
        &self.platform
    }
}

impl Marketplace {
    /// Starts the fake platform.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn start(options: Options, bus: EventBus) -> Result<Self, StartError> {
        let port = options.port;
        let platform = Arc::new(Platform::new(options, bus)?);
        let router = consent::routes()
            .merge(oauth::routes())
            .merge(control::routes())
            .fallback(api::serve)
            .with_state(Arc::clone(&platform));
        let server = Server::start(port, router, WhenClientLeaves::Finish).await?;
        Ok(Self { platform, server })
    }

    /// Base URL of both the API and the consent page.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Returns the platform without its server, to be shared.
    pub fn platform(&self) -> Arc<Platform> {
        Arc::clone(&self.platform)
    }
}

impl Platform {
    fn new(options: Options, bus: EventBus) -> Result<Self, StartError> {
        let webhooks = Webhooks::new(options.webhook_secret.clone(), bus.clone())?;
        let state = State {
            options,
            grants: Grants::default(),
            windows: BTreeMap::new(),
            limits_of: HashMap::new(),
            plans: Plans::default(),
            ledger: Ledger::default(),
            not_installed: HashSet::new(),
            token_minute: VecDeque::new(),
            contacts: BTreeMap::new(),
            charges: Vec::new(),
        };
        Ok(Self {
            state: Mutex::new(state),
            clock: Clock::default(),
            bus,
            saved_to: Mutex::default(),
            operators_environment: Mutex::default(),
            webhooks,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn control(&self, what: impl Into<String>) {
        self.bus.publish(Event::Control { what: what.into() });
    }

    /// Sets the answer of `GET /_sandbox/environment`.
    pub fn tell_operators(&self, environment: BTreeMap<String, String>) {
        *lock(&self.operators_environment) = environment;
    }

    /// Returns the clock of codes, tokens, replay windows and rate limits.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Returns the current options.
    pub fn options(&self) -> Options {
        self.state().options.clone()
    }

    /// Changes options while the fake runs.
    pub fn change(&self, change: impl FnOnce(&mut Options)) {
        change(&mut self.state().options);
    }

    /// Registers a further redirect URI.
    pub fn allow_redirect(&self, uri: impl Into<String>) {
        let uri = uri.into();
        self.change(|options| {
            if !options.redirect_uris.contains(&uri) {
                options.redirect_uris.push(uri);
            }
        });
    }

    /// Sets the limits of one resource.
    pub fn set_limits_of(&self, resource: Resource, limits: Limits) {
        self.state().limits_of.insert(resource, limits);
    }

    /// Counts requests against a resource's daily limit, as if another program with the same app had sent them.
    pub fn spend_today(&self, resource: &Resource, count: u64) {
        let now = self.clock.now();
        self.state().windows.entry(resource.clone()).or_default().spend_today(now, count);
    }

    /// Returns the sender of install and uninstall webhooks. The sender sends nothing until the URL is set.
    pub fn webhooks(&self) -> &Webhooks {
        &self.webhooks
    }

    /// Installs the app, as a user does in the marketplace; an agency gets the app with all its locations. Returns a
    /// code as after consent, and sends the install webhook.
    pub fn install(&self, resource: &Resource) -> String {
        if let Resource::Company(_) = resource {
            self.state().not_installed.clear();
        }
        let code = self.authorize(resource.clone());
        self.tell(Kind::Install, resource);
        code
    }

    /// Sends webhooks for a resource. An install of an agency also sends a webhook for each of its locations that has
    /// the app.
    fn tell(&self, kind: Kind, resource: &Resource) {
        let state = self.state();
        let at = self.clock.now();
        self.webhooks.send(kind, resource, &state.options, at);
        if let (Kind::Install, Resource::Company(_)) = (kind, resource) {
            for location in state.options.locations.iter().filter(|known| !state.not_installed.contains(&known.id)) {
                self.webhooks.send(kind, &Resource::Location(location.id.clone()), &state.options, at);
            }
        }
    }

    /// Issues a code as after consent, without the consent page. The code fits any registered redirect URI.
    pub fn authorize(&self, resource: Resource) -> String {
        self.code(resource, None)
    }

    /// Issues a code for the chosen resource. With `bulk_install`, a code for one location becomes a code for its
    /// agency, with only that location installed.
    fn code(&self, chosen: Resource, redirect_uri: Option<String>) -> String {
        let now_ms = self.clock.now_ms();
        let mut state = self.state();
        let company = match &chosen {
            Resource::Location(id) => state.options.company_of(id).to_owned(),
            Resource::Company(id) => id.clone(),
        };
        let resource = match chosen {
            Resource::Location(id) if state.options.bulk_install => {
                let others = state.options.locations.iter().filter(|location| location.id != id);
                state.not_installed = others.map(|location| location.id.clone()).collect();
                Resource::Company(company.clone())
            }
            Resource::Location(id) => {
                state.not_installed.remove(&id);
                Resource::Location(id)
            }
            agency @ Resource::Company(_) => agency,
        };
        state.grants.issue_code(resource, &company, redirect_uri, now_ms)
    }

    /// Plans a fault for the next `times` requests at `at`. With `None`, the fault applies until
    /// [`Platform::clear_faults`].
    pub fn fault(&self, at: Endpoint, fault: Fault, times: Option<u32>) {
        self.plan(Plan { at, fault, times });
    }

    fn plan(&self, plan: Plan) {
        self.control(format!("the platform is made to fail: {plan}"));
        self.state().plans.add(plan);
    }

    /// Removes every planned fault.
    pub fn clear_faults(&self) {
        self.state().plans.clear();
    }

    /// Expires every access token now. Refresh tokens stay valid.
    pub fn expire_access_tokens(&self) {
        let now_ms = self.clock.now_ms();
        self.state().grants.expire_access(now_ms);
        self.save();
        self.control("all access tokens expired");
    }

    /// Expires the access tokens of one resource now.
    pub fn expire_access_tokens_of(&self, resource: &Resource) {
        let now_ms = self.clock.now_ms();
        self.state().grants.expire_access_of(resource, now_ms);
        self.save();
        self.control(format!("the access tokens of {resource} expired"));
    }

    /// Returns the state of a resource at the platform, for display: if the platform refuses the access tokens that
    /// were issued until `issued_by_ms`, and the counts of requests.
    pub fn glance(&self, resource: &Resource, issued_by_ms: u64) -> Glance {
        let now_ms = self.clock.now_ms();
        let state = self.state();
        let limits = state.limits(resource);
        let window = state.windows.get(resource).cloned().unwrap_or_default();
        Glance {
            refuses_token: state.grants.access_until(resource, issued_by_ms).is_some_and(|until| until <= now_ms),
            paused: state.grants.is_paused(resource),
            limits,
            remaining: window.remaining(self.clock.now(), limits),
        }
    }

    /// Removes one planned fault, the oldest that equals `fault`.
    pub fn forget_fault(&self, at: Endpoint, fault: &Fault) {
        self.state().plans.forget(at, fault);
    }

    /// Returns the planned faults, oldest first.
    pub fn faults(&self) -> Vec<Plan> {
        self.state().plans.list().to_vec()
    }

    /// Moves the platform's clock forwards, for example past a replay window, a rate-limit window, or a token's life.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.control(format!("the platform's clock moved on by {} s", by.as_secs()));
    }

    /// Resumes all paused resources.
    pub fn set_all_active(&self) {
        let resources = self.state().grants.set_all_active();
        for resource in resources {
            self.control(format!("{resource} is active again"));
        }
    }

    /// Pauses a resource, or resumes it. While a resource is paused, a refresh answers "Location is not active".
    pub fn set_active(&self, resource: Resource, active: bool) {
        self.control(format!("{resource} {}", if active { "is active again" } else { "is paused" }));
        self.state().grants.set_active(resource, active);
        self.save();
    }

    /// Revokes every token of a resource, as when a user uninstalls the app.
    pub fn uninstall(&self, resource: &Resource) {
        {
            let mut state = self.state();
            state.grants.uninstall(resource);
            if let Resource::Location(id) = resource {
                state.not_installed.insert(id.clone());
            }
        }
        self.save();
        self.control(format!("{resource} uninstalled"));
        self.tell(Kind::Uninstall, resource);
    }

    /// Uninstalls the app as [`Platform::uninstall`] does, an agency's also from all of the agency's locations. Only the
    /// agency's webhook is sent.
    fn uninstall_whole(&self, resource: &Resource) {
        if let Resource::Company(company) = resource {
            let mut state = self.state();
            let locations = state.options.locations_of(company).to_vec();
            for Location { id, .. } in locations {
                state.grants.uninstall(&Resource::Location(id));
            }
        }
        self.uninstall(resource);
    }

    /// Returns the current state of a refresh token, so that tests can check that a stored grant is alive.
    pub fn refresh_token_state(&self, refresh_token: &str) -> RefreshTokenState {
        let now_ms = self.clock.now_ms();
        let state = self.state();
        state.grants.refresh_token_state(refresh_token, state.options.rotation, now_ms)
    }

    /// Returns the live refresh token of each unrevoked family of a resource, oldest family first.
    pub fn live_refresh_tokens(&self, resource: &Resource) -> Vec<String> {
        self.state().grants.live_refresh_tokens(resource)
    }

    /// Returns true if the API would accept this access token now.
    pub fn takes_access_token(&self, access_token: &str) -> bool {
        self.state().grants.check_access(access_token, self.clock.now_ms()).is_ok()
    }

    /// Returns every code and token that was ever issued, and the client secret. None of them may appear in a log.
    pub fn every_secret(&self) -> Vec<String> {
        let state = self.state();
        let mut secrets: Vec<String> = state.grants.every_secret().map(str::to_owned).collect();
        secrets.extend(state.ledger.codes_seen().map(str::to_owned));
        secrets.extend(state.options.webhook_secret.clone());
        secrets.push(state.options.client_secret.clone());
        secrets
    }

    /// Returns all requests to the token and minting endpoints, oldest first.
    pub fn token_requests(&self) -> Vec<TokenRequest> {
        self.state().ledger.token_requests()
    }

    /// Returns the number of token requests with this grant: `authorization_code`, `refresh_token` or `mint`.
    pub fn token_requests_for(&self, grant: &str) -> usize {
        self.state().ledger.count(grant)
    }

    /// Returns all requests to the API for one resource, oldest first, with any status.
    pub fn api_requests(&self, resource: &Resource) -> Vec<ApiRequest> {
        self.state().ledger.api_requests(resource)
    }

    /// Returns the number of requests to the API whose token belongs to no resource.
    pub fn strangers(&self) -> u64 {
        self.state().ledger.strangers()
    }

    /// Returns the most requests of a resource that ever arrived within one burst interval, measured with a sliding
    /// window.
    pub fn worst_window(&self, resource: &Resource) -> usize {
        self.state().windows.get(resource).map_or(0, Window::worst)
    }

    /// Loads the grants from a file if it exists, and saves them there from now on.
    ///
    /// # Errors
    /// The file exists and cannot be read.
    pub fn keep_in(&self, path: &std::path::Path) -> Result<(), StartError> {
        let problem = |problem: String| StartError::File { path: path.display().to_string(), problem };
        if path.exists() {
            let text = std::fs::read_to_string(path).map_err(|error| problem(error.to_string()))?;
            self.state().grants = serde_json::from_str(&text).map_err(|error| problem(error.to_string()))?;
        }
        *lock(&self.saved_to) = Some(path.to_owned());
        Ok(())
    }

    /// Writes the grants to the file that [`Platform::keep_in`] named.
    fn save(&self) {
        let Some(path) = lock(&self.saved_to).clone() else { return };
        let Ok(text) = serde_json::to_string(&self.state().grants) else { return };
        let unfinished = path.with_extension("unfinished");
        let written = std::fs::write(&unfinished, text).and_then(|()| std::fs::rename(&unfinished, &path));
        if let Err(error) = written {
            self.control(format!("{} cannot be written: {error}", path.display()));
        }
    }
}

impl State {
    fn limits(&self, resource: &Resource) -> Limits {
        self.limits_of.get(resource).copied().unwrap_or(self.options.limits)
    }

    fn life_ms(&self) -> u64 {
        u64::try_from(self.options.token_life.as_millis()).unwrap_or(u64::MAX)
    }
}
