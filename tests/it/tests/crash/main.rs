//! The state after a process dies or freezes during a refresh. The built functions run as processes of their own, and
//! signals kill or stop them.
//!
//! A test strikes a process while one particular request of that process is held back, either in the proxy between the
//! process and the store or at the platform. The process is therefore always at the point that the story names. Real
//! time passes only while a story waits for the end of a lease. The stories of a test run side by side, so that they
//! wait for that together.

mod answers;
mod deaths;
mod events;
mod freezes;
mod readers;
mod scene;
mod store;
