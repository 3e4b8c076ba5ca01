//! Plain types and the rules that need nothing else: no AWS, no I/O, no other room of this crate.

pub mod access;
pub mod bearer;
pub mod clock;
pub mod event;
pub mod grant;
pub mod installation;
pub mod limits;
pub mod problem;
pub mod qualifier;
pub mod random;
pub mod redacted;
pub mod resource;
pub mod status;
