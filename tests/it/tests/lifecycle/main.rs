//! No refresh token is lost: each way in which others lose one, as a story that several processes tell on a real
//! engine. Every story ends with [`it::world::World::end`]: whoever has a live grant at the platform is usable.

mod beginning_and_end;
mod crashes;
mod marks;
mod model;
mod outcomes;
mod races;
mod readers;
mod rescue;
mod schedule;
mod sealing;
mod store;
mod transitions;
mod unauthorized;
mod wordings;
