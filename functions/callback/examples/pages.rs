//! Writes every page to a folder, for review and checks: `cargo run -p callback --example pages -- <folder>`. The folder
//! `branded` inside it has the same pages with a brand.

use std::path::PathBuf;
use std::{env, fs, io};

use callback::authorize::Marketplace;
use callback::done::Done;
use callback::failure::InstallFailure;
use callback::pages::{self, PageContext};
use callback::public_url::PublicUrl;
use lambda_http::{Body, Response};
use shared::config::{Authorization, Brand, Colour, InstallChoice, MarketplaceInstalls};
use shared::domain::resource::Kind;
use url::Url;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = env::args_os().nth(1).map(PathBuf::from).ok_or("usage: pages <folder>")?;
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
    let marketplace = Marketplace::Standard;
    let request_id = "8476a536-e9f4-11e8-9739-2dfe598c3fcd";
    for (folder, brand) in [(folder.clone(), &Brand::default()), (folder.join("branded"), &brand)] {
        let context = PageContext { config: &config, brand, public: Some(&public), marketplace, request_id };
        fs::create_dir_all(&folder)?;
        let write = |name: &str, page: Response<Body>| -> io::Result<()> {
            fs::write(folder.join(format!("{name}.html")), page.into_body())
        };
        for kind in [None, Some(Kind::Location), Some(Kind::Company)] {
            write(kind.map_or("done", Kind::as_str), pages::done(Done { kind, marketplace }, context))?;
        }
        write("choice", pages::choice(context))?;
        for &failure in InstallFailure::ALL {
            write(&format!("{failure:?}"), pages::failure(failure, context))?;
        }
    }
    Ok(())
}
