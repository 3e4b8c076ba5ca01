//! Behaviour of the fake platform, chosen by tests and by the command line.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    grants::{Resource, Rotation},
    window::Limits,
};

/// A location of the agency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// The location's id.
    pub id: String,
    /// The location's name.
    pub name: String,
}

/// The versions of its API that the fake platform has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApiVersions {
    /// v2 and v3, as the platform has had since June 2026.
    #[default]
    Both,
    /// v2 only.
    V2,
    /// The token endpoint, minting and the list of locations exist in v3 only.
    V3,
}

/// Behaviour of the fake platform. All of it can be changed while the fake runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Port on 127.0.0.1; 0 selects a free port.
    pub port: u16,
    /// The app's client id; the part before the dash is the app id.
    pub client_id: String,
    /// The app's client secret.
    pub client_secret: String,
    /// Accepted redirect URIs, compared exactly. The real platform requires https; the fake does not.
    pub redirect_uris: Vec<String>,
    /// The platform's treatment of a refresh token that is used again.
    pub rotation: Rotation,
    /// The versions of the API.
    pub api: ApiVersions,
    /// The most requests to the token endpoint in any minute, if there is a limit.
    pub token_requests_per_minute: Option<usize>,
    /// Life of access tokens.
    pub token_life: Duration,
    /// Limits for each resource.
    pub limits: Limits,
    /// The agency's id.
    pub company: String,
    /// The agency's locations.
    pub locations: Vec<Location>,
    /// Further agencies with their locations.
    pub agencies: BTreeMap<String, Vec<Location>>,
    /// The secret with which webhooks are signed, as those of HoopAI are. If absent, webhooks have an Ed25519 signature.
    pub webhook_secret: Option<String>,
    /// True if the choice of one location still answers with the agency's token, as for an administrator of the agency.
    pub bulk_install: bool,
}

impl Options {
    /// Returns true if the resource exists: an agency of these options, or a location of one of the agencies.
    pub fn has(&self, resource: &Resource) -> bool {
        match resource {
            Resource::Location(id) => {
                self.locations.iter().chain(self.agencies.values().flatten()).any(|location| location.id == *id)
            }
            Resource::Company(id) => self.company == *id || self.agencies.contains_key(id),
        }
    }

    /// Returns the locations of an agency.
    pub(super) fn locations_of(&self, company: &str) -> &[Location] {
        if company == self.company {
            &self.locations
        } else {
            self.agencies.get(company).map(Vec::as_slice).unwrap_or_default()
        }
    }

    /// Returns the agency of a location.
    pub(super) fn company_of(&self, location: &str) -> &str {
        let has = |(_, locations): &(&String, &Vec<Location>)| locations.iter().any(|known| known.id == location);
        self.agencies.iter().find(has).map_or(&self.company, |(company, _)| company)
    }
}

impl Default for Options {
    fn default() -> Self {
        let location = |id: &str, name: &str| Location { id: id.to_owned(), name: name.to_owned() };
        Self {
            port: 0,
            client_id: "6512ab34cd56ef7890ab12cd-lx3kq9ab".to_owned(),
            client_secret: format!("sandbox-secret-{}", shared::domain::random::hex::<12>()),
            redirect_uris: Vec::new(),
            rotation: Rotation::default(),
            api: ApiVersions::default(),
            token_requests_per_minute: None,
            token_life: Duration::from_secs(86_399),
            limits: Limits::default(),
            company: "HLcompany0000000001".to_owned(),
            locations: vec![
                location("HLlocation000000001", "Alder Dental"),
                location("HLlocation000000002", "Birch Fitness"),
                location("HLlocation000000003", "Cedar Realty"),
            ],
            agencies: BTreeMap::new(),
            webhook_secret: None,
            bulk_install: false,
        }
    }
}
