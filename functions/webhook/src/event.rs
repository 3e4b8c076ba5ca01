//! The events of this function: requests of API Gateway, and messages of the overflow queue.

use aws_lambda_events::sqs::{SqsBatchResponse, SqsMessage};
use lambda_http::aws_lambda_events::apigw::ApiGatewayV2httpResponse;
use lambda_runtime::{Context, LambdaEvent};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::domain::qualifier::{GatewayAlias, InvocationKind, Qualifier};
use shared::lambda::serve::answer_http;

use crate::listener::Listener;

/// The answer to an event.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// The answer to a request.
    Http(Box<ApiGatewayV2httpResponse>),
    /// The messages that SQS must deliver again.
    Queue(SqsBatchResponse),
}

/// An event of SQS. Requests of API Gateway have no `Records`.
#[derive(Deserialize)]
struct Messages {
    #[serde(rename = "Records")]
    records: Box<RawValue>,
}

/// Answers one event. An event that came by another qualifier than the event source's is refused.
pub async fn answer(alias: &GatewayAlias, listener: &Listener, event: LambdaEvent<Box<RawValue>>) -> Answer {
    match serde_json::from_str::<Messages>(event.payload.get()) {
        Ok(Messages { records }) => Answer::Queue(answer_queue(alias, listener, &records, &event.context).await),
        Err(_) => Answer::Http(Box::new(answer_http(alias, listener, event).await)),
    }
}

async fn answer_queue(
    alias: &GatewayAlias,
    listener: &Listener,
    records: &RawValue,
    context: &Context,
) -> SqsBatchResponse {
    let came_by = &context.invoked_function_arn;
    if !alias.admits(InvocationKind::Queue, came_by) {
        let (came_by, gateway) = (Qualifier::of(came_by), alias.name());
        tracing::warn!(?came_by, gateway, "an SQS event came by another qualifier than GATEWAY_ALIAS says");
    } else if let Ok(messages) = serde_json::from_str::<Vec<SqsMessage>>(records.get()) {
        return listener.drain(&messages, context.deadline).await;
    } else {
        tracing::error!(alarm = "events", "an SQS event cannot be read");
    }
    // An empty id is a failure of the whole batch, so no message is deleted.
    let mut answer = SqsBatchResponse::default();
    answer.set_failures([""]);
    answer
}
