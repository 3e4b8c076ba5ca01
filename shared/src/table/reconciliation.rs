//! The comparison of each company's list of locations with the stored locations (reconciliation).
//!
//! | item | contents |
//! |---|---|
//! | `app#company#ID#list#N` | page N of a list that is being read and has further pages |
//! | `app#company#ID` | the result of the last comparison, in the attribute `comparison` |
//!
//! A list of many pages is read in several invocations, so its pages are kept until the last page was read. The last
//! page is never stored: a list of one page, which most companies have, costs no further item.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;

use super::company::key;
use super::{Attributes, Item, StoreError, Table, Update, n, s};
use crate::domain::clock::Millis;
use crate::domain::resource::Resource;

/// TTL deletes a page after this time. A reading that rests for 24 hours begins anew.
const PAGE_KEPT: Duration = Duration::from_hours(48);
/// The most locations that a comparison names. It counts all of them.
const MOST_EXAMPLES: usize = 50;

/// A page of a company's list of locations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedPage {
    /// The locations that have the app.
    pub installed: Vec<Resource>,
    /// Those of them that were not stored before as installed and as the company's.
    pub new: Vec<Resource>,
}

/// Locations in one of the two lists only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Their number.
    pub count: u64,
    /// The ids of the first of them.
    pub examples: Vec<String>,
}

impl Difference {
    /// The difference that consists of these locations.
    pub fn of<'a>(locations: impl IntoIterator<Item = &'a Resource>) -> Self {
        let mut difference = Self::default();
        for location in locations {
            difference.count += 1;
            if difference.examples.len() < MOST_EXAMPLES {
                difference.examples.push(location.id().to_owned());
            }
        }
        difference
    }

    fn read(map: &Item, name: &str) -> Option<Self> {
        let map = Attributes::of(Attributes::of(map).map(name)?);
        let examples = map.list("examples").iter().filter_map(|id| id.as_s().ok().cloned());
        Some(Self { count: map.number("count")?, examples: examples.collect() })
    }

    fn to_value(&self) -> AttributeValue {
        let examples = self.examples.iter().map(s).collect();
        let count = ("count".to_owned(), n(self.count));
        AttributeValue::M([count, ("examples".to_owned(), AttributeValue::L(examples))].into())
    }
}

/// The result of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The time of the comparison, after the last page was read.
    pub at: Millis,
    /// The number of listed locations that have the app.
    pub listed: u64,
    /// Listed, and not stored before the reading. The reading has stored them.
    pub not_stored: Difference,
    /// Stored as installed, and not listed. Nothing is changed in them.
    pub not_listed: Difference,
}

impl Comparison {
    fn read(map: &Item) -> Option<Self> {
        let attributes = Attributes::of(map);
        Some(Self {
            at: Millis(attributes.number("at")?),
            listed: attributes.number("listed")?,
            not_stored: Difference::read(map, "not_stored")?,
            not_listed: Difference::read(map, "not_listed")?,
        })
    }

    fn to_value(&self) -> AttributeValue {
        let members = [
            ("at", n(self.at)),
            ("listed", n(self.listed)),
            ("not_stored", self.not_stored.to_value()),
            ("not_listed", self.not_listed.to_value()),
        ];
        AttributeValue::M(members.map(|(name, value)| (name.to_owned(), value)).into())
    }
}

impl Table {
    /// Keeps page `number` of a company's list until the list was read completely.
    pub async fn keep_listed_page(
        &self,
        company: &str,
        number: u32,
        page: &ListedPage,
        now: Millis,
    ) -> Result<(), StoreError> {
        let mut write = Update::of(page_key(company, number));
        write.set("expires_at", n((now + PAGE_KEPT).seconds()));
        for (name, locations) in [("installed", &page.installed), ("#new", &page.new)] {
            write.set(name, AttributeValue::L(locations.iter().map(|location| s(location.id())).collect()));
        }
        self.write(write).await.map(drop)
    }

    /// Page `number` of a company's list. `None` if the page was not kept.
    pub async fn listed_page(&self, company: &str, number: u32) -> Result<Option<ListedPage>, StoreError> {
        let read = self.client.get_item().table_name(&*self.name).key("pk", s(page_key(company, number)));
        let answer = read.consistent_read(true).send().await?;
        let Some(item) = answer.item() else { return Ok(None) };
        let locations = |name| {
            let ids = Attributes::of(item).list(name).iter();
            ids.filter_map(|id| Resource::location(id.as_s().ok()?).ok()).collect()
        };
        Ok(Some(ListedPage { installed: locations("installed"), new: locations("new") }))
    }

    /// Stores the result of a comparison in place of the last one.
    pub async fn record_comparison(&self, company: &str, comparison: &Comparison) -> Result<(), StoreError> {
        let mut write = Update::of(key(company));
        write.set("comparison", comparison.to_value());
        self.write(write).await.map(drop)
    }

    /// The result of the last comparison. `None` if the company's list was not compared yet.
    pub async fn comparison(&self, company: &str) -> Result<Option<Comparison>, StoreError> {
        let read = self.client.get_item().table_name(&*self.name).key("pk", s(key(company)));
        let answer = read.consistent_read(true).send().await?;
        Ok(answer.item().and_then(|item| Comparison::read(Attributes::of(item).map("comparison")?)))
    }
}

fn page_key(company: &str, number: u32) -> String {
    format!("{}#list#{number}", key(company))
}
