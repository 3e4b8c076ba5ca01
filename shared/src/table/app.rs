//! The circuit breaker of the whole app, which stops all refreshing, and the pause of all refreshing by an operator. The
//! budget of marks ([`super::mark_budget`]) and the pace of the token endpoint ([`super::pace`]) are in the same item, so
//! one read returns all of them.

use aws_sdk_dynamodb::types::ReturnValue;
use strum::VariantArray;

use super::mark_budget::{BREAKER, MarkBudget};
use super::pace::read_pace;
use super::{Attributes, StoreError, Table, Update, Write, n, s};
use crate::domain::clock::Millis;
use crate::domain::pace::Pace;

/// The attribute with the time of the pause.
const PAUSED_AT: &str = "refreshing_paused_at";

/// The reason for which the breaker is open, so that no refresh token is presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, VariantArray)]
pub enum BreakerReason {
    /// The platform does not accept the app's client id and secret.
    WrongClient,
    /// The platform does not accept a parameter of the token request.
    BadRequest,
    /// The platform refuses so many refresh tokens that the fault is probably the platform's.
    MassRefusal,
}

impl BreakerReason {
    /// The name in the table and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WrongClient => "wrong_client",
            Self::BadRequest => "bad_request",
            Self::MassRefusal => "mass_refusal",
        }
    }
}

/// An open breaker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenBreaker {
    /// The reason.
    pub reason: BreakerReason,
    /// The end of the time for which the breaker is open. [`i64::MAX`] means until an operator closes the breaker.
    pub until: Millis,
    /// The fingerprint of the client credentials that were refused.
    pub fingerprint: Option<String>,
}

/// The state of the whole app, which a process reads before it refreshes any token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppState {
    /// The breaker as stored: open, or past its time.
    pub breaker: Option<OpenBreaker>,
    /// The time at which an operator has paused all refreshing, for example to move the installations to another system.
    /// `None` if refreshing is not paused. A pause is apart from the breaker, so neither hides or ends the other.
    pub paused_at: Option<Millis>,
    /// The budget of marks.
    pub budget: MarkBudget,
    /// The pace of the token endpoint.
    pub pace: Pace,
}

impl Table {
    /// The breaker, the budget of marks and the pace, which are in one item (strongly consistent).
    pub async fn app_state(&self) -> Result<AppState, StoreError> {
        let answer =
            self.client.get_item().table_name(&*self.name).key("pk", s(BREAKER)).consistent_read(true).send().await?;
        let read = |item| AppState {
            breaker: read_breaker(item),
            paused_at: Attributes::of(item).number(PAUSED_AT).map(Millis),
            budget: MarkBudget::read(item),
            pace: read_pace(item),
        };
        Ok(answer.item().map(read).unwrap_or_default())
    }

    /// The breaker as stored: open, or past its time.
    pub async fn breaker(&self) -> Result<Option<OpenBreaker>, StoreError> {
        Ok(self.app_state().await?.breaker)
    }

    /// Opens the breaker, or keeps the breaker open.
    pub async fn open_breaker(&self, open: &OpenBreaker) -> Result<(), StoreError> {
        let mut write = Update::of(BREAKER);
        // A breaker that an operator must close is not replaced by one that closes after a time.
        write.when("attribute_not_exists(open_until) OR open_until <= :until").value(":until", n(open.until));
        write.set("reason", s(open.reason.as_str())).set_to("open_until", ":until");
        write.set("fingerprint", s(open.fingerprint.as_deref().unwrap_or("-")));
        self.write(write).await.map(drop)
    }

    /// Pauses all refreshing until [`Table::end_pause`].
    pub async fn pause(&self, now: Millis) -> Result<(), StoreError> {
        let mut write = Update::of(BREAKER);
        write.set(PAUSED_AT, n(now));
        self.write(write).await.map(drop)
    }

    /// Ends the pause. Returns false if refreshing was not paused.
    pub async fn end_pause(&self) -> Result<bool, StoreError> {
        let mut write = Update::of(BREAKER);
        write.when(&format!("attribute_exists({PAUSED_AT})")).remove([PAUSED_AT]);
        Ok(self.write(write).await?.is_applied())
    }

    /// Closes the breaker for any reason, and returns the breaker as it was. The budget of marks does not change.
    pub async fn close_breaker(&self) -> Result<Option<OpenBreaker>, StoreError> {
        let mut write = Update::of(BREAKER);
        write.remove(["reason", "open_until", "fingerprint"]).answer(ReturnValue::AllOld);
        match self.write(write).await? {
            Write::Applied(before) => Ok(read_breaker(&before)),
            Write::Conflict(_) | Write::NotFound => Ok(None),
        }
    }
}

fn read_breaker(item: &super::Item) -> Option<OpenBreaker> {
    let attributes = Attributes::of(item);
    let name = attributes.text("reason")?;
    // A breaker that was opened for an unknown reason is closed by an operator only, like that of a mass refusal.
    let reason = BreakerReason::VARIANTS.iter().copied().find(|reason| reason.as_str() == name);
    let reason = reason.unwrap_or(BreakerReason::MassRefusal);
    let fingerprint = attributes.text("fingerprint").map(str::to_owned);
    Some(OpenBreaker { reason, until: Millis(attributes.number("open_until")?), fingerprint })
}
