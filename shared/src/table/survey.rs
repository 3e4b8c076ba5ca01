//! Installations without their tokens, for operators. This module never reads tokens.
//!
//! A placeholder ([`Table::keep_placeholder`]) is not an installation, and is left out.

use super::{Attributes, Item, Page, QUOTA, StoreError, Table, s};
use crate::domain::clock::Millis;
use crate::domain::installation::{AppDetails, installation_key, reinstall_url, resource_of};
use crate::domain::resource::Resource;
use crate::domain::status::{Status, TokenVersion};

/// The attributes that are read, without the sealed tokens.
const READ: [&str; 26] = [
    "pk",
    "status",
    "epoch",
    "generation",
    "company",
    "minted",
    "installed_at",
    "revoked_at",
    "access_issued_at",
    "access_expires_at",
    "due_at",
    "lease_ends_at",
    "tried_at",
    "retry_at",
    "failures",
    "answered_generation",
    "scope",
    "home",
    "absent_until",
    "version_id",
    "version_at",
    "plan_id",
    "trial_ends_at",
    "plan_at",
    "installed_by",
    "white_label",
];

/// The attribute that marks a placeholder.
const PLACEHOLDER: &str = "placeholder";

/// An installation without its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    /// The location or company.
    pub resource: Resource,
    /// The state.
    pub status: Status,
    /// The version.
    pub version: TokenVersion,
    /// The company, if known.
    pub company: Option<String>,
    /// True if the token is minted from the company's token.
    pub minted: bool,
    /// The time at which the exchange of the code began, or of the install notice.
    pub installed_at: Millis,
    /// The time of the uninstall.
    pub revoked_at: Option<Millis>,
    /// The time at which the access token was granted.
    pub access_issued_at: Option<Millis>,
    /// The time at which the access token expires.
    pub access_expires_at: Option<Millis>,
    /// The time at which the schedule tries the installation next.
    pub due_at: Option<Millis>,
    /// The end of the current lease.
    pub lease_ends_at: Option<Millis>,
    /// The time of the last try of the refresh token.
    pub tried_at: Option<Millis>,
    /// The earliest time of the next try of the token.
    pub retry_at: Option<Millis>,
    /// The number of failures in a row.
    pub failures: u32,
    /// True if the refresh token may have been presented without a known answer.
    pub in_doubt: bool,
    /// The granted scopes.
    pub scope: Option<String>,
    /// The URL at which a human can install the app again.
    pub reinstall_url: Option<String>,
    /// The app's version, plan and installer.
    pub details: AppDetails,
}

impl Overview {
    fn read(item: &Item) -> Result<Self, StoreError> {
        let attributes = Attributes::of(item);
        let need = |name: &'static str| attributes.malformed(name);
        let instant = |name| attributes.number(name).map(Millis);
        let status = attributes.text("status").and_then(Status::parse).ok_or_else(|| need("status"))?;
        let generation: u64 = attributes.number("generation").ok_or_else(|| need("generation"))?;
        let is_answered = attributes.number("answered_generation") == Some(generation);
        let in_doubt = status == Status::Refreshing || status == Status::Uncertain && !is_answered;
        Ok(Self {
            resource: resource_of(attributes.text("pk").unwrap_or_default()).ok_or_else(|| need("pk"))?,
            status,
            version: TokenVersion { epoch: attributes.number("epoch").ok_or_else(|| need("epoch"))?, generation },
            company: attributes.text("company").map(str::to_owned),
            minted: attributes.flag("minted"),
            installed_at: instant("installed_at").ok_or_else(|| need("installed_at"))?,
            revoked_at: instant("revoked_at"),
            access_issued_at: instant("access_issued_at"),
            access_expires_at: instant("access_expires_at"),
            due_at: instant("due_at"),
            lease_ends_at: instant("lease_ends_at"),
            tried_at: instant("tried_at"),
            retry_at: instant("retry_at"),
            failures: attributes.number("failures").unwrap_or(0),
            in_doubt: in_doubt && !attributes.flag("minted"),
            scope: attributes.text("scope").map(str::to_owned),
            reinstall_url: attributes.text("home").map(reinstall_url),
            details: AppDetails::read(attributes),
        })
    }
}

impl Table {
    /// One installation without its tokens. `None` if there is none, or only a placeholder.
    pub async fn overview(&self, resource: &Resource) -> Result<Option<Overview>, StoreError> {
        let read = self.client.get_item().table_name(&*self.name).key("pk", s(installation_key(resource)));
        let (projection, names) = projection();
        let read = read.projection_expression(projection).set_expression_attribute_names(Some(names));
        let answer = read.consistent_read(true).send().await?;
        let installation = answer.item().filter(|item| !Attributes::of(item).flag(PLACEHOLDER));
        installation.map(Overview::read).transpose()
    }

    /// A page of installations without their tokens. Reads the whole table, a megabyte at a time, with the counters.
    /// For operators, not for functions.
    pub async fn overviews(&self, from: Option<Item>) -> Result<Page<Result<Overview, StoreError>>, StoreError> {
        let (projection, names) = projection();
        let scan = self.client.scan().table_name(&*self.name).set_exclusive_start_key(from);
        let scan = scan.projection_expression(projection).set_expression_attribute_names(Some(names));
        let scan = scan.filter_expression(format!("begins_with(#pk, :kind) AND attribute_not_exists(#{PLACEHOLDER})"));
        let answer = scan.expression_attribute_values(":kind", s("installation#")).send().await?;
        let items = answer.items().iter().map(Overview::read).collect();
        Ok(Page { items, next: answer.last_evaluated_key })
    }
}

impl Table {
    /// A page of the counters of resources with observed limits, and the key of the next page. Reads the whole table.
    pub(crate) async fn counters_with_observed_limits(
        &self,
        from: Option<Item>,
    ) -> Result<(Vec<Item>, Option<Item>), StoreError> {
        let scan = self.client.scan().table_name(&*self.name).set_exclusive_start_key(from);
        let scan = scan.filter_expression("begins_with(pk, :kind) AND attribute_exists(observed)");
        let answer = scan.expression_attribute_values(":kind", s(QUOTA)).send().await?;
        Ok((answer.items.unwrap_or_default(), answer.last_evaluated_key))
    }
}

/// The projection and its names. Every name is written with a `#`, because some are reserved words of `DynamoDB`.
fn projection() -> (String, std::collections::HashMap<String, String>) {
    let read = READ.into_iter().chain([PLACEHOLDER]);
    let names: Vec<String> = read.clone().map(|name| format!("#{name}")).collect();
    (names.join(", "), names.iter().cloned().zip(read.map(str::to_owned)).collect())
}
