//! Stories: tests that run on each engine, each with a [`World`] of its own.

use std::time::Duration;

use crate::dynamo::Kind;
use crate::world::World;

/// Makes two tests of each story, one on each engine. A story is an async function that takes a [`World`].
#[macro_export]
macro_rules! stories {
    ($($name:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let name = concat!(module_path!(), "::", stringify!($name));
                $crate::stories::run($crate::dynamo::Kind::Embedded, name, super::$name).await;
            })*
        }
        mod local {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let name = concat!(module_path!(), "::", stringify!($name));
                $crate::stories::run($crate::dynamo::Kind::Local, name, super::$name).await;
            })*
        }
    };
}

/// Runs a story on an engine. Records it as skipped if this machine lacks the engine.
///
/// # Panics
/// If the story panics, or does not end within five minutes. Without this limit a story that waits for a clock that
/// nobody moves would never end.
pub async fn run<S: Future<Output = ()>>(kind: Kind, name: &str, story: impl FnOnce(World) -> S) {
    let Some(world) = World::start(kind, name).await else {
        assert_eq!(kind, Kind::Local, "the embedded engine is always there");
        return;
    };
    let ended = tokio::time::timeout(Duration::from_mins(5), story(world)).await;
    assert!(ended.is_ok(), "the story does not end");
}
