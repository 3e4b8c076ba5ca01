//! Writes every page to a folder, to be looked at: `cargo run -p callback --example pages -- <folder>`.

use std::path::PathBuf;
use std::{env, fs, io};

use callback::authorize::Entrance;
use callback::done::Done;
use callback::event::{RequestContext, RequestLine};
use callback::failure::Failure;
use callback::pages::{self, Surroundings};
use callback::public_url::PublicUrl;
use shared::config::{Authorization, MarketplaceInstalls};
use shared::resource::Kind;
use url::Url;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = env::args_os().nth(1).map(PathBuf::from).ok_or("which folder?")?;
    let config = Authorization {
        marketplace: Url::parse("https://marketplace.gohighlevel.com")?,
        path: "/oauth/chooselocation".into(),
        scopes: None,
        version_id: None,
        login_window: None,
        public_url: None,
        marketplace_installs: MarketplaceInstalls::Allow,
    };
    let http = RequestLine { method: "GET".into() };
    let context = RequestContext { domain_name: Some("connect.example.com".into()), stage: None, http };
    let public = PublicUrl::of(None, &context, "/")?;
    let entrance = Entrance::Standard;
    let request_id = "8476a536-e9f4-11e8-9739-2dfe598c3fcd";
    let around = Surroundings { config: &config, public: Some(&public), entrance, request_id };

    fs::create_dir_all(&folder)?;
    let write = |name: String, html: String| -> io::Result<()> { fs::write(folder.join(name + ".html"), html) };
    for kind in [None, Some(Kind::Location), Some(Kind::Company)] {
        let name = kind.map_or("done", Kind::as_str);
        write(name.to_owned(), pages::done(Done { kind, entrance }, around).body)?;
    }
    for failure in Failure::ALL {
        write(format!("{failure:?}"), pages::failure(failure, around).body)?;
    }
    Ok(())
}
