//! The commands `import` and `export`, which move installations from another system and to another one
//! (docs/moving.md).

pub(crate) mod export;
mod form;
pub(crate) mod import;
