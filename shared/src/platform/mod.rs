//! The platform: its operations, its responses, and the requests that the system itself makes.
//!
//! | module | its rule |
//! |---|---|
//! | [`operations`] | the one table of operations: class of the token, `Version`, ids in the path |
//! | [`error_response`] | the one classification of unsuccessful responses, for refreshes, exchanges, minting, lists and relayed calls |
//! | `rate_limits` | the rate-limit headers of a response |
//! | [`token_endpoint`] | `POST /oauth/token`: exchange of a code, refresh of a token |
//! | [`company_api`] | minting of location tokens, and the list of a company's locations |
//! | [`api_versions`] | the version of the API for each of these own calls |
//!
//! The first three are pure.

pub mod api_versions;
pub mod company_api;
pub mod error_response;
pub mod operations;
pub(crate) mod rate_limits;
pub(crate) mod text;
pub mod token_endpoint;
