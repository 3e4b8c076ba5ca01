//! The `callback` function: the pages of an installation. An agency's admin sees this function only.
//!
//! | route | what it does | module |
//! |---|---|---|
//! | `GET /oauth/install` | sends the browser to the authorization page; may first ask the admin which host to use | [`authorize`], [`state`], [`browser`] |
//! | `GET /oauth/callback`, `GET /oauth/callback/{any}` | exchanges the code once, stores the installation, redirects with 303 | [`redirect`], [`redirect_claim`] |
//! | `GET /oauth/done` | shows that the app is connected | [`pages`] |
//!
//! Each failure is a [`failure::InstallFailure`], which has a status and a text. A page contains no data of a request:
//! its text comes from the failure and from the configuration only.

pub mod accent;
pub mod authorize;
pub mod browser;
pub mod done;
pub mod event;
pub mod failure;
pub mod installer;
pub mod pages;
pub mod public_url;
pub mod query;
pub mod redirect;
pub mod redirect_claim;
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
/// The configuration is missing or malformed, or the Runtime API cannot be reached.
pub async fn run() -> Result<(), Error> {
    let CallbackConfig { app, authorization, brand } = App::configure("callback", CallbackConfig::read)?;
    let alias = app.gateway_alias.clone();
    serve_http(alias, Installer::new(Box::pin(App::of(app)).await?, authorization, brand)).await
}
