//! Everything that is known of the platform's behaviour, in one place. Pure.
//!
//! [`refusal`] reads what an unsuccessful answer says, for refreshes, exchanges, minting, lists and relayed calls alike.
//! [`operations`] is the one table of the platform's operations: whose token they take, in which version, and where
//! they name a location or company.

pub mod company_api;
pub mod operations;
pub(crate) mod rate_limits;
pub mod refusal;
pub(crate) mod text;
pub mod token_endpoint;
