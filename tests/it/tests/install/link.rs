//! Installs by link and from the marketplace. The code is exchanged only for the browser that began the install.

use callback::authorize::CONSENT_TIME;
use serde_json::json;
use shared::domain::status::Status;
use url::Url;

use crate::{COMPANY, HOME, LOCATION, World, browser, title};

#[tokio::test]
async fn an_install_by_link_ends_on_the_connected_page() {
    let world = World::new().await;
    for (choice, done) in [(LOCATION, "/oauth/done?for=location"), (COMPANY, "/oauth/done?for=company")] {
        let (back, cookie) = world.approve(choice).await;
        let answer = world.get(&back, Some(&cookie)).await;
        assert_eq!((answer.status_code, answer.headers["location"].as_str()), (303, format!("{HOME}{done}").as_str()));
        assert_eq!(world.status(choice).await, Some(Status::Active), "{choice}");
        let page = world.get(done, Some(&cookie)).await;
        assert_eq!(page.status_code, 200);
        assert!(title(&page).starts_with("The app is connected"), "{}", page.body);
    }
    let table = world.table().await;
    assert!(
        table.contains(&hex::encode(b"\x01\x02k1")),
        "bytes are printed like this, so that they can be searched: {table}"
    );
    let secrets = world.marketplace.every_secret();
    assert!(secrets.len() > 6, "tokens, codes and the client secret");
    for secret in secrets {
        assert!(!table.contains(&secret) && !table.contains(&hex::encode(&secret)), "a secret is there in clear");
    }
}

#[tokio::test]
async fn an_install_from_the_marketplace_uses_the_registered_redirect_uri() {
    let world = World::new().await;
    world.marketplace.change(|options| options.redirect_uris = vec![format!("{HOME}/oauth/callback/my-app")]);
    let start = Url::parse(&format!("{}/install", world.marketplace.url())).expect("a URL");
    let client = browser();
    assert_eq!(client.get(start).send().await.expect("shown").status(), 200);
    let mut page = Url::parse(&format!("{}/oauth/chooselocation", world.marketplace.url())).expect("a URL");
    page.query_pairs_mut()
        .append_pair("client_id", &world.marketplace.options().client_id)
        .append_pair("response_type", "code")
        .append_pair("redirect_uri", &format!("{HOME}/oauth/callback/my-app"));
    let back = world.decide(&page, LOCATION).await;
    assert!(back.starts_with("/oauth/callback/my-app?code="), "{back}");
    assert_eq!(world.get(&back, None).await.status_code, 303);
    assert_eq!(world.status(LOCATION).await, Some(Status::Active));
}

#[tokio::test]
async fn an_install_from_the_marketplace_is_refused_if_the_configuration_denies_it() {
    let world = World::with(&[("MARKETPLACE_INSTALLS", "deny")]).await;
    let answer = world.get("/oauth/callback?code=anything", None).await;
    assert_eq!(answer.status_code, 403);
    assert!(answer.body.contains(&format!("href=\"{HOME}/oauth/install\"")), "{}", answer.body);
    let (back, cookie) = world.approve(LOCATION).await;
    assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 303, "a link works all the same");
}

#[tokio::test]
async fn the_install_link_asks_for_the_entrance_if_configured() {
    let world =
        World::with(&[("INSTALL_CHOICE", "ask"), ("BRAND_NAME", "Grove & Co"), ("ACCENT_COLOR", "#123456")]).await;
    let asked = world.get("/oauth/install", None).await;
    assert_eq!((asked.status_code, title(&asked)), (200, "Where do you sign in? · Grove &amp; Co"));
    assert!(asked.cookies.is_empty(), "nothing has begun");
    assert!(asked.body.contains("--accent:#123456"), "{}", asked.body);
    for answer in ["0", "1"] {
        let path = format!("/oauth/install?white_label={answer}");
        assert!(asked.body.contains(&format!("href=\"{HOME}{path}\"")), "{}", asked.body);
        assert_eq!(world.get(&path, None).await.status_code, 302, "{path}");
    }
    assert_eq!(world.get("/oauth/install?white_label=perhaps", None).await.status_code, 400);
}

#[tokio::test]
async fn a_code_is_exchanged_only_for_the_browser_that_began_the_install() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    let (_, strangers) = world.begin().await;
    let forged = back.replace("state=A", "state=B");
    assert_ne!(forged, back);
    for (path, cookie) in [
        (&back, None),
        (&back, Some(strangers.as_str())),
        (&forged, Some(cookie.as_str())),
        (&format!("{back}&state=x"), Some(cookie.as_str())),
        (&format!("{back}&code=x"), Some(cookie.as_str())),
        (&format!("{back}&error=access_denied"), Some(cookie.as_str())),
    ] {
        let answer = world.get(path, cookie).await;
        assert_eq!((answer.status_code, world.exchanges()), (400, 0), "{path}");
        assert!(answer.body.contains(&format!("href=\"{HOME}/oauth/install\"")), "{}", answer.body);
    }
    world.clock.advance(CONSENT_TIME);
    let answer = world.get(&back, Some(&cookie)).await;
    assert_eq!((answer.status_code, title(&answer)), (400, "This took a little too long"));
    assert_eq!(world.exchanges(), 0);
}

#[tokio::test]
async fn two_tabs_of_a_browser_both_finish() {
    let world = World::new().await;
    let (one, cookie) = world.begin().await;
    let second = world.get("/oauth/install", Some(&cookie)).await;
    assert!(second.cookies[0].starts_with(&cookie), "the browser keeps its value");
    let two = Url::parse(&second.headers["location"]).expect("a URL");
    for (page, choice) in [(two, COMPANY), (one, LOCATION)] {
        let back = world.decide(&page, choice).await;
        assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 303, "{choice}");
    }
}

#[tokio::test]
async fn prefetches_and_head_requests_do_not_spend_the_code() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    let head = world.request("HEAD", &back, Some(&cookie), &json!({})).await;
    assert_eq!((head.status_code, head.headers["allow"].as_str()), (405, "GET"));
    let prefetch = world.request("GET", &back, Some(&cookie), &json!({"sec-purpose": "prefetch"})).await;
    assert_eq!(prefetch.status_code, 503);
    assert_eq!(world.exchanges(), 0);
    assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 303, "it is still good");
}
