//! Redirects back from the authorization page. Each redirect is exchanged once, and the exchanges per minute are
//! bounded.
//!
//! An item is first a lease and later the outcome. The first arrival of a redirect claims the item by a conditional
//! write before presenting the code. A repeated arrival (a reload, a double render) fails that condition and finds the
//! outcome. If the holder of a claim died, the claim expires, and the expired claim does not show whether the app was
//! connected. Only [`Ending::Connected`] shows that, because it is written after the installation is stored.
//!
//! The table holds no code and no cookie, but only digests of them.

use std::time::Duration;

use super::{Attributes, Item, StoreError, Table, Update, Write, n, s};
use crate::domain::clock::Millis;
use crate::domain::digest::sha256;
use crate::domain::redacted::Redacted;
use crate::domain::resource::Kind;
use crate::domain::status::LeaseOwner;

/// The lease of a claim. An invocation of the callback ends after 29 s at most, so the holder of an older claim has
/// died.
pub const LEASE: Duration = Duration::from_secs(30);
/// The highest number of times that a code is presented. A code is presented again only if the platform was not reached
/// or did not examine the code.
pub const MOST_ATTEMPTS: u32 = 3;
/// The time for which the table keeps an item. It is longer than a state is valid (30 minutes), so no state is used
/// twice.
const KEPT: Duration = Duration::from_hours(1);
/// The number of exchanges for each [`Origin`] in a minute of the clock, shared by all processes. An exchange that
/// results in an installation gives its place back. So this number bounds refused codes and exchanges in progress, but
/// not real installs.
pub const MOST_EXCHANGES: u32 = 60;
/// The time for which counters are kept.
const COUNTER_KEPT: Duration = Duration::from_hours(1);

/// Identifies a redirect: by its state if it has one, otherwise by its code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectId(String);

impl RedirectId {
    /// The redirect of a state with this nonce. A state belongs to one redirect, even if it comes with different codes.
    pub fn of_state(nonce: &[u8]) -> Self {
        Self(format!("redirect#state#{}", sha256(nonce)))
    }

    /// The redirect with this code and without a state.
    pub fn of_code(code: &Redacted) -> Self {
        Self(format!("redirect#code#{}", sha256(code.expose().as_bytes())))
    }
}

/// The browser that sends a redirect. All fields are digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectArrival {
    /// The digest of the code.
    pub code: String,
    /// The digest of the browser's cookie.
    pub browser: String,
    /// The keyed digest of the network address and the browser's make.
    pub network: String,
}

/// The progress of a redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another invocation is presenting the code.
    Exchanging,
    /// The installation is stored, or on the rescue queue.
    Connected {
        /// The kind of resource that was connected.
        kind: Kind,
        /// The time of the connection.
        at: Millis,
    },
    /// The code is spent or refused. The text is the caller's name for the reason.
    Failed(String),
    /// The code may be presented (again), because the last try did not reach the platform or its holder died. Has the
    /// caller's name for the reason, if given.
    Open(Option<String>),
}

/// A redirect as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRedirect {
    /// The first arrival of the redirect.
    pub first: RedirectArrival,
    /// The progress of the redirect.
    pub progress: Progress,
}

/// The outcome that the holder of a claim stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending<'a> {
    /// The installation is stored, or on the rescue queue.
    Connected(Kind),
    /// The code is spent or refused. The text is the reason.
    Failed(&'a str),
    /// The code may be presented again. The text is the reason.
    Open(&'a str),
    /// The code was not presented, so this claim does not count as an attempt. The text is the reason.
    NotPresented(&'a str),
}

/// One of the limited places for exchanges in a minute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangePlace(String);

/// The origin of a redirect. Each origin has its own places, so guesses without a state do not use up the places of
/// links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A link of this function, with a state.
    Link,
    /// The marketplace's own pages, without a state.
    Marketplace,
}

impl Origin {
    /// The group of places.
    pub fn name(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Marketplace => "marketplace",
        }
    }
}

impl Table {
    /// The stored redirect. `None` if the redirect is new.
    pub async fn redirect(&self, id: &RedirectId, now: Millis) -> Result<Option<StoredRedirect>, StoreError> {
        let read = self.client.get_item().table_name(&*self.name).key("pk", s(&id.0)).consistent_read(true);
        read.send().await?.item().map(|item| stored(item, now)).transpose()
    }

    /// Claims a redirect for `owner`, which may then present its code once. A conflict returns a redirect that belongs
    /// to another code or arrival, or already has an outcome.
    pub async fn claim_redirect(
        &self,
        id: &RedirectId,
        arrival: &RedirectArrival,
        owner: &LeaseOwner,
        now: Millis,
    ) -> Result<Write<StoredRedirect>, StoreError> {
        let mut write = Update::of(&id.0);
        write.when(
            "attribute_not_exists(pk) OR (code = :code AND attribute_not_exists(outcome) AND claim_ends_at <= :now \
             AND attempts < :most)",
        );
        write.value(":code", s(&arrival.code)).value(":now", n(now)).value(":most", n(MOST_ATTEMPTS));
        write.set_to("code", ":code").set("browser", s(&arrival.browser)).set("network", s(&arrival.network));
        write.set("claimed_by", s(owner.as_str())).set("claim_ends_at", n(now + LEASE));
        write.set_to("attempts", "if_not_exists(attempts, :zero) + :one").value(":zero", n(0)).value(":one", n(1));
        write.set("expires_at", n((now + KEPT).seconds())).remove(["reason"]);
        let is_own = |item: &Item| Attributes::of(item).text("claimed_by") == Some(owner.as_str());
        self.write(write).await?.or_applied_before(is_own).read(|item| stored(item, now))
    }

    /// Ends the claim of `owner`. Returns false if `owner` no longer holds the claim.
    pub async fn end_redirect(
        &self,
        id: &RedirectId,
        owner: &LeaseOwner,
        ending: Ending<'_>,
        now: Millis,
    ) -> Result<bool, StoreError> {
        let mut write = Update::of(&id.0);
        write.when_equal("claimed_by", s(owner.as_str()));
        match ending {
            Ending::Connected(kind) => {
                write.set("outcome", s(kind.as_str())).set("ended_at", n(now)).remove(["claim_ends_at"]);
            }
            Ending::Failed(reason) => {
                write.set("outcome", s(FAILED)).set("ended_at", n(now)).set("reason", s(reason));
                write.remove(["claim_ends_at"]);
            }
            Ending::Open(reason) => {
                write.set("claim_ends_at", n(now)).set("reason", s(reason));
            }
            Ending::NotPresented(reason) => {
                write.set("claim_ends_at", n(now)).set("reason", s(reason)).add("attempts", n(-1));
            }
        }
        Ok(self.write(write).await?.is_applied())
    }

    /// Takes one of the `most` places of a group among the exchanges of this minute. `None` if all places are taken.
    pub async fn take_exchange(
        &self,
        group: &str,
        most: u32,
        now: Millis,
    ) -> Result<Option<ExchangePlace>, StoreError> {
        let key = format!("exchanges#{group}#{}", now.seconds().div_euclid(60));
        let mut write = Update::of(&key);
        write.when("attribute_not_exists(taken) OR taken < :most").value(":most", n(most));
        write.add("taken", n(1)).set("expires_at", n((now + COUNTER_KEPT).seconds()));
        Ok(self.write(write).await?.is_applied().then_some(ExchangePlace(key)))
    }

    /// Gives a place back, because its exchange resulted in an installation or did not take place.
    pub async fn return_exchange(&self, place: ExchangePlace) -> Result<(), StoreError> {
        let mut write = Update::of(place.0);
        write.when("taken > :zero").value(":zero", n(0)).add("taken", n(-1));
        self.write(write).await.map(drop)
    }
}

const FAILED: &str = "failed";

fn stored(item: &Item, now: Millis) -> Result<StoredRedirect, StoreError> {
    let attributes = Attributes::of(item);
    let text = |name| attributes.text(name).map(str::to_owned).ok_or_else(|| attributes.malformed(name));
    let reason = attributes.text("reason").map(str::to_owned);
    let at = attributes.number("ended_at").map(Millis).unwrap_or_default();
    let progress = match attributes.text("outcome") {
        Some("location") => Progress::Connected { kind: Kind::Location, at },
        Some("company") => Progress::Connected { kind: Kind::Company, at },
        Some(_) => Progress::Failed(reason.unwrap_or_default()),
        None if attributes.number("claim_ends_at").map(Millis).is_some_and(|ends| now < ends) => Progress::Exchanging,
        None if attributes.number::<u32>("attempts").is_some_and(|attempts| attempts >= MOST_ATTEMPTS) => {
            Progress::Failed(reason.unwrap_or_default())
        }
        None => Progress::Open(reason),
    };
    let first = RedirectArrival { code: text("code")?, browser: text("browser")?, network: text("network")? };
    Ok(StoredRedirect { first, progress })
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::types::AttributeValue;

    use super::*;

    const NOW: Millis = Millis(1_800_000_000_000);

    #[test]
    fn an_item_says_how_far_its_redirect_is() {
        let (before, after) = (n(NOW), n(NOW + Duration::from_millis(1)));
        let connected = |kind| Progress::Connected { kind, at: NOW };
        for (attributes, progress) in [
            (vec![("claim_ends_at", after.clone()), ("attempts", n(1))], Progress::Exchanging),
            (vec![("claim_ends_at", after), ("attempts", n(3))], Progress::Exchanging),
            (vec![("claim_ends_at", before.clone()), ("attempts", n(1))], Progress::Open(None)),
            (
                vec![("claim_ends_at", before.clone()), ("attempts", n(2)), ("reason", s("x"))],
                Progress::Open(Some("x".into())),
            ),
            (vec![("claim_ends_at", before), ("attempts", n(3)), ("reason", s("x"))], Progress::Failed("x".into())),
            (vec![("outcome", s("location")), ("ended_at", n(NOW))], connected(Kind::Location)),
            (vec![("outcome", s("company")), ("ended_at", n(NOW))], connected(Kind::Company)),
            (vec![("outcome", s("failed")), ("reason", s("x"))], Progress::Failed("x".into())),
            (vec![("outcome", s("unheard of"))], Progress::Failed(String::new())),
        ] {
            let arrival = [("pk", s("redirect#code#1")), ("code", s("c")), ("browser", s("b")), ("network", s("n"))];
            let all: Vec<(&str, AttributeValue)> = arrival.into_iter().chain(attributes).collect();
            let item = all.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            assert_eq!(stored(&item, NOW).expect("readable").progress, progress, "{all:?}");
        }
        let without = Item::from([("pk".to_owned(), s("redirect#code#1"))]);
        assert!(matches!(stored(&without, NOW), Err(StoreError::Malformed { attribute: "code", .. })));
    }

    #[test]
    fn an_item_holds_no_code() {
        let code = Redacted::from("the-code");
        let RedirectId(key) = RedirectId::of_code(&code);
        assert_eq!(key, format!("redirect#code#{}", sha256(b"the-code")));
        assert!(!key.contains("the-code"));
        assert_ne!(RedirectId::of_state(b"the-code"), RedirectId(key));
    }
}
