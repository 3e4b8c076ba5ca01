//! No refresh token is lost: each way in which others lose one, as a story that several processes tell on a real
//! engine. Every story ends with [`it::world::World::end`]: whoever has a live grant at the platform is usable.

/// Makes a test of each story, on each engine.
macro_rules! stories {
    ($($name:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let name = concat!(module_path!(), "::", stringify!($name));
                let world = it::world::World::start(it::dynamo::Kind::Embedded, name).await;
                super::$name(world.expect("the embedded engine is always there")).await;
            })*
        }
        mod local {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let name = concat!(module_path!(), "::", stringify!($name));
                if let Some(world) = it::world::World::start(it::dynamo::Kind::Local, name).await {
                    super::$name(world).await;
                }
            })*
        }
    };
}

mod beginning_and_end;
mod crashes;
mod model;
mod outcomes;
mod races;
mod readers;
mod rescue;
mod schedule;
mod sealing;
mod store;
