//! The fake platform: consent page, token endpoint, minting, a part of the API, and records of every request.
//!
//! A wrong fake makes every other test worthless, so its decisions are pure code with tests, in [`grants`] and
//! [`window`]. Tests control it with [`Platform`]. The same controls are served under `/_sandbox/` for people with `curl`.

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
    collections::{BTreeMap, HashMap, HashSet},
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use serde::Serialize;

pub use self::ledger::{ApiRequest, TokenRequest};
pub use self::options::{Location, Options};
use self::{
    faults::{Endpoint, Fault, Plan, Plans},
    grants::{Grants, Resource, Standing},
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

/// Ask it and move it; see [`Marketplace`].
#[derive(Debug)]
pub struct Platform {
    state: Mutex<State>,
    clock: Clock,
    bus: EventBus,
    /// Told after each change of the grants, so that they can be kept in a file.
    saved_to: Mutex<Option<std::path::PathBuf>>,
    /// Environment for `ops`, which asks the fake platform for it.
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
    contacts: BTreeMap<String, Vec<serde_json::Value>>,
}

/// How the platform sees a resource.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Glance {
    /// Whether its access token is over, whatever its holder thinks.
    pub refuses_token: bool,
    /// Whether it is paused.
    pub paused: bool,
    /// What it may ask.
    pub limits: Limits,
    /// What is left of that.
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
    /// Starts it.
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
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The platform without its server, to share.
    #[must_use]
    pub fn platform(&self) -> Arc<Platform> {
        Arc::clone(&self.platform)
    }
}

impl Platform {
    fn new(options: Options, bus: EventBus) -> Result<Self, StartError> {
        let state = State {
            options,
            grants: Grants::default(),
            windows: BTreeMap::new(),
            limits_of: HashMap::new(),
            plans: Plans::default(),
            ledger: Ledger::default(),
            not_installed: HashSet::new(),
            contacts: BTreeMap::new(),
        };
        let webhooks = Webhooks::new(bus.clone())?;
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

    /// What `GET /_sandbox/environment` answers from now on.
    pub fn tell_operators(&self, environment: BTreeMap<String, String>) {
        *lock(&self.operators_environment) = environment;
    }

    /// The clock of codes, tokens, replay windows and rate limits.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The options as they are now.
    #[must_use]
    pub fn options(&self) -> Options {
        self.state().options.clone()
    }

    /// Changes options while it runs.
    pub fn change(&self, change: impl FnOnce(&mut Options)) {
        change(&mut self.state().options);
    }

    /// Takes a redirect URI from now on.
    pub fn allow_redirect(&self, uri: impl Into<String>) {
        let uri = uri.into();
        self.change(|options| {
            if !options.redirect_uris.contains(&uri) {
                options.redirect_uris.push(uri);
            }
        });
    }

    /// Gives one resource limits of its own.
    pub fn set_limits_of(&self, resource: Resource, limits: Limits) {
        self.state().limits_of.insert(resource, limits);
    }

    /// Uses up a part of a resource's day, as another program with the same app would.
    pub fn spend_today(&self, resource: &Resource, count: u64) {
        let now = self.clock.now();
        self.state().windows.entry(resource.clone()).or_default().spend_today(now, count);
    }

    /// What tells the app of installs and uninstalls, once it knows where.
    #[must_use]
    pub fn webhooks(&self) -> &Webhooks {
        &self.webhooks
    }

    /// Somebody installs the app from the marketplace, an agency with all its locations: a code as after consent, and the
    /// app is told.
    #[must_use]
    pub fn install(&self, resource: &Resource) -> String {
        if let Resource::Company(_) = resource {
            self.state().not_installed.clear();
        }
        let code = self.authorize(resource.clone());
        self.tell(Kind::Install, resource);
        code
    }

    /// Tells the app of a resource, and with an agency of each of its locations that has the app.
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

    /// A code as after consent, without the page. It fits any registered redirect URI.
    #[must_use]
    pub fn authorize(&self, resource: Resource) -> String {
        self.code(resource, None)
    }

    /// A code for what was chosen, which a bulk install turns into the whole agency with one location.
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

    /// Makes a fault wait for the next `times` requests at `at`; `None`: until [`Platform::clear_faults`].
    pub fn fault(&self, at: Endpoint, fault: Fault, times: Option<u32>) {
        self.plan(Plan { at, fault, times });
    }

    fn plan(&self, plan: Plan) {
        self.control(format!("the platform is made to fail: {plan}"));
        self.state().plans.add(plan);
    }

    /// Forgets every waiting fault.
    pub fn clear_faults(&self) {
        self.state().plans.clear();
    }

    /// Ends every access token now; the refresh tokens stay good.
    pub fn expire_access_tokens(&self) {
        let now_ms = self.clock.now_ms();
        self.state().grants.expire_access(now_ms);
        self.save();
        self.control("all access tokens expired");
    }

    /// The same for one resource.
    pub fn expire_access_tokens_of(&self, resource: &Resource) {
        let now_ms = self.clock.now_ms();
        self.state().grants.expire_access_of(resource, now_ms);
        self.save();
        self.control(format!("the access tokens of {resource} expired"));
    }

    /// How the platform sees a resource, for people who watch: whether it still takes the access tokens that were issued
    /// until `issued_by_ms`, and what it counts.
    #[must_use]
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

    /// Forgets one waiting fault, the oldest of its kind.
    pub fn forget_fault(&self, at: Endpoint, fault: &Fault) {
        self.state().plans.forget(at, fault);
    }

    /// The faults that wait, oldest first.
    #[must_use]
    pub fn faults(&self) -> Vec<Plan> {
        self.state().plans.list().to_vec()
    }

    /// Moves the platform's clock: past a replay window, a rate-limit window, a token's life.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.control(format!("the platform's clock moved on by {} s", by.as_secs()));
    }

    /// Lets everything go on that is paused.
    pub fn set_all_active(&self) {
        let resources = self.state().grants.set_all_active();
        for resource in resources {
            self.control(format!("{resource} is active again"));
        }
    }

    /// Pauses a resource (refreshing answers "Location is not active"), or lets it go on.
    pub fn set_active(&self, resource: Resource, active: bool) {
        self.control(format!("{resource} {}", if active { "is active again" } else { "is paused" }));
        self.state().grants.set_active(resource, active);
        self.save();
    }

    /// Ends everything a resource has, as when somebody uninstalls the app.
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

    /// What presenting this refresh token would do now: is a stored grant alive?
    #[must_use]
    pub fn standing(&self, refresh_token: &str) -> Standing {
        let now_ms = self.clock.now_ms();
        let state = self.state();
        state.grants.standing(refresh_token, state.options.rotation, now_ms)
    }

    /// The live refresh token of each chain of a resource that is not revoked, oldest chain first.
    #[must_use]
    pub fn live_refresh_tokens(&self, resource: &Resource) -> Vec<String> {
        self.state().grants.live_refresh_tokens(resource)
    }

    /// Whether the API would take this access token now.
    #[must_use]
    pub fn takes_access_token(&self, access_token: &str) -> bool {
        self.state().grants.check_access(access_token, self.clock.now_ms()).is_ok()
    }

    /// Every code and token there ever was, and the client's secret: what must not be in any log.
    #[must_use]
    pub fn every_secret(&self) -> Vec<String> {
        let state = self.state();
        let mut secrets: Vec<String> = state.grants.every_secret().map(str::to_owned).collect();
        secrets.extend(state.ledger.codes_seen().map(str::to_owned));
        secrets.push(state.options.client_secret.clone());
        secrets
    }

    /// All requests to the token and minting endpoints, oldest first.
    #[must_use]
    pub fn token_requests(&self) -> Vec<TokenRequest> {
        self.state().ledger.token_requests()
    }

    /// How many of them were for this grant: `authorization_code`, `refresh_token`, `mint`.
    #[must_use]
    pub fn token_requests_for(&self, grant: &str) -> usize {
        self.state().ledger.count(grant)
    }

    /// All requests to the API for one resource, oldest first, whatever was answered.
    #[must_use]
    pub fn api_requests(&self, resource: &Resource) -> Vec<ApiRequest> {
        self.state().ledger.api_requests(resource)
    }

    /// Requests to the API whose token was of nobody.
    #[must_use]
    pub fn strangers(&self) -> u64 {
        self.state().ledger.strangers()
    }

    /// The most requests of a resource that ever arrived within one burst interval, wherever it is laid.
    #[must_use]
    pub fn worst_window(&self, resource: &Resource) -> usize {
        self.state().windows.get(resource).map_or(0, Window::worst)
    }

    /// Forgets what was recorded and counted; tokens, limits and faults stay.
    pub fn forget_requests(&self) {
        let mut state = self.state();
        state.ledger = Ledger::default();
        state.windows.clear();
    }

    /// Keeps the grants in a file from now on, and takes those that are in it.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn keep_in(&self, path: &std::path::Path) -> Result<(), StartError> {
        let problem = |problem: String| StartError::File { path: path.display().to_string(), problem };
        if path.exists() {
            let text = std::fs::read_to_string(path).map_err(|error| problem(error.to_string()))?;
            self.state().grants = serde_json::from_str(&text).map_err(|error| problem(error.to_string()))?;
        }
        *lock(&self.saved_to) = Some(path.to_owned());
        Ok(())
    }

    /// Writes the grants where [`Platform::keep_in`] said.
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
