//! An admin installs the app: from the link to the page that says so, against the marketplace's double, with every
//! way in which it can fail. And the marketplace tells that it was uninstalled.

use std::collections::BTreeMap;
use std::time::Duration;

#[expect(deprecated, reason = "the SDK's only way to name endpoints without touching the process's environment")]
use aws_config::profile::profile_file::{ProfileFileKind, ProfileFiles};
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use callback::event::Answer;
use callback::installer::Installer;
use callback::state;
use sandbox::dynamo::{Dynamo, create_table};
use sandbox::events::EventBus;
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::marketplace::{Marketplace, Options};
use sandbox::secrets::{Failure as SecretFailure, Secrets};
use serde_json::{Value, json};
use shared::app::App;
use shared::clock::{Clock, Millis};
use shared::config::{Config, Function};
use shared::installation::state::Status;
use shared::resource::Resource;
use shared::table::Table;
use url::Url;
use webhook::listener::Listener;

const HOME: &str = "https://connect.example.com";
const LOCATION: &str = "location:HLlocation000000001";
const COMPANY: &str = "company:HLcompany0000000001";

/// The function and all that it talks to.
struct World {
    installer: Installer,
    listener: Listener,
    signer: Ed25519KeyPair,
    marketplace: Marketplace,
    secrets: Secrets,
    dynamo: Dynamo,
    clock: Clock,
}

impl World {
    async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With further variables in the function's environment.
    async fn with(further: &[(&str, &str)]) -> Self {
        shared::log::start();
        let marketplace = Marketplace::start(Options::default(), EventBus::default()).await.expect("starts");
        marketplace.allow_redirect(format!("{HOME}/oauth/callback"));
        let secrets = Secrets::start().await.expect("starts");
        let Options { client_id, client_secret, .. } = marketplace.options();
        secrets.put("app", json!({"client_id": client_id, "client_secret": client_secret}).to_string());
        secrets.put("sealing", json!({"current": "k1", "k1": "k".repeat(40)}).to_string());
        let dynamo = Dynamo::memory().await.expect("starts");
        create_table(&dynamo.client(), "relay").await.expect("created");

        let url = marketplace.url();
        let mut variables = BTreeMap::from([
            ("TABLE_NAME", "relay"),
            ("APP_SECRET_ID", "app"),
            ("SEALING_SECRET_ID", "sealing"),
            ("API_URL", url.as_str()),
            ("MARKETPLACE_URL", url.as_str()),
        ]);
        variables.extend(further.iter().copied());
        let signer = Ed25519KeyPair::generate().expect("a key");
        let spki = signer.public_key().as_der().expect("a public key");
        let spki = STANDARD.encode(spki.as_ref());
        variables.insert("WEBHOOK_PUBLIC_KEYS", &spki);
        let lookup = |name: &str| variables.get(name).map(|value| (*value).to_owned());
        let clock = Clock::manual(Millis(1_800_000_000_000));
        let aws = aws(dynamo.url(), &secrets.url()).await;
        let app = |function| {
            let config = Config::read(function, &lookup).expect("complete");
            App::build(config, &aws, clock.clone()).expect("built")
        };
        let (installer, listener) = (Installer::new(app(Function::Callback)), Listener::new(app(Function::Webhook)));
        Self { installer, listener, signer, marketplace, secrets, dynamo, clock }
    }

    /// The marketplace sends a webhook, signed.
    async fn hear(&self, webhook: &Value) -> (u16, String) {
        let body = webhook.to_string();
        let event = json!({
            "version": "2.0",
            "rawPath": "/webhooks/marketplace",
            "headers": {"x-ghl-signature": STANDARD.encode(self.signer.sign(body.as_bytes()))},
            "requestContext": {"stage": "$default", "http": {"method": "POST"}},
            "body": body,
            "isBase64Encoded": false,
        });
        let answer = self.listener.answer(&event.to_string(), "request-2").await;
        assert_eq!(answer.headers.contains_key("retry-after"), answer.status_code == 429);
        let body: Value = serde_json::from_str(&answer.body).expect("JSON");
        (answer.status_code, body["outcome"].as_str().unwrap_or_default().to_owned())
    }

    fn uninstall(&self, at: Millis) -> Value {
        let client_id = self.marketplace.options().client_id;
        let app_id = client_id.split('-').next();
        json!({"type": "UNINSTALL", "appId": app_id, "locationId": "HLlocation000000001", "timestamp": at.rfc3339()})
    }

    /// A browser asks for a page.
    async fn get(&self, path_and_query: &str, cookie: Option<&str>) -> Answer {
        self.request("GET", path_and_query, cookie, &json!({})).await
    }

    async fn request(&self, method: &str, path_and_query: &str, cookie: Option<&str>, headers: &Value) -> Answer {
        let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
        let event = json!({
            "version": "2.0",
            "rawPath": path,
            "rawQueryString": query,
            "cookies": cookie.into_iter().collect::<Vec<_>>(),
            "headers": headers,
            "requestContext": {
                "domainName": "connect.example.com",
                "stage": "$default",
                "http": {"method": method, "path": path},
            },
            "isBase64Encoded": false,
        });
        let answer = self.installer.answer(&event.to_string(), "request-1").await;
        assert_eq!(answer.headers["relay-request-id"], "request-1");
        answer
    }

    /// Follows the link up to the consent page: its address, and the cookie that the browser keeps.
    async fn begin(&self) -> (Url, String) {
        let answer = self.get("/oauth/install", None).await;
        assert_eq!(answer.status_code, 302);
        let cookie = answer.cookies[0].split(';').next().expect("name and value").to_owned();
        (Url::parse(&answer.headers["location"]).expect("a URL"), cookie)
    }

    /// Decides on the consent page; the path and query that the browser is sent back to.
    async fn decide(&self, page: &Url, choice: &str) -> String {
        let form = format!("{}&choice={choice}", page.query().unwrap_or_default());
        let client = browser();
        let request = client.post(page.clone()).header("content-type", "application/x-www-form-urlencoded").body(form);
        let answer = request.send().await.expect("answered");
        assert_eq!(answer.status(), 302, "{:?}", answer.text().await);
        let location = answer.headers()["location"].to_str().expect("text");
        location.strip_prefix(HOME).expect("back to this function").to_owned()
    }

    /// From the link to the redirect back.
    async fn approve(&self, choice: &str) -> (String, String) {
        let (page, cookie) = self.begin().await;
        (self.decide(&page, choice).await, cookie)
    }

    fn exchanges(&self) -> usize {
        self.marketplace.token_requests_for("authorization_code")
    }

    async fn status(&self, resource: &str) -> Option<Status> {
        let (kind, id) = resource.split_once(':').expect("kind and id");
        let resource = serde_json::from_value::<Resource>(json!({ (kind): id })).expect("a resource");
        let table = Table { client: self.dynamo.client(), name: "relay".into() };
        table.installation(&resource).await.expect("read").map(|installation| installation.status)
    }

    /// The whole table as text.
    async fn table(&self) -> String {
        let items = self.dynamo.client().scan().table_name("relay").send().await.expect("read");
        format!("{:?}", items.items())
    }
}

#[expect(deprecated, reason = "as above")]
async fn aws(dynamodb: &str, secrets: &str) -> SdkConfig {
    let contents = format!(
        "[default]\nservices = doubles\n[services doubles]\n\
         dynamodb =\n  endpoint_url = {dynamodb}\nsecrets-manager =\n  endpoint_url = {secrets}\n"
    );
    let credentials = "[default]\naws_access_key_id = test\naws_secret_access_key = test\n";
    let files = ProfileFiles::builder()
        .with_contents(ProfileFileKind::Config, contents)
        .with_contents(ProfileFileKind::Credentials, credentials)
        .build();
    aws_config::defaults(BehaviorVersion::latest())
        .http_client(shared::http_client::aws())
        .profile_files(files)
        .region(Region::new("us-east-1"))
        .load()
        .await
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

fn title(answer: &Answer) -> &str {
    let (_, rest) = answer.body.split_once("<title>").expect("a page");
    rest.split('<').next().unwrap_or_default()
}

#[tokio::test]
async fn from_the_link_to_the_page_that_says_so() {
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
    assert!(table.contains(&hex(b"\x01\x02k1")), "bytes are printed like this, so that they can be searched: {table}");
    let secrets = world.marketplace.every_secret();
    assert!(secrets.len() > 6, "tokens, codes and the client secret");
    for secret in secrets {
        assert!(!table.contains(&secret) && !table.contains(&hex(secret.as_bytes())), "a secret is there in clear");
    }
}

/// A client that follows no redirect.
fn browser() -> reqwest::Client {
    reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().expect("a client")
}

#[tokio::test]
async fn from_the_marketplace_at_the_address_that_is_registered() {
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
async fn from_the_marketplace_where_the_configuration_denies_it() {
    let world = World::with(&[("MARKETPLACE_INSTALLS", "deny")]).await;
    let answer = world.get("/oauth/callback?code=anything", None).await;
    assert_eq!(answer.status_code, 403);
    assert!(answer.body.contains(&format!("href=\"{HOME}/oauth/install\"")), "{}", answer.body);
    let (back, cookie) = world.approve(LOCATION).await;
    assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 303, "a link works all the same");
}

#[tokio::test]
async fn a_link_asks_by_which_way_to_go_where_the_configuration_says_so() {
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
async fn a_code_is_exchanged_for_the_browser_that_began_only() {
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
    world.clock.advance(state::LIFE);
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
async fn what_nobody_asked_for_does_not_spend_the_code() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    let head = world.request("HEAD", &back, Some(&cookie), &json!({})).await;
    assert_eq!((head.status_code, head.headers["allow"].as_str()), (405, "GET"));
    let prefetch = world.request("GET", &back, Some(&cookie), &json!({"sec-purpose": "prefetch"})).await;
    assert_eq!(prefetch.status_code, 503);
    assert_eq!(world.exchanges(), 0);
    assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 303, "it is still good");
}

#[tokio::test]
async fn a_link_works_once() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 303);
    let again = world.get(&back, Some(&cookie)).await;
    assert_eq!((again.status_code, title(&again)), (400, "This link was already used, or is too old"));
}

#[tokio::test]
async fn consent_that_is_refused_is_no_error_of_anyone() {
    let world = World::new().await;
    let (page, cookie) = world.begin().await;
    let back = world.decide(&page, "refuse").await;
    assert!(back.contains("error=access_denied"), "{back}");
    let answer = world.get(&back, Some(&cookie)).await;
    assert_eq!((answer.status_code, title(&answer)), (400, "The app was not installed"));
    assert!(!answer.body.contains("denied"), "{}", answer.body);
}

#[tokio::test]
async fn a_wrong_client_secret_is_for_the_apps_maker() {
    let world = World::new().await;
    world.marketplace.change(|options| options.client_secret = "changed".into());
    let (back, cookie) = world.approve(LOCATION).await;
    let answer = world.get(&back, Some(&cookie)).await;
    assert_eq!((answer.status_code, title(&answer)), (500, "The app is not set up correctly"));
    assert!(answer.body.contains("tell the maker of the app"), "{}", answer.body);
}

#[tokio::test]
async fn a_platform_that_fails_is_worth_another_try() {
    for fault in [
        Fault::HangUp { processed: false },
        Fault::Answer { processed: false, status: 502, body: "<html>".into(), content_type: None },
        Fault::Answer { processed: false, status: 429, body: "{}".into(), content_type: None },
        Fault::Truncated,
    ] {
        let world = World::new().await;
        world.marketplace.fault(Endpoint::Exchange, fault.clone(), Some(1));
        let (back, cookie) = world.approve(LOCATION).await;
        let answer = world.get(&back, Some(&cookie)).await;
        assert_eq!((answer.status_code, answer.headers["retry-after"].as_str()), (503, "60"), "{fault:?}");
        let (again, cookie) = world.approve(LOCATION).await;
        assert_eq!(world.get(&again, Some(&cookie)).await.status_code, 303, "{fault:?}");
    }
}

#[tokio::test]
async fn no_code_is_spent_where_secrets_cannot_be_read() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    // The app's credentials are kept from before; the data keys have not been needed yet.
    world.secrets.fail(Some(SecretFailure::AccessDenied));
    let answer = world.get(&back, Some(&cookie)).await;
    assert_eq!((answer.status_code, world.exchanges()), (503, 0));
    world.secrets.fail(None);
    world.clock.advance(Duration::from_mins(1));
    assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 303);
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_worth_another_try() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    let client = world.dynamo.client();
    client.delete_table().table_name("relay").send().await.expect("gone");
    let answer = world.get(&back, Some(&cookie)).await;
    assert_eq!((answer.status_code, answer.headers["retry-after"].as_str()), (503, "15"));
    create_table(&client, "relay").await.expect("back");
    let (again, cookie) = world.approve(LOCATION).await;
    assert_eq!(world.get(&again, Some(&cookie)).await.status_code, 303);
}

#[tokio::test]
async fn an_uninstall_revokes_what_is_older_and_nothing_newer() {
    let world = World::new().await;
    assert_eq!(world.hear(&world.uninstall(world.clock.now())).await, (200, "unknown".into()));
    let before = world.clock.now() - Duration::from_mins(1);
    let (back, cookie) = world.approve(LOCATION).await;
    assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 303);

    assert_eq!(world.hear(&world.uninstall(before)).await, (200, "superseded".into()));
    assert_eq!(world.status(LOCATION).await, Some(Status::Active), "a late webhook of an earlier uninstall");

    world.clock.advance(Duration::from_mins(1));
    assert_eq!(world.hear(&world.uninstall(world.clock.now())).await, (200, "stored".into()));
    assert_eq!(world.status(LOCATION).await, Some(Status::Revoked));

    let (back, cookie) = world.approve(LOCATION).await;
    assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 303);
    assert_eq!(world.status(LOCATION).await, Some(Status::Active), "installed again");
}

#[tokio::test]
async fn an_uninstall_of_tomorrow_is_one_of_now() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 303);
    world.clock.advance(Duration::from_secs(1));
    let tomorrow = world.uninstall(world.clock.now() + Duration::from_hours(24));
    assert_eq!(world.hear(&tomorrow).await, (200, "stored".into()));
    let (table, now) = (world.table().await, world.clock.now());
    assert!(table.contains(&format!("\"revoked_at\": N(\"{now}\")")), "{table}");
}

#[tokio::test]
async fn a_webhook_is_taken_again_where_it_could_not_be_stored() {
    let world = World::new().await;
    let webhook = world.uninstall(world.clock.now());
    world.secrets.fail(Some(SecretFailure::AccessDenied));
    assert_eq!(world.hear(&webhook).await.0, 429, "whether it is for this app is not known");
    world.secrets.fail(None);
    world.dynamo.client().delete_table().table_name("relay").send().await.expect("gone");
    assert_eq!(world.hear(&webhook).await.0, 429);
    let foreign = json!({"type": "UNINSTALL", "appId": "another", "locationId": "HLlocation000000001"});
    assert_eq!(world.hear(&foreign).await, (403, "foreign_app".into()));
}
