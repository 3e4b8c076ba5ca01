//! Webhooks of every type: their signatures, and their way to the bus.

mod signatures;
