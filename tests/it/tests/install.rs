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
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use callback::authorize::CONSENT_TIME;
use callback::installer::Installer;
use futures_util::future::join_all;
use it::dynamo::{Engine, Kind};
use it::world::answered;
use sandbox::dynamo::{Dynamo, create_table};
use sandbox::events::EventBus;
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::marketplace::grants::Resource as Grantee;
use sandbox::marketplace::{Marketplace, Options, grants};
use sandbox::secrets::{Failure as SecretFailure, Secrets};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::app::App;
use shared::config::{self, CallbackConfig, WebhookConfig};
use shared::domain::clock::{Clock, Millis};
use shared::domain::redacted::Redacted;
use shared::domain::resource::Kind as ResourceKind;
use shared::domain::resource::Resource;
use shared::domain::status::{LeaseOwner, Status};
use shared::table::redirect::{
    Arrival, Ending, LEASE, MOST_ATTEMPTS, MOST_EXCHANGES, Origin, Progress, RedirectId, StoredRedirect, sha256,
};
use shared::table::{Table, Write};
use url::Url;
use webhook::listener::Listener;

const HOME: &str = "https://connect.example.com";
const LOCATION: &str = "location:HLlocation000000001";
const COMPANY: &str = "company:HLcompany0000000001";

/// An answer in the form of payload 2.0.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    status_code: u16,
    headers: BTreeMap<String, String>,
    cookies: Vec<String>,
    #[serde(default)]
    body: String,
}

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
        let app = |config| App::build(config, &aws, clock.clone()).expect("built");
        let callback = config::read(&lookup, CallbackConfig::read).expect("complete");
        let installer = Installer::new(app(callback.app), callback.authorization, callback.brand);
        let webhook = config::read(&lookup, WebhookConfig::read).expect("complete");
        let listener = Listener::new(app(webhook.app), webhook.public_keys);
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
        let deadline = self.clock.now() + Duration::from_secs(15);
        let answer: Answer = answered(&self.listener, &event, "request-2", deadline).await;
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
        self.answer(method, path_and_query, cookie, headers, &json!({})).await
    }

    /// A browser brings a redirect from an address; API Gateway received it at `at`.
    async fn arrive(&self, path: &str, cookie: Option<&str>, address: &str, make: &str, at: Millis) -> Answer {
        let context = json!({"sourceIp": address, "timeEpoch": at.0});
        self.answer("GET", path, cookie, &json!({"user-agent": make}), &context).await
    }

    async fn answer(
        &self,
        method: &str,
        path_and_query: &str,
        cookie: Option<&str>,
        headers: &Value,
        context: &Value,
    ) -> Answer {
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
                "timeEpoch": context["timeEpoch"].as_i64().unwrap_or_default(),
                "http": {"method": method, "path": path, "sourceIp": context["sourceIp"]},
            },
            "isBase64Encoded": false,
        });
        let answer: Answer = answered(&self.installer, &event, "request-1", self.clock.now()).await;
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

    /// The redirect of an install that began in the marketplace's own pages.
    fn marketplace_redirect(&self) -> String {
        let code = self.marketplace.authorize(grants::Resource::Location("HLlocation000000001".into()));
        format!("/oauth/callback?code={code}")
    }

    fn table_of(&self) -> Table {
        Table { client: self.dynamo.client(), name: "relay".into() }
    }

    fn exchanges(&self) -> usize {
        self.marketplace.token_requests_for("authorization_code")
    }

    async fn status(&self, resource: &str) -> Option<Status> {
        let (kind, id) = resource.split_once(':').expect("kind and id");
        let resource = serde_json::from_value::<Resource>(json!({ (kind): id })).expect("a resource");
        self.table_of().installation(&resource).await.expect("read").map(|installation| installation.status())
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

/// The page that says that the app is connected to the location.
fn expect_connected(answer: &Answer, what: &str) {
    let location = answer.headers.get("location").map(String::as_str);
    let done = format!("{HOME}/oauth/done?for=location");
    assert_eq!((answer.status_code, location), (303, Some(done.as_str())), "{what}: {}", answer.body);
}

/// A page that is not an admin's who has connected the app.
fn expect_used(answer: &Answer, what: &str) {
    assert_eq!((answer.status_code, title(answer)), (400, "This link was already used, or is too old"), "{what}");
    assert!(answer.cookies.is_empty(), "{what}: {:?}", answer.cookies);
}

/// Name and value of the cookie that an answer sets.
fn cookie_of(answer: &Answer) -> &str {
    answer.cookies.first().and_then(|cookie| cookie.split(';').next()).expect("a cookie")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_that_comes_three_times_ends_three_times_on_the_page_that_says_so() {
    for delay in [0, 700] {
        let world = World::new().await;
        let (back, cookie) = world.approve(LOCATION).await;
        world.marketplace.fault(Endpoint::Exchange, Fault::Delay { millis: delay }, None);
        let answers = join_all((0..3).map(|_| world.get(&back, Some(&cookie)))).await;
        for answer in &answers {
            expect_connected(answer, "at the same time");
            assert_eq!(cookie_of(answer), cookie, "the browser is known for the next minutes, too");
        }
        expect_connected(&world.get(&back, Some(&cookie)).await, "reloaded");
        world.clock.advance(CONSENT_TIME);
        expect_connected(&world.get(&back, Some(&cookie)).await, "a tab that is restored when the link is too old");
        assert_eq!(world.exchanges(), 1, "the code is presented once");

        let (_, strangers) = world.begin().await;
        for stranger in [None, Some(strangers.as_str())] {
            assert_eq!(world.get(&back, stranger).await.status_code, 400, "another browser");
        }
        assert_eq!(world.exchanges(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_is_used_with_one_code() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    let another = world.marketplace.authorize(grants::Resource::Location("HLlocation000000002".into()));
    let code = Url::parse(&format!("{HOME}{back}")).expect("a URL");
    let (_, code) = code.query_pairs().find(|(name, _)| name == "code").expect("a code");
    let other = back.replace(&*code, &another);
    assert_ne!(other, back);

    // At the same time one of them is exchanged, whichever.
    let answers = join_all([&back, &other, &back, &other].map(|path| world.get(path, Some(&cookie)))).await;
    let mut statuses = answers.iter().map(|answer| answer.status_code).collect::<Vec<_>>();
    statuses.sort_unstable();
    assert_eq!((statuses.as_slice(), world.exchanges()), ([303, 303, 400, 400].as_slice(), 1));
    let refused = answers.iter().find(|answer| answer.status_code == 400).expect("one of them");
    assert_eq!(title(refused), "This link was already used");
    for made_up in ["made-up-1", "made-up-2"] {
        let answer = world.get(&back.replace(&*code, made_up), Some(&cookie)).await;
        assert_eq!((answer.status_code, title(&answer)), (400, "This link was already used"));
    }
    assert_eq!(world.exchanges(), 1, "no other code is presented");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_without_a_state_is_known_by_its_cookie_and_before_that_by_where_it_comes_from() {
    let world = World::new().await;
    let back = world.marketplace_redirect();
    world.marketplace.fault(Endpoint::Exchange, Fault::Delay { millis: 700 }, None);
    let (address, firefox) = ("192.0.2.1", "Firefox");
    let now = world.clock.now();
    let ((first, double), (elsewhere, another)) = tokio::join!(
        async {
            tokio::join!(
                world.arrive(&back, None, address, firefox, now),
                world.arrive(&back, None, address, firefox, now)
            )
        },
        async {
            // These two come while the first arrival is under way.
            let code = Redacted::from(back.split_once("code=").expect("a code").1);
            while world.table_of().redirect(&RedirectId::of_code(&code), now).await.expect("a read").is_none() {
                tokio::task::yield_now().await;
            }
            tokio::join!(
                world.arrive(&back, None, "192.0.2.2", firefox, now),
                world.arrive(&back, None, address, "Chrome", now)
            )
        }
    );
    expect_connected(&first, "the first");
    expect_connected(&double, "a double render");
    expect_used(&elsewhere, "another address, at the same time");
    expect_used(&another, "another browser of the same machine, at the same time");

    let cookies: Vec<_> = [&first, &double].into_iter().flat_map(|answer| &answer.cookies).collect();
    assert_eq!(cookies.len(), 1, "that of the arrival which presented the code: {cookies:?}");
    let cookie = cookies[0].split(';').next().expect("name and value");
    world.clock.advance(Duration::from_secs(1));
    let before = now;
    let now = world.clock.now();
    let late = world.arrive(&back, None, address, firefox, before).await;
    expect_connected(&late, "one that lay at the gateway while the first was under way");
    expect_connected(&world.arrive(&back, Some(cookie), address, firefox, now).await, "reloaded");
    expect_connected(
        &world.arrive(&back, Some(cookie), "198.51.100.7", firefox, now).await,
        "reloaded on the way home",
    );
    expect_used(&world.arrive(&back, None, address, firefox, now).await, "the same machine, without the cookie");
    let (_, strangers) = world.begin().await;
    expect_used(&world.arrive(&back, Some(&strangers), address, firefox, now).await, "another browser");
    assert_eq!(world.exchanges(), 1);
}

#[tokio::test]
async fn an_exchange_that_did_not_reach_the_platform_is_repeated_by_a_reload() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    world.marketplace.fault(Endpoint::Exchange, Fault::HangUp { processed: false }, Some(2));
    for _ in 0..2 {
        let answer = world.get(&back, Some(&cookie)).await;
        assert_eq!((answer.status_code, title(&answer)), (503, "The marketplace does not answer"));
    }
    expect_connected(&world.get(&back, Some(&cookie)).await, "reloaded");

    let (back, cookie) = world.approve(LOCATION).await;
    let before = world.exchanges();
    world.marketplace.fault(Endpoint::Exchange, Fault::HangUp { processed: false }, None);
    for _ in 0..10 {
        assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 503);
    }
    assert_eq!(world.exchanges() - before, 3, "not for ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_of_a_redirect_that_fails_fail_like_it() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    let failed = Fault::Answer { processed: false, status: 503, body: "{}".into(), content_type: None };
    world.marketplace.fault(Endpoint::Exchange, Fault::Delay { millis: 700 }, Some(1));
    world.marketplace.fault(Endpoint::Exchange, failed, None);
    let made_up = back.replace("code=", "code=x");
    let answers = join_all((0..3).map(|_| world.get(&made_up, Some(&cookie)))).await;
    for answer in &answers {
        assert_eq!(answer.status_code, answers[0].status_code, "{}", answer.body);
        assert!(answer.status_code >= 400);
    }
    assert!(world.exchanges() <= 1, "a repeat that waited presents nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_holder_died_connects_nobody_and_is_taken_over() {
    let world = World::new().await;
    let back = world.marketplace_redirect();
    let code = Redacted::from(back.split_once("code=").expect("a code").1);
    let (id, table) = (RedirectId::of_code(&code), world.table_of());
    let dead = Arrival { code: sha256(code.expose().as_bytes()), browser: "b".into(), network: "n".into() };
    let claimed = table.claim_redirect(&id, &dead, &LeaseOwner::new(), world.clock.now()).await.expect("a write");
    assert!(claimed.is_applied());
    expect_used(&world.get(&back, None).await, "while the claim lasts, for another browser");
    world.clock.advance(LEASE);
    expect_connected(&world.get(&back, None).await, "once it has ended");
    assert_eq!(world.exchanges(), 1);

    // Died after the platform's answer and before the installation was stored: the code is spent, and the page says so.
    let (back, cookie) = world.approve(LOCATION).await;
    world.marketplace.fault(Endpoint::Exchange, Fault::HangUp { processed: true }, Some(1));
    assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 503);
    for _ in 0..2 {
        expect_used(&world.get(&back, Some(&cookie)).await, "nothing is connected");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_waits_for_seconds_and_then_asks_for_a_reload() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    let url = Url::parse(&format!("{HOME}{back}")).expect("a URL");
    let of = |name| url.query_pairs().find(|(key, _)| key == name).expect("there").1.into_owned();
    let state = URL_SAFE_NO_PAD.decode(of("state")).expect("base64");
    // Format, entrance and instant come before the nonce.
    let id = RedirectId::of_state(&state[10..26]);
    let dead = Arrival { code: sha256(of("code").as_bytes()), browser: "b".into(), network: "n".into() };
    let claimed = world.table_of().claim_redirect(&id, &dead, &LeaseOwner::new(), world.clock.now()).await;
    assert!(claimed.expect("a write").is_applied());
    let answer = world.get(&back, Some(&cookie)).await;
    assert_eq!((answer.status_code, title(&answer)), (202, "The app is still being connected"));
    assert_eq!(answer.headers["retry-after"], "5");
    assert!(answer.body.contains("href=\"\""), "the page leads to itself, without its code: {}", answer.body);
    assert_eq!(world.exchanges(), 0);
    world.clock.advance(LEASE);
    expect_connected(&world.get(&back, Some(&cookie)).await, "a reload takes the claim over");
}

#[tokio::test]
async fn made_up_codes_cost_the_platform_so_many_requests_a_minute_and_no_more() {
    let world = World::new().await;
    let limit = usize::try_from(MOST_EXCHANGES).expect("few");
    for number in 0..limit + 20 {
        let answer = world.get(&format!("/oauth/callback?code=made-up-{number}"), None).await;
        if number < limit {
            assert_eq!(answer.status_code, 400, "{number}");
        } else {
            assert_eq!((answer.status_code, title(&answer)), (429, "Too many installations at the same time"));
            assert_eq!(answer.headers["retry-after"], "60");
        }
    }
    assert_eq!(world.exchanges(), limit);
    let (waiting, answer) = (world.marketplace_redirect(), world.marketplace_redirect());
    assert_eq!(world.get(&waiting, None).await.status_code, 429);
    let (back, cookie) = world.approve(LOCATION).await;
    expect_connected(&world.get(&back, Some(&cookie)).await, "a link of ours is not held up");

    world.clock.advance(Duration::from_mins(1));
    expect_connected(&world.get(&waiting, None).await, "the same address, a minute later");
    expect_connected(&world.get(&answer, None).await, "and the next");
}

#[tokio::test]
async fn installs_take_no_place_of_others() {
    let world = World::new().await;
    for number in 0..MOST_EXCHANGES + 10 {
        expect_connected(&world.get(&world.marketplace_redirect(), None).await, &format!("install {number}"));
    }
}

#[tokio::test]
async fn what_cannot_be_a_code_is_never_presented() {
    let world = World::new().await;
    let long = "a".repeat(3000);
    for code in ["", "%00", "a%0d%0ab", "a%20b", "%ff", "\u{e9}", long.as_str()] {
        assert_eq!(world.get(&format!("/oauth/callback?code={code}"), None).await.status_code, 400, "{code:?}");
    }
    assert_eq!(world.exchanges(), 0);
}

/// The redirect that a claim has found.
fn refused(claim: Write<StoredRedirect>) -> StoredRedirect {
    let Write::Conflict(stored) = claim else { panic!("{claim:?}") };
    stored
}

/// The writes themselves, on each engine, by several processes at once.
async fn one_arrival_claims_a_redirect(engine: &Engine) {
    let table = engine.table().await;
    let now = Millis(1_800_000_000_000);
    let id = RedirectId::of_state(b"nonce");
    let arrival = |code: &str| Arrival { code: code.into(), browser: "b".into(), network: "n".into() };
    let tables: Vec<_> = (0..12).map(|_| Table { client: engine.client().0, name: table.name.clone() }).collect();

    // At the same time, with two codes: one claims, and all others see whose code it is.
    let owners: Vec<_> = tables.iter().map(|_| LeaseOwner::new()).collect();
    let claims = join_all(tables.iter().zip(&owners).enumerate().map(|(number, (table, owner))| {
        let arrival = arrival(if number % 2 == 0 { "even" } else { "odd" });
        let id = &id;
        async move { table.claim_redirect(id, &arrival, owner, now).await.expect("a write") }
    }))
    .await;
    let winners: Vec<_> = (0..12).filter(|number| claims[*number].is_applied()).collect();
    let [winner] = winners[..] else { panic!("{winners:?} have claimed it") };
    let (owner, code) = (&owners[winner], if winner % 2 == 0 { "even" } else { "odd" });
    for lost in claims.into_iter().filter(|claim| !claim.is_applied()).map(refused) {
        assert_eq!((lost.first.code.as_str(), &lost.progress), (code, &Progress::Exchanging));
    }

    // Its own write, repeated by the SDK, is no loss; what others would end is not ended.
    assert!(table.claim_redirect(&id, &arrival(code), owner, now).await.expect("a write").is_applied());
    let another = LeaseOwner::new();
    for ending in [Ending::Connected(ResourceKind::Location), Ending::Failed("x"), Ending::Open("x")] {
        assert!(!table.end_redirect(&id, &another, ending, now).await.expect("a write"), "{ending:?}");
    }
    let progress = |at| {
        let (table, id) = (&table, &id);
        async move { table.redirect(id, at).await.expect("a read").expect("there").progress }
    };
    assert_eq!(progress(now).await, Progress::Exchanging);

    // It is open again when the lease has ended, for the same code only, and only so often.
    let later = now + LEASE;
    assert_eq!(progress(later).await, Progress::Open(None));
    let wrong = table.claim_redirect(&id, &arrival("third"), &another, later).await.expect("a write");
    assert_eq!(refused(wrong).first.code, code);
    assert!(table.claim_redirect(&id, &arrival(code), &another, later).await.expect("a write").is_applied());
    assert!(!table.end_redirect(&id, owner, Ending::Connected(ResourceKind::Company), later).await.expect("a write"));
    assert!(table.end_redirect(&id, &another, Ending::Open("why"), later).await.expect("a write"));
    assert_eq!(progress(later).await, Progress::Open(Some("why".into())));
    let third = LeaseOwner::new();
    assert!(table.claim_redirect(&id, &arrival(code), &third, later).await.expect("a write").is_applied());
    assert_eq!(progress(later).await, Progress::Exchanging);
    assert!(table.end_redirect(&id, &third, Ending::Open("why"), later).await.expect("a write"));
    assert_eq!(progress(later).await, Progress::Failed("why".into()), "{MOST_ATTEMPTS} times and no more");
    let fourth = table.claim_redirect(&id, &arrival(code), &LeaseOwner::new(), later).await.expect("a write");
    assert_eq!(refused(fourth).progress, Progress::Failed("why".into()));

    // The end stays.
    let id = RedirectId::of_code(&Redacted::from("code"));
    let owner = LeaseOwner::new();
    assert!(table.claim_redirect(&id, &arrival("c"), &owner, now).await.expect("a write").is_applied());
    assert!(table.end_redirect(&id, &owner, Ending::Connected(ResourceKind::Company), now).await.expect("a write"));
    let much_later = now + Duration::from_hours(1);
    let seen = table.claim_redirect(&id, &arrival("c"), &LeaseOwner::new(), much_later).await.expect("a write");
    assert_eq!(refused(seen).progress, Progress::Connected { kind: ResourceKind::Company, at: now });
}

/// Places of a minute, taken by several processes at once.
async fn places_of_a_minute_are_taken_once_each(engine: &Engine) {
    let table = engine.table().await;
    let now = Millis(1_800_000_000_000);
    let tables: Vec<_> = (0..8).map(|_| Table { client: engine.client().0, name: table.name.clone() }).collect();
    let taken = join_all(tables.iter().map(|table| async move {
        let mut places = Vec::new();
        for _ in 0..10 {
            places.extend(table.take_exchange(Origin::Marketplace, now).await.expect("a write"));
        }
        places
    }))
    .await;
    let mut places: Vec<_> = taken.into_iter().flatten().collect();
    assert_eq!(places.len(), usize::try_from(MOST_EXCHANGES).expect("few"), "80 were asked for");
    assert_eq!(table.take_exchange(Origin::Marketplace, now).await.expect("a write"), None);
    assert!(table.take_exchange(Origin::Link, now).await.expect("a write").is_some(), "links have places of their own");
    let next = now + Duration::from_mins(1);
    assert!(table.take_exchange(Origin::Marketplace, next).await.expect("a write").is_some(), "the next minute, too");
    table.return_exchange(places.pop().expect("a place")).await.expect("a write");
    assert!(table.take_exchange(Origin::Marketplace, now).await.expect("a write").is_some(), "one was given back");
    assert_eq!(table.take_exchange(Origin::Marketplace, now).await.expect("a write"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_and_places_on_the_embedded_engine() {
    claims_and_places(Kind::Embedded, "claims_and_places_on_the_embedded_engine").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_and_places_on_dynamodb_local() {
    claims_and_places(Kind::Local, "claims_and_places_on_dynamodb_local").await;
}

async fn claims_and_places(kind: Kind, test: &str) {
    let Some(engine) = Engine::start(kind, test).await else { return };
    one_arrival_claims_a_redirect(&engine).await;
    places_of_a_minute_are_taken_once_each(&engine).await;
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
async fn an_uninstall_of_tomorrow_is_asked_about() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 303);
    world.clock.advance(Duration::from_secs(1));
    let tomorrow = world.uninstall(world.clock.now() + Duration::from_hours(24));
    assert_eq!(world.hear(&tomorrow).await, (200, "superseded".into()), "the platform takes the token");
    world.marketplace.uninstall(&Grantee::Location("HLlocation000000001".into()));
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
