//! Plain types and their rules. No AWS, no I/O, and no import from another module of this crate.

pub mod access;
pub mod api_version;
pub mod bearer;
pub mod clock;
pub mod digest;
pub mod event;
pub mod grant;
pub mod installation;
pub mod limits;
pub mod pace;
pub mod problem;
pub mod qualifier;
pub mod random;
pub mod redacted;
pub mod resource;
pub mod status;
