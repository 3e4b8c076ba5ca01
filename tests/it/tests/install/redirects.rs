//! Redirects that arrive again, redirects with invented codes, and claims whose owner died.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use callback::authorize::CONSENT_TIME;
use futures_util::future::join_all;
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::marketplace::grants;
use shared::domain::digest::sha256;
use shared::domain::redacted::Redacted;
use shared::domain::status::LeaseOwner;
use shared::table::redirect::{LEASE, MOST_EXCHANGES, RedirectArrival, RedirectId};
use url::Url;

use crate::{HOME, LOCATION, World, cookie_of, expect_connected, expect_used, title};

#[tokio::test(flavor = "multi_thread")]
async fn three_copies_of_a_redirect_all_end_on_the_connected_page() {
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
async fn a_state_is_valid_for_one_code() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    let another = world.marketplace.authorize(grants::Resource::Location("HLlocation000000002".into()));
    let code = Url::parse(&format!("{HOME}{back}")).expect("a URL");
    let (_, code) = code.query_pairs().find(|(name, _)| name == "code").expect("a code");
    let other = back.replace(&*code, &another);
    assert_ne!(other, back);

    // Four redirects with two codes arrive at the same time. Exactly one of the codes is exchanged.
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
async fn a_repeated_redirect_without_a_state_is_recognised_by_cookie_or_address() {
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
            // These two redirects arrive while the first one is being exchanged.
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
async fn repeats_of_a_failed_redirect_end_on_the_same_failure() {
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
async fn a_claim_whose_holder_died_is_taken_over_after_its_lease() {
    let world = World::new().await;
    let back = world.marketplace_redirect();
    let code = Redacted::from(back.split_once("code=").expect("a code").1);
    let (id, table) = (RedirectId::of_code(&code), world.table_of());
    let dead = RedirectArrival { code: sha256(code.expose().as_bytes()), browser: "b".into(), network: "n".into() };
    let claimed = table.claim_redirect(&id, &dead, &LeaseOwner::new(), world.clock.now()).await.expect("a write");
    assert!(claimed.is_applied());
    expect_used(&world.get(&back, None).await, "while the claim lasts, for another browser");
    world.clock.advance(LEASE);
    expect_connected(&world.get(&back, None).await, "once it has ended");
    assert_eq!(world.exchanges(), 1);

    // The exchange fails after the platform has spent the code and before the installation is stored. The page reports
    // that the code is spent.
    let (back, cookie) = world.approve(LOCATION).await;
    world.marketplace.fault(Endpoint::Exchange, Fault::HangUp { processed: true }, Some(1));
    assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 503);
    for _ in 0..2 {
        expect_used(&world.get(&back, Some(&cookie)).await, "nothing is connected");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_waits_for_the_first_redirect_and_then_offers_a_reload() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    let url = Url::parse(&format!("{HOME}{back}")).expect("a URL");
    let of = |name| url.query_pairs().find(|(key, _)| key == name).expect("there").1.into_owned();
    let state = URL_SAFE_NO_PAD.decode(of("state")).expect("base64");
    // Format, entrance and instant come before the nonce.
    let id = RedirectId::of_state(&state[10..26]);
    let dead = RedirectArrival { code: sha256(of("code").as_bytes()), browser: "b".into(), network: "n".into() };
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
async fn invented_codes_cost_the_platform_a_bounded_number_of_requests_a_minute() {
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
async fn invented_codes_use_up_a_small_part_of_a_pace() {
    let world = World::with(&[("TOKEN_REQUESTS_PER_MINUTE", "5")]).await;
    let now = world.clock.now();
    let invented = async |number: u32, address: &str| {
        let path = format!("/oauth/callback?code=made-up-{number}");
        world.arrive(&path, None, address, "curl", now).await.status_code
    };
    for number in 0..10 {
        assert_eq!(invented(number, "192.0.2.1").await, if number < 1 { 400 } else { 429 }, "{number}");
    }
    assert_eq!(world.exchanges(), 1);
    expect_connected(&world.get(&world.marketplace_redirect(), None).await, "another network");
    let (back, cookie) = world.approve(LOCATION).await;
    expect_connected(&world.get(&back, Some(&cookie)).await, "a link of ours");
    assert_eq!(invented(10, "192.0.2.2").await, 400);
    let waiting = world.marketplace_redirect();
    assert_eq!(world.get(&waiting, None).await.status_code, 429, "two codes a minute");
    world.clock.advance(Duration::from_mins(1));
    expect_connected(&world.get(&waiting, None).await, "the same address, a minute later");
}

#[tokio::test]
async fn successful_installs_do_not_use_up_the_exchange_limit() {
    let world = World::new().await;
    for number in 0..MOST_EXCHANGES + 10 {
        expect_connected(&world.get(&world.marketplace_redirect(), None).await, &format!("install {number}"));
    }
}

#[tokio::test]
async fn values_that_cannot_be_codes_are_never_presented() {
    let world = World::new().await;
    let long = "a".repeat(3000);
    for code in ["", "%00", "a%0d%0ab", "a%20b", "%ff", "\u{e9}", long.as_str()] {
        assert_eq!(world.get(&format!("/oauth/callback?code={code}"), None).await.status_code, 400, "{code:?}");
    }
    assert_eq!(world.exchanges(), 0);
}
