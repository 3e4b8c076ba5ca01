//! The command `redrive`: moves the messages of the dead-letter queues back to the queues that they came from, after the
//! cause was repaired (Amazon SQS Developer Guide, "Dead-letter queue redrive").

use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::json;
use shared::http_client::aws_error::describe;

use crate::error::CommandError;
use crate::print::Out;
use crate::stack::{RESCUE_FAILURES, Stack};

/// Starts a move for each dead-letter queue that has messages. SQS moves them in the background.
pub(crate) async fn run(stack: &Stack, out: Out) -> Result<(), CommandError> {
    let rescue = stack.queues.iter().find(|(what, _)| *what == RESCUE_FAILURES).map(|(what, url)| (*what, url));
    let overflow = stack.overflow_failures_url.as_ref().map(|url| ("dead-letter queue of the overflow queue", url));
    let queues: Vec<_> = rescue.into_iter().chain(overflow).collect();
    if queues.is_empty() {
        let why = "neither RESCUE_FAILURES_URL nor EVENTS_OVERFLOW_FAILURES_URL is set";
        return Err(CommandError::Environment(why.into()));
    }
    let sqs = stack.sqs();
    let (mut values, mut texts) = (Vec::new(), Vec::new());
    for (what, url) in queues {
        let depth = stack.depth(url).await?;
        if depth > 0 {
            let asked = sqs.get_queue_attributes().queue_url(url).attribute_names(QueueAttributeName::QueueArn);
            let answer = asked.send().await.map_err(|error| CommandError::NotDone(describe(&error)))?;
            let arn = answer.attributes().and_then(|known| known.get(&QueueAttributeName::QueueArn));
            let started = sqs.start_message_move_task().set_source_arn(arn.cloned()).send().await;
            started.map_err(|error| CommandError::NotDone(describe(&error)))?;
        }
        values.push(json!({ "queue": what, "messages": depth }));
        texts.push(format!("{what}: {depth} messages go back"));
    }
    out.value(&json!({ "moving": values }), &texts.join("\n"));
    Ok(())
}
