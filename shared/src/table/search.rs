//! Locations whose company is not known. The schedule asks the companies about these locations.
//!
//! `app#searches` holds the locations' ids in a set of bounded size. The progress of a search is in the location's own
//! item: `search_since`, `search_after` (the last company of the list that was asked) `search_left` (companies that
//! could not be asked and are asked again) and `search_partial`.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;

use super::company::Listed;
use super::{Attributes, StoreError, Table, Update, n, s};
use crate::domain::clock::Millis;
use crate::domain::installation::installation_key;
use crate::domain::resource::Resource;
use crate::domain::status::{LeaseOwner, TokenVersion};

/// The time after which a placeholder is deleted, if no company has the app in its location.
pub(super) const PLACEHOLDER_KEPT: Duration = Duration::from_hours(1);
/// The attributes that hold the result of asking companies about a location.
pub(super) const SEARCH_RESULT: [&str; 7] = [
    "absent_until",
    "absent_newest",
    "search_since",
    "search_after",
    "search_left",
    "search_partial",
    "others_again_at",
];

const SEARCHES: &str = "app#searches";
/// The highest number of queued locations. The bound limits the work of the schedule if callers name locations that do
/// not exist.
const MOST_SEARCHES: usize = 100;
/// The number of queued locations above which no location of [`SearchReason::Former`] is added.
const MOST_FORMER: usize = 50;

/// The reason for a search. It bounds the part of the queue that the search may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchReason {
    /// The company of the location is not known.
    Unknown,
    /// The company of the location has ended or does not have the app there. A company that ends may have thousands of
    /// locations, most of which are in no other company. So these locations fill only half of the queue, and new
    /// locations find room.
    Former,
}

/// The progress of the search for a location's company.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// The location.
    pub location: Resource,
    /// The version of the location's installation.
    pub version: TokenVersion,
    /// The start of the search, which is the search's version.
    pub since: Millis,
    /// The last company of the list that the search reached.
    pub after: Option<Listed>,
    /// The companies before `after` that could not be asked.
    pub left: Vec<Resource>,
    /// True if more companies could not be asked than `left` holds. Then the search cannot show that no company has the
    /// app in the location.
    pub is_partial: bool,
}

impl Table {
    /// Queues a location for the schedule's search for its company. Returns false if the queue has no room for this
    /// reason.
    pub async fn begin_search(&self, location: &Resource, reason: SearchReason) -> Result<bool, StoreError> {
        let most = match reason {
            SearchReason::Unknown => MOST_SEARCHES,
            SearchReason::Former => MOST_FORMER,
        };
        let mut write = Update::of(SEARCHES);
        write.add("ids", AttributeValue::Ss(vec![location.id().to_owned()]));
        write.when("attribute_not_exists(ids) OR size(ids) < :most OR contains(ids, :id)");
        write.value(":id", s(location.id())).value(":most", n(most));
        Ok(self.write(write).await?.is_applied())
    }

    /// Queues a leased location for a search, if there is room, and then notes the search in the location. Returns true
    /// if the location is queued. The order guarantees that a location with such a note is always in the queue. Between
    /// the two writes, the lease keeps the schedule from removing the location from the queue.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn queue_search(
        &self,
        location: &Resource,
        version: TokenVersion,
        owner: &LeaseOwner,
        reason: SearchReason,
        now: Millis,
    ) -> Result<bool, StoreError> {
        if !self.begin_search(location, reason).await? {
            return Ok(false);
        }
        let mut write = Update::of_version(location, version);
        write.when_leased_by(owner).set("search_since", n(now)).remove([
            "search_after",
            "search_left",
            "search_partial",
        ]);
        self.write(write).await.map(|_| true)
    }

    /// The queued locations.
    pub async fn searches(&self) -> Result<Vec<Resource>, StoreError> {
        let read = self.client.get_item().table_name(&*self.name).key("pk", s(SEARCHES));
        let answer = read.consistent_read(true).send().await?;
        let Some(item) = answer.item() else { return Ok(Vec::new()) };
        Ok(Attributes::of(item).texts("ids").filter_map(|id| Resource::location(id).ok()).collect())
    }

    /// Removes a location from the queue.
    pub async fn end_search(&self, location: &Resource) -> Result<(), StoreError> {
        let mut write = Update::of(SEARCHES);
        write.delete("ids", AttributeValue::Ss(vec![location.id().to_owned()]));
        self.write(write).await.map(drop)
    }

    /// The progress of the search for a location's company. `None` if there is no search.
    pub async fn search(&self, location: &Resource) -> Result<Option<Search>, StoreError> {
        let read = self.client.get_item().table_name(&*self.name).key("pk", s(installation_key(location)));
        let answer = read.consistent_read(true).send().await?;
        let Some(item) = answer.item() else { return Ok(None) };
        let attributes = Attributes::of(item);
        let Some(since) = attributes.number("search_since").map(Millis) else { return Ok(None) };
        let version = TokenVersion {
            epoch: attributes.number("epoch").ok_or_else(|| attributes.malformed("epoch"))?,
            generation: attributes.number("generation").ok_or_else(|| attributes.malformed("generation"))?,
        };
        let left = attributes.texts("search_left").filter_map(|id| Resource::company(id).ok()).collect();
        let after = attributes.text("search_after").and_then(read_search_after);
        let is_partial = attributes.flag("search_partial");
        Ok(Some(Search { location: location.clone(), version, since, after, left, is_partial }))
    }

    /// Stores the progress of a search. Returns false if the search has ended.
    pub async fn save_search(&self, search: &Search) -> Result<bool, StoreError> {
        let mut write = Update::of_version(&search.location, search.version);
        write.when_equal("search_since", n(search.since));
        if let Some(Listed { company, listed_at }) = &search.after {
            write.set("search_after", s(format!("{listed_at}#{}", company.id())));
        }
        if search.is_partial {
            write.set("search_partial", AttributeValue::Bool(true));
        }
        if search.left.is_empty() {
            write.remove(["search_left"]);
        } else {
            let left = search.left.iter().map(|company| company.id().to_owned()).collect();
            write.set("search_left", AttributeValue::Ss(left));
        }
        Ok(self.write(write).await?.is_applied())
    }

    /// Ends a search that found no company. The companies are asked again after `until`, or earlier if a company is
    /// listed after `newest`. Returns false and does nothing if the search has already ended.
    pub async fn conclude_search(
        &self,
        search: &Search,
        until: Millis,
        newest: Option<Millis>,
        now: Millis,
    ) -> Result<bool, StoreError> {
        let mut write = Update::of_version(&search.location, search.version);
        write.when_equal("search_since", n(search.since));
        write.set("absent_until", n(until)).set("absent_newest", n(newest.unwrap_or(Millis(0))));
        write.remove(["search_since", "search_after", "search_left", "search_partial"]);
        if !self.write(write).await?.is_applied() {
            return Ok(false);
        }
        // A placeholder is deleted when the absence expires.
        let mut write = Update::of_installation(&search.location);
        write.when("attribute_exists(placeholder)").set("expires_at", n((now + PLACEHOLDER_KEPT).seconds()));
        self.write(write).await.map(|_| true)
    }

    /// Ends a search without a result. Does nothing if the search has already ended. The caller removes the location
    /// from the queue.
    pub async fn abandon_search(&self, search: &Search) -> Result<(), StoreError> {
        let mut write = Update::of_version(&search.location, search.version);
        write.when_equal("search_since", n(search.since)).remove([
            "search_since",
            "search_after",
            "search_left",
            "search_partial",
        ]);
        self.write(write).await.map(drop)
    }
}

/// Parses the instant and the id in `search_after`.
fn read_search_after(text: &str) -> Option<Listed> {
    let (at, id) = text.split_once('#')?;
    Some(Listed { company: Resource::company(id).ok()?, listed_at: Millis(at.parse().ok()?) })
}
