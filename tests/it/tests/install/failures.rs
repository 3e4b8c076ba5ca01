//! Failures of an install, and the pages that show them.

use std::time::Duration;

use sandbox::dynamo::create_table;
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::secrets::Failure as SecretFailure;

use crate::{LOCATION, World, title};

#[tokio::test]
async fn refused_consent_is_shown_as_a_choice_and_not_as_an_error() {
    let world = World::new().await;
    let (page, cookie) = world.begin().await;
    let back = world.decide(&page, "refuse").await;
    assert!(back.contains("error=access_denied"), "{back}");
    let answer = world.get(&back, Some(&cookie)).await;
    assert_eq!((answer.status_code, title(&answer)), (400, "The app was not installed"));
    assert!(!answer.body.contains("denied"), "{}", answer.body);
}

#[tokio::test]
async fn a_wrong_client_secret_is_shown_as_a_fault_of_the_app() {
    let world = World::new().await;
    world.marketplace.change(|options| options.client_secret = "changed".into());
    let (back, cookie) = world.approve(LOCATION).await;
    let answer = world.get(&back, Some(&cookie)).await;
    assert_eq!((answer.status_code, title(&answer)), (500, "The app is not set up correctly"));
    assert!(answer.body.contains("tell the maker of the app"), "{}", answer.body);
}

#[tokio::test]
async fn an_install_that_fails_at_the_platform_can_be_tried_again() {
    for fault in [
        Fault::HangUp { processed: false },
        Fault::Answer { processed: false, status: 502, body: "<html>".into(), content_type: None },
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
async fn a_code_that_the_token_endpoint_does_not_take_now_is_good_a_minute_later() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    let throttled = Fault::Answer { processed: false, status: 429, body: "{}".into(), content_type: None };
    world.marketplace.fault(Endpoint::Exchange, throttled, Some(1));
    // More often than a code that was presented may be tried.
    for _ in 0..5 {
        let answer = world.get(&back, Some(&cookie)).await;
        assert_eq!((answer.status_code, answer.headers["retry-after"].as_str()), (429, "60"));
    }
    assert_eq!(world.exchanges(), 1, "while the token endpoint has asked for a pause, no code is presented");
    world.clock.advance(Duration::from_secs(63));
    assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 303);
}

#[tokio::test]
async fn a_code_waits_for_a_short_pause_of_the_token_endpoint() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    world.marketplace.fault(Endpoint::Exchange, Fault::ComeBack { seconds: 2 }, Some(1));
    let began = world.clock.now();
    let time = async {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            world.clock.advance(Duration::from_millis(100));
        }
    };
    let answer = tokio::select! {
        answer = world.get(&back, Some(&cookie)) => answer,
        () = time => unreachable!("time goes on"),
    };
    assert_eq!((answer.status_code, world.exchanges()), (303, 2));
    let waited = world.clock.now().since(began);
    assert!(waited >= Duration::from_secs(3), "the pause, and one second because it may be rounded down: {waited:?}");
}

#[tokio::test]
async fn no_code_is_presented_while_secrets_cannot_be_read() {
    let world = World::new().await;
    let (back, cookie) = world.approve(LOCATION).await;
    // The process still has the app's credentials, but it has not read the data keys yet.
    world.secrets.fail(Some(SecretFailure::AccessDenied));
    let answer = world.get(&back, Some(&cookie)).await;
    assert_eq!((answer.status_code, world.exchanges()), (503, 0));
    world.secrets.fail(None);
    world.clock.advance(Duration::from_mins(1));
    assert_eq!(world.get(&back, Some(&cookie)).await.status_code, 303);
}

#[tokio::test]
async fn an_install_that_fails_at_the_store_can_be_tried_again() {
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
