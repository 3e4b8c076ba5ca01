//! What is left when a process dies or freezes in the midst of a refresh: the built functions as processes of their
//! own, killed and stopped by signals.
//!
//! A process is struck while a certain request of it is held back, in the proxy that lies between it and the store or
//! at the platform, so that it is always at the point that the story names. The only time that is waited for in
//! earnest is the end of a lease; the stories of a test run side by side so that they wait for it together.

mod answers;
mod deaths;
mod events;
mod freezes;
mod readers;
mod scene;
mod store;
