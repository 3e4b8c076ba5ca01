//! The companies (agencies) that have the app, and the background work that each of them needs.
//!
//! Every company has items of its own, so the number of companies has no bound:
//!
//! | item | partition of the index `due` | sorted by |
//! |---|---|---|
//! | `app#company#ID`: the company is listed | `companies` | the last install notice |
//! | `app#company#ID#task`: its background work | `tasks` | when the work is due |
//!
//! [`reconciliation`](super::reconciliation) adds to the first, and has items of its own.
//!
//! A task states that a company was installed or uninstalled at about its `noted_at`. A task is a write-ahead intent:
//! it is stored *before* the write to the installation, so a crash between the two writes loses nothing. The stored
//! state of the company decides the work, not the task. `noted_at` is the task's version: a task is finished or
//! postponed by compare-and-swap, so a note that is written during the work keeps the task open.

use std::time::Duration;

use aws_sdk_dynamodb::operation::query::builders::QueryFluentBuilder;

use super::{Attributes, Item, Page, StoreError, Table, Update, Write, n, s};
use crate::domain::clock::Millis;
use crate::domain::installation::AppDetails;
use crate::domain::resource::Resource;
use crate::platform::company_api::ListPosition;

/// Partition of the index `due` that lists the companies.
const COMPANIES: &str = "companies";
/// Partition of the index `due` that holds the open tasks.
const TASKS: &str = "tasks";
const PREFIX: &str = "app#company#";
const TASK_SUFFIX: &str = "#task";
/// A list that was not read to its end is continued within this time. Later, the list is read from its beginning.
const CURSOR: Duration = Duration::from_hours(24);
/// The attributes of a task that hold a reading.
const READING: [&str; 4] = ["#read", "read_at", "read_since", "read_pages"];
/// TTL deletes an item without content after this time.
const KEPT: Duration = Duration::from_hours(1);
/// After this time, the write of an uninstall and a minting at the same time have ended.
const SETTLED: Duration = Duration::from_mins(1);

/// A listed company.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The company.
    pub company: Resource,
    /// The time of the last install notice.
    pub listed_at: Millis,
}

/// The reason for which a company needs background work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// The company's install is about to be stored. Its code exchange began at this instant.
    Installing(Millis),
    /// The marketplace has reported an install or an uninstall.
    Reported,
    /// The company's token was renewed. The renewal is the daily occasion to read the company's list of locations
    /// again.
    Renewed,
}

/// The open task of a company.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The company's id.
    pub company: String,
    /// The time of the last note, which is the task's version.
    pub noted_at: Millis,
    /// The time until which a reported install or uninstall may still be in progress.
    pub settles_at: Option<Millis>,
    /// The time at which the code exchange of an announced install began.
    pub installing: Option<Millis>,
    /// The number of failed runs since the last note.
    pub failures: u32,
    /// The reading of the list of locations, if it was begun and not ended.
    pub reading: Option<ListReading>,
}

/// A reading of a company's list of locations that was not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListReading {
    /// The time at which the reading began.
    pub since: Millis,
    /// The number of pages that were read.
    pub pages: u32,
    /// The position of the next page.
    pub position: ListPosition,
}

impl ListReading {
    /// A reading that begins now.
    pub fn begin(now: Millis) -> Self {
        Self { since: now, pages: 0, position: ListPosition::START }
    }

    /// `None` if there is no reading, or if it rests for so long that the list is read from its start.
    fn read(attributes: Attributes<'_>, now: Millis) -> Option<Self> {
        let read_at = Millis(attributes.number("read_at")?);
        let reading = Self {
            since: Millis(attributes.number("read_since")?),
            pages: attributes.number("read_pages")?,
            position: read_position(attributes),
        };
        (now.since(read_at) < CURSOR).then_some(reading)
    }
}

impl Task {
    fn read(company: &str, item: &Item, now: Millis) -> Option<Self> {
        let attributes = Attributes::of(item);
        let instant = |name| attributes.number(name).map(Millis);
        Some(Self {
            company: company.to_owned(),
            noted_at: instant("noted_at")?,
            settles_at: instant("settles_at"),
            installing: instant("installing"),
            failures: attributes.number("task_failures").unwrap_or(0),
            reading: ListReading::read(attributes, now),
        })
    }
}

impl Table {
    /// Lists a company, or moves it to the newest end of the list. Returns the details that [`Table::note_details`] has
    /// noted.
    pub async fn list_company(&self, company: &str, now: Millis) -> Result<AppDetails, StoreError> {
        let mut write = Update::of(key(company));
        write.set("due_shard", s(COMPANIES)).set("due_at", n(now)).remove(["expires_at"]);
        Ok(match self.write(write).await? {
            Write::Applied(item) | Write::Conflict(item) => AppDetails::read(Attributes::of(&item)),
            Write::NotFound => AppDetails::default(),
        })
    }

    /// Notes details of a company whose installation is not stored yet. The install stores them.
    pub async fn note_details(&self, company: &str, details: &AppDetails) -> Result<(), StoreError> {
        let mut write = Update::of(key(company));
        write.set_details(details);
        self.write(write).await.map(drop)
    }

    /// Lists a company that was installed at `installed_at`. A listed company keeps its place.
    pub async fn keep_company_listed(&self, company: &str, installed_at: Millis) -> Result<(), StoreError> {
        let mut write = Update::of(key(company));
        write.set("due_shard", s(COMPANIES)).remove(["expires_at"]);
        write.set_to("due_at", "if_not_exists(due_at, :installed_at)").value(":installed_at", n(installed_at));
        self.write(write).await.map(drop)
    }

    /// Removes a company from the list, unless an install notice came after `noted_at`.
    pub async fn unlist_company(&self, company: &str, noted_at: Millis, now: Millis) -> Result<(), StoreError> {
        let mut write = Update::of(key(company));
        write.when("due_at <= :noted_at").value(":noted_at", n(noted_at));
        write.remove(["due_shard", "due_at"]).set("expires_at", n((now + KEPT).seconds()));
        self.write(write).await.map(drop)
    }

    /// The companies with the latest install notices, newest first, at most `limit`. Also returns true if more companies
    /// are listed.
    pub async fn newest_companies(&self, limit: usize) -> Result<(Vec<Listed>, bool), StoreError> {
        let one_more = i32::try_from(limit + 1).unwrap_or(i32::MAX);
        let page = self.due_partition(COMPANIES, None).scan_index_forward(false).limit(one_more).send().await?;
        let mut listed: Vec<Listed> = page.items().iter().filter_map(read_listed).collect();
        let more = listed.len() > limit;
        listed.truncate(limit);
        Ok((listed, more))
    }

    /// A page of the listed companies, oldest install notice first. So a company that is listed during the reading is
    /// on a later page.
    pub async fn companies(&self, after: Option<&Listed>, limit: usize) -> Result<Page<Listed>, StoreError> {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let after = after.map(|listed| {
            let key = key(listed.company.id());
            Item::from([
                ("pk".to_owned(), s(key)),
                ("due_shard".to_owned(), s(COMPANIES)),
                ("due_at".to_owned(), n(listed.listed_at)),
            ])
        });
        let page = self.due_partition(COMPANIES, None).set_exclusive_start_key(after).limit(limit).send().await?;
        let items = page.items().iter().filter_map(read_listed).collect();
        Ok(Page { items, next: page.last_evaluated_key })
    }

    /// Notes that a company needs background work, before the write that the note is about.
    pub async fn note_task(&self, company: &str, note: Note, now: Millis) -> Result<(), StoreError> {
        let mut write = Update::of(task_key(company));
        write.set("noted_at", n(now)).set("due_at", n(now)).set("due_shard", s(TASKS));
        match note {
            Note::Installing(at) => {
                write.set("installing", n(at));
            }
            Note::Reported => {
                write.set("settles_at", n(now + SETTLED));
            }
            Note::Renewed => {}
        }
        write.remove(["task_failures", "expires_at"]);
        self.write(write).await.map(drop)
    }

    /// A page of the companies whose tasks are due at `now`, longest due first.
    pub async fn due_tasks(&self, now: Millis, after: Option<Item>, limit: i32) -> Result<Page<String>, StoreError> {
        let page = self.due_partition(TASKS, Some(now)).set_exclusive_start_key(after).limit(limit).send().await?;
        let id = |item| Attributes::of(item).text("pk")?.strip_prefix(PREFIX)?.strip_suffix(TASK_SUFFIX);
        let items = page.items().iter().filter_map(id).map(str::to_owned).collect();
        Ok(Page { items, next: page.last_evaluated_key })
    }

    /// The open task of a company (strongly consistent).
    pub async fn task(&self, company: &str, now: Millis) -> Result<Option<Task>, StoreError> {
        let read = self.client.get_item().table_name(&*self.name).key("pk", s(task_key(company)));
        let answer = read.consistent_read(true).send().await?;
        Ok(answer.item().and_then(|item| Task::read(company, item, now)))
    }

    /// Finishes a task, unless the task was noted again. Returns true if the task is finished.
    pub async fn finish_task(&self, task: &Task, now: Millis) -> Result<bool, StoreError> {
        let mut write = Update::of(task_key(&task.company));
        write.when_equal("noted_at", n(task.noted_at)).set("expires_at", n((now + KEPT).seconds()));
        write.remove(["due_shard", "due_at", "noted_at", "settles_at", "installing", "task_failures"]);
        write.remove(READING);
        Ok(self.write(write).await?.is_applied())
    }

    /// Postpones the next run of a task, unless the task was noted again. `failures` is the number of failed runs.
    pub async fn postpone_task(&self, task: &Task, until: Millis, failures: u32) -> Result<(), StoreError> {
        let mut write = Update::of(task_key(&task.company));
        write.when_equal("noted_at", n(task.noted_at)).set("due_at", n(until)).set("task_failures", n(failures));
        self.write(write).await.map(drop)
    }

    /// Stores the progress of a reading of a company's list of locations. `None` after the whole list was read.
    pub async fn set_locations_read(
        &self,
        company: &str,
        reading: Option<&ListReading>,
        now: Millis,
    ) -> Result<(), StoreError> {
        let mut write = Update::of(task_key(company));
        write.when("attribute_exists(noted_at)");
        match reading {
            None => write.remove(READING),
            Some(ListReading { since, pages, position }) => {
                let position = match position {
                    ListPosition::Skip(entries) => n(entries),
                    ListPosition::After(token) => s(token),
                };
                write
                    .set("#read", position)
                    .set("read_at", n(now))
                    .set("read_since", n(since))
                    .set("read_pages", n(pages))
            }
        };
        self.write(write).await.map(drop)
    }

    fn due_partition(&self, partition: &str, until: Option<Millis>) -> QueryFluentBuilder {
        let query = self
            .client
            .query()
            .table_name(&*self.name)
            .index_name("due")
            .expression_attribute_values(":partition", s(partition));
        match until {
            None => query.key_condition_expression("due_shard = :partition"),
            Some(until) => query
                .key_condition_expression("due_shard = :partition AND due_at <= :until")
                .expression_attribute_values(":until", n(until)),
        }
    }
}

fn read_position(attributes: Attributes<'_>) -> ListPosition {
    match attributes.text("read") {
        Some(token) => ListPosition::After(token.to_owned()),
        None => ListPosition::Skip(attributes.number("read").unwrap_or(0)),
    }
}

fn read_listed(item: &Item) -> Option<Listed> {
    let attributes = Attributes::of(item);
    let id = attributes.text("pk")?.strip_prefix(PREFIX)?;
    Some(Listed { company: Resource::company(id).ok()?, listed_at: Millis(attributes.number("due_at")?) })
}

pub(super) fn key(company: &str) -> String {
    format!("{PREFIX}{company}")
}

fn task_key(company: &str) -> String {
    format!("{PREFIX}{company}{TASK_SUFFIX}")
}
