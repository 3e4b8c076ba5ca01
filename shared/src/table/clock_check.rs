//! Compares the clock with the `Date` of DynamoDB's answers.

use std::fmt;

use aws_sdk_dynamodb::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_dynamodb::error::BoxError;
use aws_sdk_dynamodb::primitives::{DateTime, DateTimeFormat};
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint;

use crate::clock::{Clock, Millis};

/// Tells a [`Clock`] what each answer of DynamoDB says about the time.
#[derive(Clone)]
pub struct ClockCheck(Clock);

impl ClockCheck {
    /// A check of `clock`.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self(clock)
    }
}

impl fmt::Debug for ClockCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClockCheck")
    }
}

#[dyn_dispatch_hint]
impl Intercept for ClockCheck {
    fn name(&self) -> &'static str {
        "ClockCheck"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let date = date.and_then(|text| DateTime::from_str(text, DateTimeFormat::HttpDate).ok());
        if let Some(corrected) = date.and_then(|date| self.0.correct(Millis(date.secs() * 1000))) {
            tracing::error!(
                alarm = "clock",
                offset_ms = u64::try_from(corrected.as_millis()).unwrap_or(u64::MAX),
                "this machine's clock differs from DynamoDB's and is corrected"
            );
        }
        Ok(())
    }
}
