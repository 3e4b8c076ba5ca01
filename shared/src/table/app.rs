//! What concerns the whole app: the breaker, and how refreshes went of late.

use std::time::Duration;

use aws_sdk_dynamodb::types::ReturnValue;

use super::{Attributes, StoreError, Table, n, s};
use crate::clock::Millis;

const BREAKER: &str = "app#breaker";
/// Refreshes are counted by intervals of this length.
const BUCKET: Duration = Duration::from_mins(5);
/// How many of them make up the window of 15 minutes that a judgement looks at.
const BUCKETS: u32 = 3;
/// A refusal is judged on at least so many refreshes of the window…
const LEAST_ANSWERED: u64 = 50;
/// …and so many refusals, lest one dead grant among fifty stop a small app.
const LEAST_REFUSED: u64 = 3;

/// Why no refresh token is presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerReason {
    /// The platform does not accept the app's client id and secret.
    WrongClient,
    /// The platform does not accept a parameter of the token request.
    BadRequest,
    /// The platform refuses so many refresh tokens that the fault is likely its own.
    MassRefusal,
}

impl BreakerReason {
    /// The name in the table and in logs.
    #[must_use]
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
    /// Why.
    pub reason: BreakerReason,
    /// Until when; [`i64::MAX`] means until an operator closes it.
    pub until: Millis,
    /// Which client credentials were refused.
    pub fingerprint: Option<String>,
}

/// How the refreshes of the last 15 minutes were answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// With a grant or a refusal.
    pub answered: u64,
    /// With a refusal.
    pub refused: u64,
}

impl Tally {
    /// Whether more than 1 % were refused, of enough to judge by.
    #[must_use]
    pub fn is_mass_refusal(self) -> bool {
        self.answered >= LEAST_ANSWERED && self.refused >= LEAST_REFUSED && self.refused * 100 > self.answered
    }
}

impl std::ops::Add for Tally {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { answered: self.answered + other.answered, refused: self.refused + other.refused }
    }
}

impl Table {
    /// The breaker as it is stored, open or past its time.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn breaker(&self) -> Result<Option<OpenBreaker>, StoreError> {
        let answer =
            self.client.get_item().table_name(&*self.name).key("pk", s(BREAKER)).consistent_read(true).send().await?;
        Ok(answer.item().and_then(read_breaker))
    }

    /// Opens the breaker, or keeps it open.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open_breaker(&self, open: &OpenBreaker) -> Result<(), StoreError> {
        self.client
            .update_item()
            .table_name(&*self.name)
            .key("pk", s(BREAKER))
            // A stop for an operator to lift is not replaced by one that passes.
            .condition_expression("attribute_not_exists(open_until) OR open_until <= :until")
            .update_expression("SET reason = :reason, open_until = :until, fingerprint = :fingerprint")
            .expression_attribute_values(":reason", s(open.reason.as_str()))
            .expression_attribute_values(":until", n(open.until))
            .expression_attribute_values(":fingerprint", s(open.fingerprint.as_deref().unwrap_or("-")))
            .send()
            .await
            .map(drop)
            .or_else(|error| match error.as_service_error() {
                Some(e) if e.is_conditional_check_failed_exception() => Ok(()),
                _ => Err(error.into()),
            })
    }

    /// Closes the breaker, whatever has opened it; what it was before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn close_breaker(&self) -> Result<Option<OpenBreaker>, StoreError> {
        let write = self.client.update_item().table_name(&*self.name).key("pk", s(BREAKER));
        let write = write.update_expression("REMOVE reason, open_until, fingerprint");
        let closed = write.return_values(ReturnValue::AllOld).send().await?;
        Ok(closed.attributes.as_ref().and_then(read_breaker))
    }

    /// How the refreshes of the last 15 minutes were answered, as far as they were counted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn recent_tally(&self, now: Millis) -> Result<Tally, StoreError> {
        let mut sum = Tally::default();
        for key in bucket_keys(now) {
            let answer = self.client.get_item().table_name(&*self.name).key("pk", s(key)).send().await?;
            sum = sum + answer.item().map(read_tally).unwrap_or_default();
        }
        Ok(sum)
    }

    /// Forgets how the refreshes of the last 15 minutes were answered: what is refused from now on is judged by itself.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget_tally(&self, now: Millis) -> Result<(), StoreError> {
        for key in bucket_keys(now) {
            self.client
                .update_item()
                .table_name(&*self.name)
                .key("pk", s(key))
                .update_expression("SET expires_at = :expires REMOVE answered, refused")
                .expression_attribute_values(":expires", n(now.seconds() + 24 * 3600))
                .send()
                .await?;
        }
        Ok(())
    }

    /// Adds to the count of how refreshes were answered, and returns that of the last 15 minutes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn tally(&self, add: Tally, now: Millis) -> Result<Tally, StoreError> {
        let written = self
            .client
            .update_item()
            .table_name(&*self.name)
            .key("pk", s(bucket_key(bucket_of(now))))
            .update_expression("SET expires_at = :expires ADD answered :answered, refused :refused")
            .expression_attribute_values(":answered", n(add.answered))
            .expression_attribute_values(":refused", n(add.refused))
            .expression_attribute_values(":expires", n(now.seconds() + 24 * 3600))
            .return_values(ReturnValue::AllNew)
            .send()
            .await?;
        let mut sum = written.attributes.as_ref().map(read_tally).unwrap_or_default();
        if add.refused == 0 {
            return Ok(sum);
        }
        for key in bucket_keys(now).skip(1) {
            let answer = self.client.get_item().table_name(&*self.name).key("pk", s(key)).send().await?;
            sum = sum + answer.item().map(read_tally).unwrap_or_default();
        }
        Ok(sum)
    }
}

fn read_breaker(item: &super::Item) -> Option<OpenBreaker> {
    let attributes = Attributes::of(item);
    let reason = match attributes.text("reason")? {
        "wrong_client" => BreakerReason::WrongClient,
        "bad_request" => BreakerReason::BadRequest,
        _ => BreakerReason::MassRefusal,
    };
    let fingerprint = attributes.text("fingerprint").map(str::to_owned);
    Some(OpenBreaker { reason, until: Millis(attributes.number("open_until")?), fingerprint })
}

fn bucket_of(now: Millis) -> i64 {
    now.seconds().div_euclid(BUCKET.as_secs().cast_signed())
}

/// The present bucket and those before it that the window touches.
fn bucket_keys(now: Millis) -> impl Iterator<Item = String> {
    (0..=i64::from(BUCKETS)).map(move |earlier| bucket_key(bucket_of(now) - earlier))
}

fn bucket_key(bucket: i64) -> String {
    format!("app#refreshes#{bucket}")
}

fn read_tally(item: &super::Item) -> Tally {
    let attributes = Attributes::of(item);
    Tally { answered: attributes.number("answered").unwrap_or(0), refused: attributes.number("refused").unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_dead_grant_stops_nobody_and_three_in_a_hundred_do() {
        for (answered, refused, stop) in
            [(60, 1, false), (49, 49, false), (100, 3, true), (300, 3, false), (301, 4, true)]
        {
            assert_eq!(Tally { answered, refused }.is_mass_refusal(), stop, "{refused} of {answered}");
        }
    }
}
