//! What an error of the AWS SDK says, in one line for an operator.
//!
//! The SDK's own rendering holds the raw answer, with headers and body. An answer that could not be parsed may hold a
//! secret, so none of it is repeated here but the service's error code and message.

use std::error::Error;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

/// One line: what happened, without anything of the answer but its error code and message.
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

/// The cause of all causes: for a connection the operating system's words.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
