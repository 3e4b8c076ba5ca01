//! No refresh token is lost. Each story shows one way in which other brokers lose a refresh token, with several
//! processes on a real engine. Every story ends with [`it::world::World::end`]: each installation with a live grant at
//! the platform must be usable.

mod beginning_and_end;
mod crashes;
mod golden;
mod marks;
mod model;
mod outcomes;
mod pace;
mod portable;
mod races;
mod readers;
mod rescue;
mod schedule;
mod sealing;
mod store;
mod transitions;
mod unauthorized;
mod wordings;
