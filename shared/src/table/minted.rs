//! The writes of minted locations, which have no grant of their own.
//!
//! Such an installation has `minted` set and holds at most an access token. The item names the company and, with each
//! token, the epoch of the company's installation from which the token was minted. When the company is uninstalled or
//! installed again, one write to the company's item makes all these tokens stale.

use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue};

use super::installation::Renewal;
use super::search::{PLACEHOLDER_KEPT, SEARCH_RESULT};
use super::{Attributes, Item, StoreError, Table, Update, Write, n, s};
use crate::domain::clock::Millis;
use crate::domain::event::Event;
use crate::domain::installation::{Installation, installation_key, resource_of};
use crate::domain::resource::{Kind, Resource};
use crate::domain::status::{LeaseOwner, Status, TokenVersion, Transition};

/// The company from which a token was minted.
#[derive(Clone, Copy, Debug)]
pub struct MintSource<'a> {
    /// The company's id.
    pub company: &'a str,
    /// The epoch of the company's installation.
    pub epoch: u64,
}

/// The finding about a location after none of the companies that were asked has the app there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// No finding: other companies are still to be asked.
    Open,
    /// All companies were asked. The companies are asked again after this time.
    Until(Millis),
    /// The schedule has been asking the other companies since this instant.
    Searching(Millis),
}

/// The marketplace's notice that the app is installed in a location.
#[derive(Clone, Copy, Debug)]
pub struct InstallNotice<'a> {
    /// The company, if the notice names it.
    pub company: Option<&'a str>,
    /// The time of the install, as stated by the platform.
    pub at: Millis,
    /// The event that is published if the notice begins an installation. With an event, only the beginning of an
    /// installation is written.
    pub event: Option<Event>,
    /// The current time.
    pub now: Millis,
}

/// The change that an install notice has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noticed {
    /// None: the table has the same, or something newer.
    Nothing,
    /// The notice has changed a location that was stored as installed, and as one of the same company.
    Known,
    /// The location was not stored as installed, or was stored as another company's.
    New,
}

impl Noticed {
    /// Returns true if the notice has changed anything.
    pub fn is_applied(self) -> bool {
        self != Self::Nothing
    }
}

impl Table {
    /// Stores a placeholder for a location that only a caller has named, so that the location can be claimed. Does
    /// nothing if the location has an item.
    pub async fn keep_placeholder(&self, location: &Resource, now: Millis) -> Result<(), StoreError> {
        let mut write = Update::of_installation(location);
        write.when("attribute_not_exists(pk)").set_status(Status::Active).set("minted", AttributeValue::Bool(true));
        write.set("placeholder", AttributeValue::Bool(true)).set("epoch", n(1)).set("generation", n(0));
        write.set("installed_at", n(now)).set("expires_at", n((now + PLACEHOLDER_KEPT).seconds()));
        self.write(write).await.map(drop)
    }

    /// Records that the app is installed in a location, so that its token can be minted. A valid grant of the location
    /// itself stays. A grant that was refused for good, or that was uninstalled before the notice, is replaced.
    pub async fn record_install_notice(
        &self,
        location: &Resource,
        notice: InstallNotice<'_>,
    ) -> Result<Noticed, StoreError> {
        // Three kinds of items need three writes: no item or a minted one; an item that has ended; an item with a valid
        // grant.
        let item = match self.write(notice_of_minted(location, &notice)).await? {
            Write::Applied(before) if is_known(&before, notice.company) => return Ok(Noticed::Known),
            Write::Applied(_) | Write::NotFound => return Ok(Noticed::New),
            Write::Conflict(item) => item,
        };
        let attributes = Attributes::of(&item);
        let status = attributes.text("status").and_then(Status::parse).ok_or_else(|| attributes.malformed("status"))?;
        let has_ended = status.has_ended();
        let minted = attributes.flag("minted");
        // Without a company, there is no token to mint from. The location's own grant then comes with the redirect.
        let write = if has_ended && (minted || notice.company.is_some()) {
            notice_of_ended(location, &notice)
        } else if let Some(company) = notice.company
            && !has_ended
            && !minted
            && attributes.text("company") != Some(company)
        {
            let mut write = Update::of_installation(location);
            write.when("attribute_not_exists(minted)").when_status(|status| !status.has_ended());
            write.set("company", s(company)).remove(SEARCH_RESULT);
            write
        } else {
            return Ok(Noticed::Nothing);
        };
        Ok(if self.write(write).await?.is_applied() { Noticed::New } else { Noticed::Nothing })
    }

    /// Makes a location whose own grant was refused a minted one: later tokens are minted from the token of `source`.
    /// The current access token may be valid for hours, and stays until the next token. The attribute `granted_from`
    /// stays, too: a pair of the location's own grant that arrives after several minted tokens is still recognised as
    /// newer than the refused one. Only the holder of the lease can do this.
    pub async fn become_minted(
        &self,
        location: &Resource,
        version: TokenVersion,
        owner: &LeaseOwner,
        source: MintSource<'_>,
        now: Millis,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = Update::of_version(location, version);
        write.when_leased_by(owner).when("attribute_not_exists(standby)");
        write.set("company", s(source.company)).set("company_epoch", n(source.epoch));
        write.set_to("granted_from", "if_not_exists(granted_from, :before)").remove(SEARCH_RESULT);
        write.value(":before", n(version.generation.saturating_sub(1)));
        write.set_status(Status::Active).set("minted", AttributeValue::Bool(true)).set("failures", n(0));
        write.set_due(location, now).remove(["refresh_token"]).release_lease();
        let answer = self.write_installation(write).await?;
        Ok(answer.or_applied_before(|stored| stored.minted().is_some() && stored.version == version))
    }

    /// Stores a minted token, which is sealed under the next version and has no refresh token.
    ///
    /// # Errors
    /// [`StoreError`]. No token is lost, because the token can be minted again.
    pub async fn commit_minted(
        &self,
        location: &Resource,
        from: TokenVersion,
        renewal: Renewal<'_>,
        source: MintSource<'_>,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = Update::of_version(location, from);
        write.when_legal(Transition::StoreToken).when("attribute_exists(minted)");
        write.set("company", s(source.company)).set("company_epoch", n(source.epoch)).renew(location, from, &renewal);
        write.remove(["standby", "placeholder", "expires_at"]).remove(SEARCH_RESULT);
        Ok(self.write_installation(write).await?.or_applied_before(|stored| stored.is_committed_by(renewal.owner)))
    }

    /// Releases the lease because no company that was asked has the app in the location. Stores this finding, and
    /// erases the location's token.
    pub async fn release_absent(
        &self,
        location: &Resource,
        version: TokenVersion,
        owner: &LeaseOwner,
        absence: Absence,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = Update::of_version(location, version);
        write.when_leased_by(owner).set_status(Status::Active).set("failures", n(0));
        write.erase_pair().release_lease().unschedule().remove([
            "absent_newest",
            "search_after",
            "search_left",
            "search_partial",
        ]);
        match absence {
            Absence::Open => write.remove(["search_since"]),
            Absence::Until(until) => write.set("absent_until", n(until)).remove(["search_since"]),
            Absence::Searching(since) => write.set("search_since", n(since)).remove(["absent_until"]),
        };
        let answer = self.write_installation(write).await?;
        Ok(answer.or_applied_before(|stored| stored.version == version && stored.lease().is_none()))
    }

    /// Removes a minted location from the index `due`, because there is no token to mint from.
    pub async fn unschedule(
        &self,
        location: &Resource,
        version: TokenVersion,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        let mut write = Update::of_version(location, version);
        write.when("attribute_exists(minted)").unschedule();
        self.write_installation(write).await
    }

    /// Erases a token that was minted from a company's installation before `epoch`.
    pub async fn erase_minted(&self, location: &Resource, company: &str, epoch: u64) -> Result<(), StoreError> {
        let mut write = Update::of_installation(location);
        write.when("attribute_exists(minted) AND attribute_exists(access_token) AND company_epoch < :epoch");
        write.value(":epoch", n(epoch)).when_equal("company", s(company));
        write.erase_pair().unschedule().remove(["standby"]);
        self.write(write).await.map(drop)
    }

    /// A page of the locations of a company, starting after `after`.
    pub async fn locations_of(&self, company: &str, after: Option<&Resource>) -> Result<Vec<Resource>, StoreError> {
        let least = after.map_or_else(|| "installation#location#".to_owned(), installation_key);
        let answer = self
            .client
            .query()
            .table_name(&*self.name)
            .index_name("company")
            .key_condition_expression("company = :company AND pk > :least")
            .expression_attribute_values(":company", s(company))
            .expression_attribute_values(":least", s(least))
            .limit(500)
            .send()
            .await?;
        let key = |item| Attributes::of(item).text("pk").and_then(resource_of);
        Ok(answer.items().iter().filter_map(key).filter(|found| found.kind() == Kind::Location).collect())
    }
}

/// Returns true if a location was stored as installed before a notice, and as one of the notice's company. Without an
/// item, `before` is empty.
fn is_known(before: &Item, company: Option<&str>) -> bool {
    let before = Attributes::of(before);
    let is_same = company.is_none_or(|company| before.text("company") == Some(company));
    before.text("status").is_some() && !before.flag("placeholder") && is_same
}

/// An install notice of a location that is not known or whose token is minted.
fn notice_of_minted(location: &Resource, notice: &InstallNotice<'_>) -> Update {
    let mut write = Update::of_installation(location);
    let mut news = "attribute_exists(placeholder)".to_owned();
    // With an event, only the beginning of an installation is written, because the event is true in no other case.
    if notice.event.is_none() {
        news.push_str(" OR installed_at < :at OR attribute_exists(absent_until) OR attribute_exists(search_since)");
        if notice.company.is_some() {
            news.push_str(" OR attribute_not_exists(company) OR company <> :company");
        }
    }
    let has_not_ended = write.status_is(|status| !status.has_ended());
    write.when(&format!("attribute_not_exists(pk) OR (attribute_exists(minted) AND {has_not_ended} AND ({news}))"));
    write.set_to("#status", "if_not_exists(#status, :Active)").value(":Active", s(Status::Active.as_str()));
    write.set_to("epoch", "if_not_exists(epoch, :one)").set_to("generation", "if_not_exists(generation, :zero)");
    write.value(":one", n(1)).value(":zero", n(0)).set_to("installed_at", ":at").value(":at", n(notice.at));
    if let Some(company) = notice.company {
        write.set_to("company", ":company").value(":company", s(company));
    }
    write.set("minted", AttributeValue::Bool(true)).remove(["placeholder", "expires_at"]).remove(SEARCH_RESULT);
    write.publish(notice.event, notice.now).answer(ReturnValue::AllOld);
    write
}

/// An install notice of a location that was uninstalled or given up before.
fn notice_of_ended(location: &Resource, notice: &InstallNotice<'_>) -> Update {
    let mut write = Update::of_installation(location);
    let ended: Vec<_> = Status::ALL
        .iter()
        .copied()
        .filter_map(|status| Some((status, end_of(status)?)))
        .map(|(status, ended_at)| format!("({} AND {ended_at} < :at)", write.status_is(|this| this == status)))
        .collect();
    write.when(&ended.join(" OR "));
    if let Some(event) = notice.event {
        write.when_equal("epoch", n(event.epoch.saturating_sub(1)));
    }
    write.set_status(Status::Active).set_to("epoch", "epoch + :one").value(":one", n(1)).set("failures", n(0));
    write.set_to("installed_at", ":at").value(":at", n(notice.at)).set("minted", AttributeValue::Bool(true));
    if let Some(company) = notice.company {
        write.set("company", s(company));
    }
    write.erase_pair().release_lease().remove(["standby", "tried_at", "forced_at", "revoked_at", "published"]);
    write.remove(["placeholder", "expires_at"]).remove(SEARCH_RESULT).publish(notice.event, notice.now);
    write
}

/// The attribute with the time at which an installation in this state ended. The end of an installation that was given
/// up is not known, so its attribute is the time of the install, which is earlier than the end.
fn end_of(status: Status) -> Option<&'static str> {
    match status {
        Status::Revoked => Some("revoked_at"),
        Status::NeedsReauthorization => Some("installed_at"),
        Status::Active | Status::Refreshing | Status::Uncertain | Status::Suspended | Status::Blocked => None,
    }
}
