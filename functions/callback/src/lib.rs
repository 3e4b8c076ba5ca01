//! The `callback` function: the only one that an agency's admin ever sees.
//!
//! | route | what it does | module |
//! |---|---|---|
//! | `GET /oauth/install` | sends the browser to the authorization page, or asks to which | [`authorize`], [`state`], [`browser`] |
//! | `GET /oauth/callback`, `GET /oauth/callback/{any}` | exchanges the code once, stores the installation, 303 | [`redirect`], [`once`] |
//! | `GET /oauth/done` | says that it worked | [`pages`] |
//!
//! Everything that can go wrong is one [`failure::Failure`], which knows its status and its words. No page repeats
//! anything that came with a request: pages are made of failures and configuration only.

pub mod accent;
pub mod authorize;
pub mod browser;
pub mod done;
pub mod event;
pub mod failure;
pub mod installer;
pub mod once;
pub mod pages;
pub mod public_url;
pub mod query;
pub mod redirect;
pub mod route;
pub mod state;
pub mod words;

use lambda_runtime::Error;
use shared::app::App;
use shared::config::CallbackConfig;
use shared::lambda::serve::serve_http;

use crate::installer::Installer;

/// Serves events until the process is ended.
///
/// # Errors
/// Configuration that is missing or malformed, or a Runtime API that cannot be reached.
pub async fn run() -> Result<(), Error> {
    let CallbackConfig { app, authorization, brand } = App::configure("callback", CallbackConfig::read)?;
    let alias = app.gateway_alias.clone();
    serve_http(alias, Installer::new(Box::pin(App::of(app)).await?, authorization, brand)).await
}
