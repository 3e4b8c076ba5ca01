//! A customer installs the app by our link or from the marketplace, or cancels.

use futures_util::future::join_all;
use it::outside::{ClientResponse, Setup, System, company, location};
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::marketplace::grants::Resource;
use url::Url;

/// A browser with its cookies, on its way through an installation.
struct Browser<'a> {
    system: &'a System,
    cookie: Option<String>,
}

impl Browser<'_> {
    /// Opens our link and comes to the consent page.
    async fn open_link(system: &System) -> (Browser<'_>, ClientResponse) {
        let answer = system.browse(&format!("{}/oauth/install", system.sandbox.gateway.url()), None).await;
        assert_eq!(answer.status, 302, "{answer:?}");
        let set = answer.header("set-cookie");
        assert!(set.contains("HttpOnly") && set.contains("SameSite=Lax"), "{set}");
        let cookie = set.split(';').next().expect("name and value").to_owned();
        system.tell(cookie.split_once('=').expect("name and value").1);
        let browser = Browser { system, cookie: Some(cookie) };
        let page = system.browse(answer.header("location"), None).await;
        assert_eq!(page.status, 200, "{page:?}");
        (browser, page)
    }

    /// Presses a button of the consent page. Returns the URL to which the browser is redirected.
    async fn press(&self, page: &ClientResponse, choice: &str) -> String {
        let mut fields = hidden_fields(&String::from_utf8_lossy(&page.body));
        fields.iter().filter(|(name, _)| name == "state").for_each(|(_, state)| self.system.tell(state));
        fields.push(("choice".to_owned(), choice.to_owned()));
        let consent = format!("{}/oauth/chooselocation", self.system.sandbox.marketplace.url());
        let answer = self.system.post_form(&consent, &fields).await;
        assert_eq!(answer.status, 302, "{answer:?}");
        answer.header("location").to_owned()
    }

    async fn follow(&self, url: &str) -> ClientResponse {
        self.system.browse(url, self.cookie.as_deref()).await
    }
}

/// Names and values of the hidden inputs of a page.
fn hidden_fields(html: &str) -> Vec<(String, String)> {
    let attribute = |tag: &str, name: &str| {
        let value = tag.split_once(&format!("{name}=\""))?.1.split_once('"')?.0;
        Some(value.replace("&quot;", "\"").replace("&amp;", "&"))
    };
    html.split("<input type=\"hidden\"")
        .skip(1)
        .filter_map(|rest| rest.split_once('>'))
        .filter_map(|(tag, _)| Some((attribute(tag, "name")?, attribute(tag, "value")?)))
        .collect()
}

/// Asserts that a redirect, whose URL contains nothing confidential, leads to the page that reports success.
async fn expect_done(system: &System, answer: &ClientResponse) {
    assert_eq!(answer.status, 303, "{answer:?}");
    let target = answer.header("location").to_owned();
    for secret in system.secrets() {
        assert!(!target.contains(&secret), "{target} tells {secret}");
    }
    let base = Url::parse(&system.sandbox.gateway.url()).expect("a URL");
    let target = base.join(&target).expect("a URL");
    assert_eq!((target.host(), target.port(), target.path()), (base.host(), base.port(), "/oauth/done"));
    let page = system.browse(target.as_str(), None).await;
    assert_eq!(page.status, 200, "{page:?}");
    assert!(page.header("content-type").starts_with("text/html"), "{page:?}");
}

/// Asserts that the page reports a problem and repeats nothing of the request.
fn expect_page(answer: &ClientResponse, status: u16, url: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert!(answer.header("content-type").starts_with("text/html"), "{answer:?}");
    let page = String::from_utf8_lossy(&answer.body).into_owned();
    let url = Url::parse(url).expect("a URL");
    for (name, value) in url.query_pairs().filter(|(_, value)| value.len() > 8) {
        assert!(!page.contains(&*value), "{name} is repeated in {page}");
    }
}

async fn expect_relayed(system: &System, resource: &Resource) {
    let path = match resource {
        Resource::Location(_) => "/contacts/?limit=1".to_owned(),
        Resource::Company(id) => format!("/companies/{id}"),
    };
    let answer = system.get(resource, &path).await;
    assert_eq!((answer.status, answer.source()), (200, "platform"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_location_and_a_company_are_installed_by_link() {
    let system = System::start(Setup::default()).await;
    for resource in [location(1), company()] {
        assert_eq!(system.get(&resource, "/contacts/").await.refusal(), (404, "not_installed".to_owned()));
        let (browser, page) = Browser::open_link(&system).await;
        let back = browser.press(&page, &resource.to_string()).await;
        assert!(back.contains("state=") && back.contains("code="), "{back}");
        expect_done(&system, &browser.follow(&back).await).await;
        expect_relayed(&system, &resource).await;
    }
    let stored = system.stored().await;
    for secret in system.secrets() {
        assert!(!stored.contains(&secret), "{secret} is in the table in clear");
    }
    assert!(stored.contains(location(1).id()), "the control: the table is read");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_install_from_the_marketplace_needs_no_state() {
    let system = System::start(Setup::default()).await;
    for resource in [location(2), company()] {
        let page = system.browse(&format!("{}/install", system.sandbox.marketplace.url()), None).await;
        let browser = Browser { system: &system, cookie: None };
        let back = browser.press(&page, &resource.to_string()).await;
        assert!(!back.contains("state="), "{back}");
        expect_done(&system, &browser.follow(&back).await).await;
        expect_relayed(&system, &resource).await;
    }
    system.end().await;

    let environment = vec![("MARKETPLACE_INSTALLS", "deny".to_owned())];
    let system = System::start(Setup { environment, relays: 1, ..Setup::default() }).await;
    let back = format!(
        "{}/oauth/callback?code={}",
        system.sandbox.gateway.url(),
        system.sandbox.marketplace.authorize(location(1))
    );
    expect_page(&system.browse(&back, None).await, 403, &back);
    assert_eq!(system.sandbox.marketplace.token_requests_for("authorization_code"), 0, "the code is not spent");
    assert_eq!(system.get(&location(1), "/contacts/").await.refusal(), (404, "not_installed".to_owned()));
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_consent_used_codes_and_other_browsers_install_nothing() {
    let system = System::start(Setup::default()).await;
    let exchanges = || system.sandbox.marketplace.token_requests_for("authorization_code");

    let (browser, page) = Browser::open_link(&system).await;
    let back = browser.press(&page, "refuse").await;
    expect_page(&browser.follow(&back).await, 400, &back);
    assert_eq!(exchanges(), 0);

    let (browser, page) = Browser::open_link(&system).await;
    let back = browser.press(&page, &location(1).to_string()).await;
    for stranger in [None, Some("relay-install=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")] {
        expect_page(&system.browse(&back, stranger).await, 400, &back);
    }
    let forged = back.replace("state=", "state=x");
    expect_page(&browser.follow(&forged).await, 400, &forged);
    assert_eq!(exchanges(), 0, "nobody else can spend the code");

    expect_done(&system, &browser.follow(&back).await).await;
    expect_relayed(&system, &location(1)).await;
    expect_done(&system, &browser.follow(&back).await).await;
    for stranger in [None, Some("relay-install=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")] {
        expect_page(&system.browse(&back, stranger).await, 400, &back);
    }
    assert_eq!(exchanges(), 1, "the code is presented once");
    let garbage = format!("{}/oauth/callback?code=never-issued-0123456789", system.sandbox.gateway.url());
    expect_page(&system.browse(&garbage, None).await, 400, &garbage);
    expect_relayed(&system, &location(1)).await;
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_that_a_browser_sends_three_times_installs_once() {
    let mut system = System::start(Setup::default()).await;
    // Two processes of the same function, as Lambda runs them for requests at the same time.
    system.start_another("callback").await;
    let exchanges = || system.sandbox.marketplace.token_requests_for("authorization_code");

    let (browser, page) = Browser::open_link(&system).await;
    let back = browser.press(&page, &location(1).to_string()).await;
    system.sandbox.marketplace.fault(Endpoint::Exchange, Fault::Late { millis: 1_500 }, Some(1));
    for answer in join_all((0..3).map(|_| browser.follow(&back))).await {
        expect_done(&system, &answer).await;
    }
    expect_done(&system, &browser.follow(&back).await).await;
    assert_eq!(exchanges(), 1);

    // In an install from the marketplace's own pages, the browser has no cookie before the first answer.
    let code = system.sandbox.marketplace.authorize(location(2));
    let back = format!("{}/oauth/callback?code={code}", system.sandbox.gateway.url());
    system.sandbox.marketplace.fault(Endpoint::Exchange, Fault::Late { millis: 1_500 }, Some(1));
    let answers = join_all((0..3).map(|_| system.browse(&back, None))).await;
    for answer in &answers {
        expect_done(&system, answer).await;
    }
    assert_eq!(exchanges(), 2);
    let cookies: Vec<_> = answers.iter().filter_map(|answer| answer.headers.get("set-cookie")).collect();
    let [cookie] = cookies[..] else { panic!("{cookies:?}: one arrival presented the code") };
    let cookie = cookie.to_str().expect("text").split(';').next().expect("name and value");
    system.tell(cookie.split_once('=').expect("name and value").1);
    expect_done(&system, &system.browse(&back, Some(cookie)).await).await;
    expect_page(&system.browse(&back, None).await, 400, &back);
    assert_eq!(exchanges(), 2);
    for resource in [location(1), location(2)] {
        expect_relayed(&system, &resource).await;
    }
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invented_codes_are_rate_limited_and_real_installs_are_not() {
    let system = System::start(Setup { relays: 1, ..Setup::default() }).await;
    let exchanges = || system.sandbox.marketplace.token_requests_for("authorization_code");
    let mut busy = 0;
    for number in 0..200 {
        let url = format!("{}/oauth/callback?code=made-up-code-{number}", system.sandbox.gateway.url());
        let answer = system.browse(&url, None).await;
        if answer.status == 429 {
            assert_eq!(answer.header("retry-after"), "60", "{answer:?}");
            busy += 1;
        } else {
            expect_page(&answer, 400, &url);
        }
    }
    // A new minute of the clock may have begun meanwhile.
    assert!(busy >= 80 && exchanges() == 200 - busy, "{busy} of 200, {} exchanges", exchanges());
    let (browser, page) = Browser::open_link(&system).await;
    let back = browser.press(&page, &location(1).to_string()).await;
    expect_done(&system, &browser.follow(&back).await).await;
    system.end().await;
}
