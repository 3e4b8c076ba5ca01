//! Records of the requests that the fake platform received, for tests to read.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use serde::Serialize;

use super::grants::Resource;

/// The most entries of each list. A sandbox may run for days.
const KEPT: usize = 100_000;

/// One request to the token endpoint or the minting endpoint.
#[derive(Debug, Clone, Serialize)]
pub struct TokenRequest {
    /// Arrival, on the platform's clock, since the Unix epoch.
    pub at: Duration,
    /// The grant: `authorization_code`, `refresh_token`, `mint`, or the unknown grant of the request.
    pub grant: String,
    /// The resource of the token, if known.
    pub resource: Option<Resource>,
    /// `granted`, or the message of the refusal. This is the platform's decision before a fault is applied.
    pub outcome: String,
    /// Status of the answer that was sent; `None` if the connection was dropped.
    pub status: Option<u16>,
    /// The fault that was applied.
    pub fault: Option<super::faults::Fault>,
}

/// One request to the API.
#[derive(Debug, Clone, Serialize)]
pub struct ApiRequest {
    /// Arrival, on the platform's clock, since the Unix epoch.
    pub at: Duration,
    /// HTTP method.
    pub method: String,
    /// Path and query exactly as received.
    pub target: String,
    /// Status of the answer that was sent; `None` if the connection was dropped.
    pub status: Option<u16>,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    tokens: VecDeque<TokenRequest>,
    by_grant: HashMap<String, usize>,
    api: BTreeMap<Resource, VecDeque<ApiRequest>>,
    strangers: u64,
    codes: VecDeque<String>,
}

impl Ledger {
    pub(super) fn token(&mut self, request: TokenRequest) {
        *self.by_grant.entry(request.grant.clone()).or_default() += 1;
        keep(&mut self.tokens, request);
    }

    /// Records a code. A redeemed code is no longer among the grants, but still must not appear in a log.
    pub(super) fn code(&mut self, code: &str) {
        keep(&mut self.codes, code.to_owned());
    }

    pub(super) fn api(&mut self, resource: Option<&Resource>, request: ApiRequest) {
        match resource {
            Some(resource) => keep(self.api.entry(resource.clone()).or_default(), request),
            None => self.strangers += 1,
        }
    }

    pub(super) fn token_requests(&self) -> Vec<TokenRequest> {
        self.tokens.iter().cloned().collect()
    }

    pub(super) fn count(&self, grant: &str) -> usize {
        self.by_grant.get(grant).copied().unwrap_or_default()
    }

    pub(super) fn counts(&self) -> &HashMap<String, usize> {
        &self.by_grant
    }

    pub(super) fn api_requests(&self, resource: &Resource) -> Vec<ApiRequest> {
        self.api.get(resource).map(|list| list.iter().cloned().collect()).unwrap_or_default()
    }

    pub(super) fn strangers(&self) -> u64 {
        self.strangers
    }

    pub(super) fn codes_seen(&self) -> impl Iterator<Item = &str> {
        self.codes.iter().map(String::as_str)
    }
}

fn keep<T>(list: &mut VecDeque<T>, entry: T) {
    if list.len() == KEPT {
        list.pop_front();
    }
    list.push_back(entry);
}
