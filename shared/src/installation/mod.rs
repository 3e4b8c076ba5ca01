//! The life of an installation.

pub mod state;
