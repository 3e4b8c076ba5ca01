//! The life of an installation.
