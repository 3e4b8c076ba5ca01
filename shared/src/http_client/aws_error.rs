//! Errors of the AWS SDK in one line, for operators.
//!
//! The SDK's own text of an error contains the raw response, with headers and body. A response that could not be parsed
//! may contain a secret. So only the service's error code and message are repeated here.

use std::error::Error;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

/// The error in one line. Of the response, it contains the error code and message only.
pub fn describe<E, R>(error: &SdkError<E, R>) -> String
where
    E: ProvideErrorMetadata,
{
    match error {
        SdkError::ServiceError(answered) => {
            let error = answered.err();
            let code = error.code().unwrap_or("an error without a code");
            error.message().map_or_else(|| code.to_owned(), |message| format!("{code}: {message}"))
        }
        SdkError::TimeoutError(_) => "no answer in time".to_owned(),
        SdkError::DispatchFailure(failure) => match failure.as_connector_error() {
            Some(error) => format!("not reached: {}", innermost(error)),
            None => "not reached".to_owned(),
        },
        SdkError::ConstructionFailure(_) => "the request could not be made: are region and credentials set?".to_owned(),
        _ => "an answer that cannot be read".to_owned(),
    }
}

/// The text of the first cause. For a connection that is the operating system's message.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
