//! Compares the clock with the `Date` of DynamoDB's answers.

use std::fmt;

use aws_sdk_dynamodb::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_dynamodb::error::BoxError;
use aws_sdk_dynamodb::primitives::{DateTime, DateTimeFormat};
use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint;
use aws_smithy_types::config_bag::{Storable, StoreReplace};

use crate::domain::clock::{Clock, Millis, Reading};

/// Gives a [`Clock`] the evidence of each answer of `DynamoDB` about the time.
#[derive(Clone)]
pub struct ClockCheck(Clock);

impl ClockCheck {
    /// A check of `clock`.
    pub fn new(clock: Clock) -> Self {
        Self(clock)
    }
}

impl fmt::Debug for ClockCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClockCheck")
    }
}

/// The time at which a try of a request was sent.
#[derive(Debug)]
struct Sent(Reading);

impl Storable for Sent {
    type Storer = StoreReplace<Self>;
}

#[dyn_dispatch_hint]
impl Intercept for ClockCheck {
    fn name(&self) -> &'static str {
        "ClockCheck"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        config.interceptor_state().store_put(Sent(Reading::now()));
        Ok(())
    }

    fn read_after_transmit(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let date = date.and_then(|text| DateTime::from_str(text, DateTimeFormat::HttpDate).ok());
        let (Some(date), Some(Sent(sent))) = (date, config.load::<Sent>()) else { return Ok(()) };
        match self.0.observe(Millis(date.secs() * 1000), *sent, Reading::now()) {
            None => {}
            Some(0) => tracing::info!("this machine's clock agrees with DynamoDB's again"),
            Some(offset_ms) => tracing::error!(
                alarm = "clock",
                offset_ms,
                "this machine's clock differs from DynamoDB's and is corrected"
            ),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::Client;
    use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_second_answer_with_another_date_corrects_the_clock() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut seen = [0; 8192];
            while stream.read(&mut seen).await.is_ok_and(|read| read > 0) {
                let head = "HTTP/1.1 200 OK\r\ndate: Wed, 21 Oct 2015 07:28:00 GMT\r\ncontent-length: 2\r\n\r\n{}";
                stream.write_all(head.as_bytes()).await.expect("written");
            }
        });
        let clock = Clock::system();
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .credentials_provider(Credentials::new("a", "b", None, None, "test"))
            .endpoint_url(url)
            .http_client(crate::http_client::aws())
            .interceptor(ClockCheck::new(clock.clone()));
        let client = Client::from_conf(config.build());
        let is_2015 = || clock.now().rfc3339().starts_with("2015-10-21T07:28:0");
        client.list_tables().send().await.expect("an answer");
        assert!(!is_2015(), "one answer is no proof");
        client.list_tables().send().await.expect("an answer");
        assert!(is_2015(), "{}", clock.now().rfc3339());
        serving.abort();
    }
}
