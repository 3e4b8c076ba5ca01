//! An admin installs the app, from the link to the last page, with the fake marketplace and every failure that can
//! occur. The marketplace then reports by webhook that the app was uninstalled.

mod claims;
mod failures;
mod link;
mod redirects;
mod webhooks;

use std::collections::BTreeMap;
use std::time::Duration;

#[expect(deprecated, reason = "the SDK's only way to name endpoints without touching the process's environment")]
use aws_config::profile::profile_file::{ProfileFileKind, ProfileFiles};
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use callback::installer::Installer;
use it::world::answered;
use sandbox::dynamo::{Dynamo, create_table};
use sandbox::events::EventBus;
use sandbox::marketplace::{Marketplace, Options, grants};
use sandbox::secrets::Secrets;
use serde::Deserialize;
use serde_json::{Value, json};
use shared::app::App;
use shared::config::{self, CallbackConfig, WebhookConfig};
use shared::domain::clock::{Clock, Millis};
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::table::Table;
use url::Url;
use webhook::listener::Listener;

const HOME: &str = "https://connect.example.com";
const LOCATION: &str = "location:HLlocation000000001";
const COMPANY: &str = "company:HLcompany0000000001";

/// An answer in the form of payload 2.0.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GatewayAnswer {
    status_code: u16,
    headers: BTreeMap<String, String>,
    cookies: Vec<String>,
    #[serde(default)]
    body: String,
}

/// The function and all services that it calls.
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

    /// A world with further variables in the function's environment.
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
        let listener = Listener::new(app(webhook.app), webhook.settings);
        Self { installer, listener, signer, marketplace, secrets, dynamo, clock }
    }

    /// Sends a signed webhook as the marketplace does.
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
        let answer: GatewayAnswer = answered(&self.listener, &event, "request-2", deadline).await;
        assert_eq!(answer.headers.contains_key("retry-after"), answer.status_code == 429);
        let body: Value = serde_json::from_str(&answer.body).expect("JSON");
        (answer.status_code, body["outcome"].as_str().unwrap_or_default().to_owned())
    }

    fn uninstall(&self, at: Millis) -> Value {
        let client_id = self.marketplace.options().client_id;
        let app_id = client_id.split('-').next();
        json!({"type": "UNINSTALL", "appId": app_id, "locationId": "HLlocation000000001", "timestamp": at.rfc3339()})
    }

    /// Requests a page as a browser does.
    async fn get(&self, path_and_query: &str, cookie: Option<&str>) -> GatewayAnswer {
        self.request("GET", path_and_query, cookie, &json!({})).await
    }

    async fn request(
        &self,
        method: &str,
        path_and_query: &str,
        cookie: Option<&str>,
        headers: &Value,
    ) -> GatewayAnswer {
        self.answer(method, path_and_query, cookie, headers, &json!({})).await
    }

    /// A browser at `address` follows a redirect, which API Gateway received at `at`.
    async fn arrive(&self, path: &str, cookie: Option<&str>, address: &str, make: &str, at: Millis) -> GatewayAnswer {
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
    ) -> GatewayAnswer {
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
        let answer: GatewayAnswer = answered(&self.installer, &event, "request-1", self.clock.now()).await;
        assert_eq!(answer.headers["relay-request-id"], "request-1");
        answer
    }

    /// Follows the link to the consent page. Returns the page's address and the browser's cookie.
    async fn begin(&self) -> (Url, String) {
        let answer = self.get("/oauth/install", None).await;
        assert_eq!(answer.status_code, 302);
        let cookie = answer.cookies[0].split(';').next().expect("name and value").to_owned();
        (Url::parse(&answer.headers["location"]).expect("a URL"), cookie)
    }

    /// Decides on the consent page. Returns the path and query to which the browser is redirected.
    async fn decide(&self, page: &Url, choice: &str) -> String {
        let form = format!("{}&choice={choice}", page.query().unwrap_or_default());
        let client = browser();
        let request = client.post(page.clone()).header("content-type", "application/x-www-form-urlencoded").body(form);
        let answer = request.send().await.expect("answered");
        assert_eq!(answer.status(), 302, "{:?}", answer.text().await);
        let location = answer.headers()["location"].to_str().expect("text");
        location.strip_prefix(HOME).expect("back to this function").to_owned()
    }

    /// Follows the link and decides. Returns the redirect back to the function, and the browser's cookie.
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
        "[default]\nservices = emulators\n[services emulators]\n\
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

fn title(answer: &GatewayAnswer) -> &str {
    let (_, rest) = answer.body.split_once("<title>").expect("a page");
    rest.split('<').next().unwrap_or_default()
}

/// A client that follows no redirect.
fn browser() -> reqwest::Client {
    reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().expect("a client")
}

/// The page that says that the app is connected to the location.
fn expect_connected(answer: &GatewayAnswer, what: &str) {
    let location = answer.headers.get("location").map(String::as_str);
    let done = format!("{HOME}/oauth/done?for=location");
    assert_eq!((answer.status_code, location), (303, Some(done.as_str())), "{what}: {}", answer.body);
}

/// The page for a browser that is not the one of the admin who connected the app: the link is used, or is too old.
fn expect_used(answer: &GatewayAnswer, what: &str) {
    assert_eq!((answer.status_code, title(answer)), (400, "This link was already used, or is too old"), "{what}");
    assert!(answer.cookies.is_empty(), "{what}: {:?}", answer.cookies);
}

/// Name and value of the cookie that an answer sets.
fn cookie_of(answer: &GatewayAnswer) -> &str {
    answer.cookies.first().and_then(|cookie| cookie.split(';').next()).expect("a cookie")
}
