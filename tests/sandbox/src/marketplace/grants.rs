//! Authorization codes, token pairs and their rotation: the platform's records of its installations.
//!
//! The code is pure: time is an argument (milliseconds since the epoch), and nothing here uses HTTP.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::identity;

/// The owner of a token.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// A location (sub-account).
    Location(String),
    /// A company (agency).
    Company(String),
}

impl Resource {
    /// Returns the id without its kind.
    pub fn id(&self) -> &str {
        let (Self::Location(id) | Self::Company(id)) = self;
        id
    }
}

impl std::fmt::Display for Resource {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Location(id) => write!(out, "location:{id}"),
            Self::Company(id) => write!(out, "company:{id}"),
        }
    }
}

impl std::str::FromStr for Resource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("location", id)) if !id.is_empty() => Ok(Self::Location(id.to_owned())),
            Some(("company", id)) if !id.is_empty() => Ok(Self::Company(id.to_owned())),
            _ => Err(format!("{text:?} is neither location:ID nor company:ID")),
        }
    }
}

/// The platform's treatment of a refresh token that is presented again after its use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    /// A used token is refused at once.
    Strict,
    /// For 30 s after its use, a used token gets the same successor again, with a new access token. The platform
    /// documents this behaviour.
    #[default]
    Forgiving,
    /// Like [`Self::Forgiving`], but without a time limit. For tests in real time, which may take long on a busy
    /// machine.
    AlwaysForgiving,
    /// A used token is refused, and its successors are revoked. Many authorization servers do this.
    FamilyRevoking,
}

impl Rotation {
    /// Returns true if a token that was used `ms` milliseconds ago gets its successor again.
    fn forgives_after(self, ms: u64) -> bool {
        match self {
            Self::Forgiving => ms < REPLAY_WINDOW_MS,
            Self::AlwaysForgiving => true,
            Self::Strict | Self::FamilyRevoking => false,
        }
    }
}

/// The time during which [`Rotation::Forgiving`] answers a used token, in milliseconds.
pub const REPLAY_WINDOW_MS: u64 = 30_000;
const CODE_LIFE_MS: u64 = 5 * 60_000;

/// A token pair as the platform hands it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The resource of the tokens.
    pub resource: Resource,
    /// The agency to which the resource belongs.
    pub company: String,
    /// Access token.
    pub access: String,
    /// Refresh token.
    pub refresh: String,
    /// End of the access token's life, in milliseconds since the epoch.
    pub expires_at_ms: u64,
}

/// The reason for which the platform refuses to issue tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The code is unknown, used or expired.
    CodeNotFound,
    /// The code was issued for another redirect URI.
    RedirectMismatch,
    /// The refresh token is unknown, used or revoked.
    RefreshTokenInvalid,
    /// The resource is paused by its agency or for billing. The refresh token stays valid.
    NotActive,
}

/// The reason for which the platform refuses an access token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessProblem {
    /// The token was never issued, or is revoked.
    Unknown,
    /// The token was issued for this resource and has expired.
    Expired(Resource),
}

/// The state of a refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RefreshTokenState {
    /// The platform accepts the token and answers with a new pair.
    Live,
    /// The token is used, but within the replay window: the platform answers with its successor.
    Replayable,
    /// The platform refuses the token.
    Dead,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Code {
    resource: Resource,
    company: String,
    redirect_uri: Option<String>,
    expires_at_ms: u64,
}

/// A family: the chain of refresh tokens that began with one consent.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Family {
    resource: Resource,
    company: String,
    live: String,
    revoked: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Presented {
    family: usize,
    spent: Option<Spent>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Spent {
    at_ms: u64,
    successor: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Access {
    resource: Resource,
    company: String,
    #[serde(default)]
    issued_at_ms: u64,
    expires_at_ms: u64,
}

/// All codes and tokens that the platform has issued.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Grants {
    codes: HashMap<String, Code>,
    families: Vec<Family>,
    refresh: HashMap<String, Presented>,
    access: HashMap<String, Access>,
    paused: HashSet<Resource>,
}

impl Grants {
    /// Issues a single-use code, as the platform does after consent.
    pub fn issue_code(
        &mut self,
        resource: Resource,
        company: &str,
        redirect_uri: Option<String>,
        now_ms: u64,
    ) -> String {
        let code = shared::domain::random::hex::<20>();
        let expires_at_ms = now_ms + CODE_LIFE_MS;
        self.codes.insert(code.clone(), Code { resource, company: company.to_owned(), redirect_uri, expires_at_ms });
        code
    }

    /// Returns true if the platform would accept the code. The platform checks the code before it checks the client.
    pub fn knows_code(&self, code: &str, now_ms: u64) -> bool {
        self.codes.get(code).is_some_and(|code| now_ms < code.expires_at_ms)
    }

    /// Redeems a code and returns the first pair of a new family.
    ///
    /// # Errors
    /// The code is unknown, or was issued for another redirect URI.
    pub fn redeem(
        &mut self,
        code: &str,
        redirect_uri: Option<&str>,
        life_ms: u64,
        now_ms: u64,
    ) -> Result<Pair, Refusal> {
        if !self.knows_code(code, now_ms) {
            return Err(Refusal::CodeNotFound);
        }
        let made_for = self.codes.get(code).and_then(|code| code.redirect_uri.as_deref());
        if let (Some(made_for), Some(given)) = (made_for, redirect_uri)
            && made_for != given
        {
            return Err(Refusal::RedirectMismatch);
        }
        let code = self.codes.remove(code).ok_or(Refusal::CodeNotFound)?;
        Ok(self.begin(code.resource, &code.company, life_ms, now_ms))
    }

    /// Issues the first pair of a new family without a code, for minting.
    pub fn begin(&mut self, resource: Resource, company: &str, life_ms: u64, now_ms: u64) -> Pair {
        let family = self.families.len();
        let refresh = self.new_refresh(family, &resource);
        let company = company.to_owned();
        self.families.push(Family { resource, company, live: refresh.clone(), revoked: false });
        self.pair(family, refresh, life_ms, now_ms)
    }

    /// Uses a refresh token and returns the next pair.
    ///
    /// # Errors
    /// The token is dead, or its resource is paused.
    pub fn rotate(&mut self, token: &str, rotation: Rotation, life_ms: u64, now_ms: u64) -> Result<Pair, Refusal> {
        let presented = self.refresh.get(token).cloned().ok_or(Refusal::RefreshTokenInvalid)?;
        let family = presented.family;
        if self.families[family].revoked {
            return Err(Refusal::RefreshTokenInvalid);
        }
        if self.paused.contains(&self.families[family].resource) {
            return Err(Refusal::NotActive);
        }
        match presented.spent {
            None => {
                let resource = self.families[family].resource.clone();
                let successor = self.new_refresh(family, &resource);
                self.families[family].live.clone_from(&successor);
                let spent = Some(Spent { at_ms: now_ms, successor: successor.clone() });
                self.refresh.insert(token.to_owned(), Presented { family, spent });
                Ok(self.pair(family, successor, life_ms, now_ms))
            }
            Some(spent) if rotation.forgives_after(now_ms.saturating_sub(spent.at_ms)) => {
                Ok(self.pair(family, spent.successor, life_ms, now_ms))
            }
            Some(_) => {
                self.families[family].revoked |= rotation == Rotation::FamilyRevoking;
                Err(Refusal::RefreshTokenInvalid)
            }
        }
    }

    /// Returns the resource of an access token, and the agency to which the resource belongs.
    ///
    /// # Errors
    /// The token is unknown or has expired.
    pub fn check_access(&self, token: &str, now_ms: u64) -> Result<(Resource, String), AccessProblem> {
        let access = self.access.get(token).ok_or(AccessProblem::Unknown)?;
        if now_ms >= access.expires_at_ms {
            return Err(AccessProblem::Expired(access.resource.clone()));
        }
        Ok((access.resource.clone(), access.company.clone()))
    }

    /// Expires every access token now. Refresh tokens stay as they are.
    pub fn expire_access(&mut self, now_ms: u64) {
        for access in self.access.values_mut() {
            access.expires_at_ms = access.expires_at_ms.min(now_ms);
        }
    }

    /// Expires the access tokens of one resource now.
    pub fn expire_access_of(&mut self, resource: &Resource, now_ms: u64) {
        for access in self.access.values_mut().filter(|access| access.resource == *resource) {
            access.expires_at_ms = access.expires_at_ms.min(now_ms);
        }
    }

    /// Returns the latest expiry of those access tokens of a resource that were issued until `issued_by_ms`. The expiry
    /// may be in the past. Both times are milliseconds since the epoch.
    pub fn access_until(&self, resource: &Resource, issued_by_ms: u64) -> Option<u64> {
        let theirs = |access: &&Access| access.resource == *resource && access.issued_at_ms <= issued_by_ms;
        self.access.values().filter(theirs).map(|access| access.expires_at_ms).max()
    }

    /// Returns true if a resource is paused.
    pub fn is_paused(&self, resource: &Resource) -> bool {
        self.paused.contains(resource)
    }

    /// Revokes every token of a resource.
    pub fn uninstall(&mut self, resource: &Resource) {
        for family in self.families.iter_mut().filter(|family| family.resource == *resource) {
            family.revoked = true;
        }
        self.access.retain(|_, access| access.resource != *resource);
    }

    /// Pauses a resource, or resumes it.
    pub fn set_active(&mut self, resource: Resource, active: bool) {
        if active {
            self.paused.remove(&resource);
        } else {
            self.paused.insert(resource);
        }
    }

    /// Resumes all paused resources and returns them.
    pub fn set_all_active(&mut self) -> Vec<Resource> {
        self.paused.drain().collect()
    }

    /// Returns the state of a refresh token at `now_ms`, without using the token.
    pub fn refresh_token_state(&self, token: &str, rotation: Rotation, now_ms: u64) -> RefreshTokenState {
        match self.refresh.get(token) {
            Some(known) if self.families[known.family].revoked => RefreshTokenState::Dead,
            Some(Presented { spent: None, .. }) => RefreshTokenState::Live,
            Some(Presented { spent: Some(spent), .. })
                if rotation.forgives_after(now_ms.saturating_sub(spent.at_ms)) =>
            {
                RefreshTokenState::Replayable
            }
            _ => RefreshTokenState::Dead,
        }
    }

    /// Returns the live refresh token of each unrevoked family of a resource, oldest family first.
    pub fn live_refresh_tokens(&self, resource: &Resource) -> Vec<String> {
        let ours = |family: &&Family| family.resource == *resource && !family.revoked;
        self.families.iter().filter(ours).map(|family| family.live.clone()).collect()
    }

    /// Returns the resource of a refresh token, even if the token is dead.
    pub fn owner(&self, refresh_token: &str) -> Option<&Resource> {
        self.refresh.get(refresh_token).map(|known| &self.families[known.family].resource)
    }

    /// Returns every token and code that was ever issued, so that a test can search the logs for them.
    pub fn every_secret(&self) -> impl Iterator<Item = &str> {
        self.codes.keys().chain(self.refresh.keys()).chain(self.access.keys()).map(String::as_str)
    }

    fn new_refresh(&mut self, family: usize, resource: &Resource) -> String {
        let token = identity::token("refresh", &json!({ "authClassId": resource.id() }));
        self.refresh.insert(token.clone(), Presented { family, spent: None });
        token
    }

    fn pair(&mut self, family: usize, refresh: String, life_ms: u64, now_ms: u64) -> Pair {
        let Family { resource, company, .. } = self.families[family].clone();
        let class = match resource {
            Resource::Location(_) => "Location",
            Resource::Company(_) => "Company",
        };
        let expires_at_ms = now_ms + life_ms;
        let claims = json!({ "authClass": class, "authClassId": resource.id(), "iat": now_ms / 1000, "exp": expires_at_ms / 1000 });
        let access = identity::token("access", &claims);
        let known =
            Access { resource: resource.clone(), company: company.clone(), issued_at_ms: now_ms, expires_at_ms };
        self.access.insert(access.clone(), known);
        Pair { resource, company, access, refresh, expires_at_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: u64 = 86_399_000;
    const NOW: u64 = 1_800_000_000_000;

    fn installed() -> (Grants, Pair) {
        let mut grants = Grants::default();
        let code = grants.issue_code(Resource::Location("L1".into()), "C1", None, NOW);
        let pair = grants.redeem(&code, None, LIFE, NOW).expect("a fresh code");
        assert_eq!(grants.redeem(&code, None, LIFE, NOW), Err(Refusal::CodeNotFound), "a code is single use");
        (grants, pair)
    }

    #[test]
    fn strict_takes_a_token_once() {
        let (mut grants, first) = installed();
        let second = grants.rotate(&first.refresh, Rotation::Strict, LIFE, NOW).expect("live");
        assert_eq!(grants.rotate(&first.refresh, Rotation::Strict, LIFE, NOW), Err(Refusal::RefreshTokenInvalid));
        assert_eq!(grants.refresh_token_state(&first.refresh, Rotation::Strict, NOW), RefreshTokenState::Dead);
        assert_eq!(
            grants.refresh_token_state(&second.refresh, Rotation::Strict, NOW),
            RefreshTokenState::Live,
            "the successor is not harmed"
        );
    }

    #[test]
    fn forgiving_answers_the_same_successor_for_thirty_seconds_and_not_longer() {
        let (mut grants, first) = installed();
        let mode = Rotation::Forgiving;
        let second = grants.rotate(&first.refresh, mode, LIFE, NOW).expect("live");
        let again = grants.rotate(&first.refresh, mode, LIFE, NOW + 29_999).expect("within the window");
        assert_eq!(again.refresh, second.refresh, "the same new refresh token");
        assert_ne!(again.access, second.access);
        assert_eq!(grants.refresh_token_state(&first.refresh, mode, NOW + 29_999), RefreshTokenState::Replayable);
        assert_eq!(grants.rotate(&first.refresh, mode, LIFE, NOW + 30_000), Err(Refusal::RefreshTokenInvalid));
        assert_eq!(
            grants.live_refresh_tokens(&first.resource),
            [second.refresh],
            "one live token, however often it was asked for"
        );
    }

    #[test]
    fn family_revoking_kills_the_successor_too() {
        let (mut grants, first) = installed();
        let mode = Rotation::FamilyRevoking;
        let second = grants.rotate(&first.refresh, mode, LIFE, NOW).expect("live");
        assert!(grants.rotate(&first.refresh, mode, LIFE, NOW + 1).is_err());
        assert_eq!(grants.rotate(&second.refresh, mode, LIFE, NOW + 2), Err(Refusal::RefreshTokenInvalid));
        assert_eq!(grants.live_refresh_tokens(&first.resource), Vec::<String>::new());
    }

    #[test]
    fn a_pause_does_not_spend_the_token() {
        let (mut grants, first) = installed();
        grants.set_active(first.resource.clone(), false);
        assert_eq!(grants.rotate(&first.refresh, Rotation::Strict, LIFE, NOW), Err(Refusal::NotActive));
        grants.set_active(first.resource.clone(), true);
        assert!(grants.rotate(&first.refresh, Rotation::Strict, LIFE, NOW).is_ok());
    }

    #[test]
    fn access_ends_on_time_on_command_and_with_the_installation() {
        let (mut grants, pair) = installed();
        let known = Ok((pair.resource.clone(), "C1".to_owned()));
        assert_eq!(grants.check_access(&pair.access, NOW + LIFE - 1), known);
        assert_eq!(grants.check_access(&pair.access, NOW + LIFE), Err(AccessProblem::Expired(pair.resource.clone())));
        let resource = &pair.resource;
        assert_eq!(
            (grants.access_until(resource, NOW), grants.access_until(resource, NOW - 1)),
            (Some(NOW + LIFE), None)
        );
        grants.expire_access_of(&Resource::Location("other".into()), NOW);
        assert_eq!(grants.access_until(resource, NOW), Some(NOW + LIFE), "another's");
        grants.expire_access_of(resource, NOW);
        assert_eq!(grants.check_access(&pair.access, NOW), Err(AccessProblem::Expired(pair.resource.clone())));
        let pair = grants.rotate(&pair.refresh, Rotation::Strict, LIFE, NOW).expect("refresh tokens outlive it");
        grants.uninstall(&pair.resource);
        assert_eq!(grants.check_access(&pair.access, NOW), Err(AccessProblem::Unknown));
        assert_eq!(grants.rotate(&pair.refresh, Rotation::Strict, LIFE, NOW), Err(Refusal::RefreshTokenInvalid));
    }

    #[test]
    fn tokens_are_as_long_as_the_platforms() {
        let (_, pair) = installed();
        for token in [&pair.access, &pair.refresh] {
            assert!((1_000..=2_000).contains(&token.len()), "{} bytes", token.len());
        }
    }
}
