//! Stories: tests that are told on each engine, with a world of their own.

use std::time::Duration;

use crate::dynamo::Kind;
use crate::world::World;

/// Makes a test of each story, on each engine. A story is an async function of a [`World`].
#[macro_export]
macro_rules! stories {
    ($($name:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let name = concat!(module_path!(), "::", stringify!($name));
                $crate::stories::told($crate::dynamo::Kind::Embedded, name, super::$name).await;
            })*
        }
        mod local {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let name = concat!(module_path!(), "::", stringify!($name));
                $crate::stories::told($crate::dynamo::Kind::Local, name, super::$name).await;
            })*
        }
    };
}

/// Tells a story to its end, which a lost token or a stopped clock must not put off for ever; not at all where the
/// engine is not to be had.
///
/// # Panics
/// If it does not end within two minutes, or if the embedded engine does not start.
pub async fn told<S: Future<Output = ()>>(kind: Kind, name: &str, story: impl FnOnce(World) -> S) {
    let Some(world) = World::start(kind, name).await else {
        assert_eq!(kind, Kind::Local, "the embedded engine is always there");
        return;
    };
    let told = tokio::time::timeout(Duration::from_mins(2), story(world)).await;
    assert!(told.is_ok(), "the story does not end");
}
