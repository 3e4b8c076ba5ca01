//! The companies that have the app, and what the schedule is to do for them.
//!
//! One item, `app#companies`, holds two sets: `companies` (their ids) and `tasks` (`ID@instant`). A task says that a
//! company was installed or uninstalled at about that instant. It is written *before* what it is about, so that a crash
//! between the two loses nothing; what is to be done follows from how the company stands, not from the task.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;

use super::{Attributes, StoreError, Table, n, s};
use crate::clock::Millis;

const COMPANIES: &str = "app#companies";
/// How far a list was read is of no use after this: then it is read from its beginning.
const CURSOR: Duration = Duration::from_hours(24);

/// Something to be done for a company.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The company's id.
    pub company: String,
    /// When it was installed or uninstalled.
    pub at: Millis,
}

impl Task {
    fn read(text: &str) -> Option<Self> {
        let (company, at) = text.rsplit_once('@')?;
        Some(Self { company: company.to_owned(), at: Millis(at.parse().ok()?) })
    }

    fn text(&self) -> String {
        format!("{}@{}", self.company, self.at)
    }
}

/// What is known of the companies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Companies {
    /// Their ids.
    pub ids: Vec<String>,
    /// What is to be done.
    pub tasks: Vec<Task>,
}

impl Table {
    /// The companies, as they are now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn companies(&self) -> Result<Companies, StoreError> {
        let answer =
            self.client.get_item().table_name(&*self.name).key("pk", s(COMPANIES)).consistent_read(true).send().await?;
        Ok(answer.item().map_or_else(Companies::default, |item| {
            let attributes = Attributes::of(item);
            Companies {
                ids: attributes.texts("companies").map(str::to_owned).collect(),
                tasks: attributes.texts("tasks").filter_map(Task::read).collect(),
            }
        }))
    }

    /// Notes a company that has the app and a task for it, before it is installed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn add_company(&self, task: &Task) -> Result<(), StoreError> {
        let ids = AttributeValue::Ss(vec![task.company.clone()]);
        self.change_companies("ADD companies :ids, tasks :tasks", Some(ids), Some(task)).await
    }

    /// Notes a task.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn add_task(&self, task: &Task) -> Result<(), StoreError> {
        self.change_companies("ADD tasks :tasks", None, Some(task)).await
    }

    /// Strikes a task that is done.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn strike_task(&self, task: &Task) -> Result<(), StoreError> {
        self.change_companies("DELETE tasks :tasks", None, Some(task)).await
    }

    /// Notes that a company has the app, or that it no longer has it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn set_company(&self, company: &str, installed: bool) -> Result<(), StoreError> {
        let update = if installed { "ADD companies :ids" } else { "DELETE companies :ids" };
        self.change_companies(update, Some(AttributeValue::Ss(vec![company.to_owned()])), None).await
    }

    async fn change_companies(
        &self,
        update: &str,
        ids: Option<AttributeValue>,
        task: Option<&Task>,
    ) -> Result<(), StoreError> {
        let mut write =
            self.client.update_item().table_name(&*self.name).key("pk", s(COMPANIES)).update_expression(update);
        if let Some(ids) = ids {
            write = write.expression_attribute_values(":ids", ids);
        }
        if let Some(task) = task {
            write = write.expression_attribute_values(":tasks", AttributeValue::Ss(vec![task.text()]));
        }
        write.send().await?;
        Ok(())
    }

    /// How many entries of a company's list of locations were read, if it was not read to its end.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn locations_read(&self, company: &str, now: Millis) -> Result<usize, StoreError> {
        let answer = self.client.get_item().table_name(&*self.name).key("pk", s(cursor_key(company)));
        let answer = answer.consistent_read(true).send().await?;
        Ok(answer.item().map_or(0, |item| {
            let attributes = Attributes::of(item);
            let alive = attributes.number("expires_at").is_some_and(|end: i64| now.seconds() < end);
            if alive { attributes.number("read").unwrap_or(0) } else { 0 }
        }))
    }

    /// Notes how many entries of a company's list of locations were read; 0 once it was read to its end.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn set_locations_read(&self, company: &str, read: usize, now: Millis) -> Result<(), StoreError> {
        self.client
            .update_item()
            .table_name(&*self.name)
            .key("pk", s(cursor_key(company)))
            .update_expression("SET #read = :read, expires_at = :expires")
            .expression_attribute_names("#read", "read")
            .expression_attribute_values(":read", n(read))
            .expression_attribute_values(":expires", n((now + CURSOR).seconds()))
            .send()
            .await?;
        Ok(())
    }
}

fn cursor_key(company: &str) -> String {
    format!("app#company#{company}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_read_back() {
        let task = Task { company: "C-1_x".into(), at: Millis(1_750_000_000_123) };
        assert_eq!(Task::read(&task.text()), Some(task));
        assert_eq!(Task::read("C1"), None);
        assert_eq!(Task::read("C1@soon"), None);
    }
}
