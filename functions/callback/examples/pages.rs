//! Writes every page to a folder, to be looked at and checked: `cargo run -p callback --example pages -- <folder>`.
//! Each stands there twice, without a brand and, in the folder `branded`, with one.

use std::path::PathBuf;
use std::{env, fs, io};

use callback::authorize::Entrance;
use callback::done::Done;
use callback::failure::Failure;
use callback::pages::{self, Surroundings};
use callback::public_url::PublicUrl;
use lambda_http::{Body, Response};
use shared::config::{Authorization, Brand, Colour, InstallChoice, MarketplaceInstalls};
use shared::domain::resource::Kind;
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
        install_choice: InstallChoice::Ask,
    };
    let brand = Brand {
        name: Some("Grove & Co <Reviews>".into()),
        accent: Colour::parse("#ffd60a"),
        support: Some(Url::parse("mailto:help@example.com?subject=Installing the app")?),
    };
    let public = PublicUrl::of(None, Some("connect.example.com"), None, "/")?;
    let entrance = Entrance::Standard;
    let request_id = "8476a536-e9f4-11e8-9739-2dfe598c3fcd";
    for (folder, brand) in [(folder.clone(), &Brand::default()), (folder.join("branded"), &brand)] {
        let around = Surroundings { config: &config, brand, public: Some(&public), entrance, request_id };
        fs::create_dir_all(&folder)?;
        let write = |name: &str, page: Response<Body>| -> io::Result<()> {
            fs::write(folder.join(format!("{name}.html")), page.into_body())
        };
        for kind in [None, Some(Kind::Location), Some(Kind::Company)] {
            write(kind.map_or("done", Kind::as_str), pages::done(Done { kind, entrance }, around))?;
        }
        write("choice", pages::choice(around))?;
        for failure in Failure::ALL {
            write(&format!("{failure:?}"), pages::failure(failure, around))?;
        }
    }
    Ok(())
}
