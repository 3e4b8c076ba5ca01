//! The only module that reads and writes `DynamoDB`. All state that the functions share is in one table.
//!
//! Every write is one `UpdateItem`, which is composed by the builder in the module `update` and answered by [`Write`].
//!
//! | partition key `pk` | what it holds | written by |
//! |---|---|---|
//! | `installation#location#ID`, `installation#company#ID` | state, version and sealed tokens of an installation | callback, refresh, relay, webhook |
//! | `quota#location#ID`, `quota#company#ID` | the counters of a resource | relay, refresh |
//! | `caller-quota#CALLER#location#ID`, … | the counters of a caller's share of a resource | relay |
//! | `turns#location#ID`, … | the end of the schedule of a resource's queued calls ([`turns`]) | relay |
//! | `minter-quota#company#ID` | the counters of the share of a company that minting for placeholders has | relay, refresh |
//! | `app#breaker` | circuit breaker, budget of marks, and pace of the token endpoint | callback, refresh, relay |
//! | `app#api` | versions of the platform's API that work ([`api_versions`]) | callback, refresh, relay, webhook |
//! | `app#…` | other state of the whole app | refresh, relay |
//! | `app#alarm#NAME` | when an alarm of the whole app was last raised | refresh, relay |
//! | `app#company#ID` | a listed company, one that has the app ([`company`]), and the last comparison of its list ([`reconciliation`]) | callback, refresh, webhook |
//! | `app#company#ID#task` | background work for a company, and how far its list of locations was read | callback, refresh, webhook |
//! | `app#company#ID#list#N` | a page of a company's list that is being read ([`reconciliation`]) | refresh |
//! | `app#searches` | locations that the schedule asks the companies about ([`search`]) | refresh, relay |
//! | `webhook#id#ID`, `webhook#bytes#SHA256` | a webhook that is processed now or was processed within 24 hours | webhook |
//! | `redirect#state#SHA256`, `redirect#code#SHA256` | a redirect of the authorization page, exchanged once | callback |
//! | `exchanges#…` | the number of codes that were exchanged in a minute | callback |
//! | `call#key#SHA256`, `call#message#SHA256` | the intent and the outcome of a keyed request or a queued message ([`idempotency`]) | relay |
//!
//! Operators read and close the breaker, and read all installations: [`survey`], [`sealed`]. No function scans the
//! table.
//!
//! There is no sort key: each item is read and written alone. Three sparse indexes find installations: `due`
//! (`due_shard`, `due_at`) for the schedule, `company` (`company`, `pk`) for an agency's locations, and `outbox`
//! (`outbox_shard`, `outbox_at`) for events that are stored and not yet acknowledged. Two partitions of `due` hold no
//! installations: `companies` lists the companies, and `tasks` lists their open tasks. Counters are in items of their
//! own, so traffic never makes the commit of a token pair fail. `expires_at` (seconds) is the TTL attribute.

pub mod alarm;
pub mod api_versions;
pub mod app;
pub mod clock_check;
pub mod company;
pub mod idempotency;
pub mod installation;
pub mod mark_budget;
pub mod minted;
pub mod outbox;
pub mod pace;
pub mod reconciliation;
pub mod redirect;
pub mod sealed;
pub mod search;
pub mod survey;
pub mod turns;
pub(crate) mod update;
pub mod webhook;

use std::collections::HashMap;
use std::sync::Arc;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::types::AttributeValue;

use crate::domain::resource::{Kind, Resource};
use crate::http_client::aws_error::describe;

pub(crate) use update::Update;

/// An item as the SDK gives it.
pub type Item = HashMap<String, AttributeValue>;

/// A page of a query or scan.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// The items of the page.
    pub items: Vec<T>,
    /// The key after which the next page begins. `None` on the last page.
    pub next: Option<Item>,
}

/// The table and its client. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Table {
    /// The SDK's client.
    pub client: Client,
    /// The table's name.
    pub name: Arc<str>,
}

/// A failed request to the table. A condition that does not hold is not an error but an answer ([`Write::Conflict`]).
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// `DynamoDB` gave no answer, a refusal or an internal error. The write may or may not have been applied.
    #[error("DynamoDB: {0}")]
    Unavailable(String),
    /// An item that this version cannot read.
    #[error("the item {item} has no valid {attribute}")]
    Malformed {
        /// The item's key.
        item: String,
        /// The attribute.
        attribute: &'static str,
    },
}

impl<E: ProvideErrorMetadata, R> From<SdkError<E, R>> for StoreError {
    fn from(error: SdkError<E, R>) -> Self {
        Self::Unavailable(describe(&error))
    }
}

/// The answer to a conditional write (compare-and-swap).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Write<T> {
    /// The condition held, and the write was applied. Has the item after the write.
    Applied(T),
    /// The condition did not hold. Has the unchanged item.
    Conflict(T),
    /// The condition did not hold, because the item does not exist.
    NotFound,
}

impl<T> Write<T> {
    /// Returns true if the write was applied.
    pub fn is_applied(&self) -> bool {
        matches!(self, Self::Applied(_))
    }

    /// The item as it is now, changed or not. `None` if there is none.
    pub(crate) fn into_item(self) -> Option<T> {
        match self {
            Self::Applied(item) | Self::Conflict(item) => Some(item),
            Self::NotFound => None,
        }
    }

    /// The same answer, with the item converted by `read`.
    pub(crate) fn read<U>(self, read: impl FnOnce(&T) -> Result<U, StoreError>) -> Result<Write<U>, StoreError> {
        Ok(match self {
            Self::Applied(item) => Write::Applied(read(&item)?),
            Self::Conflict(item) => Write::Conflict(read(&item)?),
            Self::NotFound => Write::NotFound,
        })
    }

    /// Recognises an earlier try of the same write that was applied and whose answer was lost: a conflict becomes
    /// applied if `is_own` is true for the item.
    pub(crate) fn or_applied_before(self, is_own: impl FnOnce(&T) -> bool) -> Self {
        match self {
            Self::Conflict(item) if is_own(&item) => Self::Applied(item),
            answer => answer,
        }
    }
}

/// The beginning of the keys of resources' counters.
const QUOTA: &str = "quota#";

/// The key of a resource's counters.
pub fn quota_key(resource: &Resource) -> String {
    format!("{QUOTA}{}#{}", resource.kind().as_str(), resource.id())
}

/// The resource whose counters have this key.
pub(crate) fn resource_of_quota_key(key: &str) -> Option<Resource> {
    let (kind, id) = key.strip_prefix(QUOTA)?.split_once('#')?;
    Resource::new([Kind::Location, Kind::Company].into_iter().find(|known| known.as_str() == kind)?, id).ok()
}

/// A number attribute.
pub fn n(value: impl std::fmt::Display) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

/// A string attribute.
pub fn s(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

/// Reads the attributes of one item. A missing or malformed attribute is a [`StoreError::Malformed`] that names the
/// attribute.
#[derive(Clone, Copy)]
pub struct Attributes<'a> {
    item: &'a Item,
}

impl<'a> Attributes<'a> {
    /// A reader of `item`.
    pub fn of(item: &'a Item) -> Self {
        Self { item }
    }

    /// A string. `None` if the attribute is missing or has another type.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        self.item.get(name)?.as_s().ok().map(String::as_str)
    }

    /// A number. `None` if the attribute is missing or has another type.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.item.get(name)?.as_n().ok()?.parse().ok()
    }

    /// Bytes. `None` if the attribute is missing or has another type.
    pub fn bytes(&self, name: &str) -> Option<&'a [u8]> {
        self.item.get(name)?.as_b().ok().map(AsRef::as_ref)
    }

    /// Returns true if the attribute is true. A missing attribute is false.
    pub fn flag(&self, name: &str) -> bool {
        self.item.get(name).is_some_and(|value| value.as_bool() == Ok(&true))
    }

    /// The strings of a set. Empty if the attribute is missing.
    pub fn texts(&self, name: &str) -> impl Iterator<Item = &'a str> {
        let set = self.item.get(name).and_then(|value| value.as_ss().ok());
        set.into_iter().flatten().map(String::as_str)
    }

    /// The elements of a list. Empty if the attribute is missing.
    pub fn list(&self, name: &str) -> &'a [AttributeValue] {
        self.item.get(name).and_then(|value| value.as_l().ok()).map(Vec::as_slice).unwrap_or_default()
    }

    /// A map. `None` if the attribute is missing or has another type.
    pub fn map(&self, name: &str) -> Option<&'a Item> {
        self.item.get(name)?.as_m().ok()
    }

    /// The error for a missing or malformed `attribute`.
    pub fn malformed(&self, attribute: &'static str) -> StoreError {
        StoreError::Malformed { item: self.text("pk").unwrap_or("without a key").to_owned(), attribute }
    }
}
