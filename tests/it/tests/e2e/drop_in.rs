//! A client of the platform's API works with the relay after a change of only its base URL and its key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use it::outside::{ClientResponse, Setup, System, company, location, route, send, until};
use sandbox::whole::sha256_hex;
use serde_json::{Value, json};

const MINE: &str = "rk_first_location_only";
const NO_COMPANY: &str = "rk_first_location_and_no_company";

async fn system() -> System {
    let resources = [format!("location:{}", location(1).id()), format!("company:{}", company().id())];
    let callers = vec![
        json!({ "id": "mine", "keys_sha256": [sha256_hex(MINE)], "resources": resources }),
        json!({ "id": "no-company", "keys_sha256": [sha256_hex(NO_COMPANY)], "resources": &resources[..1] }),
    ];
    let system = System::start(Setup { callers, ..Setup::default() }).await;
    system.tell(MINE);
    system.tell(NO_COMPANY);
    for resource in [location(1), location(2), company()] {
        system.install(&resource).await;
    }
    system
}

/// The resource for which the platform took a request, according to its echo.
fn for_whom(answer: &ClientResponse) -> Value {
    assert_eq!((answer.status, answer.source()), (200, "platform"), "{answer:?}");
    answer.json()["resource"].clone()
}

/// The fake platform has each operation in the versions in which it is published.
#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_only_v3_has_is_sent_as_v3() {
    let system = system().await;
    let in_query = format!("locationId={}", location(1).id());
    for (path, version, added) in [
        ("/calendars/", None, Some("2021-04-15")),
        ("/calendars/", Some("v3"), Some("v3")),
        ("/businesses/", None, Some("2021-07-28")),
        ("/chat-widget/list", None, Some("v3")),
        ("/calendars/services/bookings", None, Some("v3")),
        ("/chat-widget/list", Some("2021-07-28"), None),
    ] {
        let mut request = system.relay(Method::GET, &format!("/api{path}?{in_query}"));
        if let Some(version) = version {
            request = request.header("version", version);
        }
        let answer = send(request).await;
        assert_eq!(answer.source(), "platform", "{path}");
        match added {
            Some(added) => {
                assert_eq!(answer.status, 200, "{answer:?}");
                let headers = answer.json()["headers"].clone();
                let sent = headers.as_array().expect("headers").iter().find(|pair| pair[0] == "version");
                assert_eq!(sent.expect("a version")[1], added, "{path}");
            }
            None => assert_eq!(answer.status, 400, "the platform's own words: {answer:?}"),
        }
    }
    assert_eq!(system.refreshes(), 0, "a wrong version is nothing about the token");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_resource_is_found_where_the_request_names_it() {
    let system = system().await;
    let (one, agency) = (location(1), company());
    let (of_one, of_agency) = (json!({ "location": one.id() }), json!({ "company": agency.id() }));
    let api = |method: Method, path: &str| system.relay(method, &format!("/api{path}"));

    for header in ["x-location-id", "location-id", "locationId", "X-LOCATION-ID"] {
        let answer = send(api(Method::GET, "/echo/contacts/7").header(header, one.id())).await;
        assert_eq!(for_whom(&answer), of_one, "{header}");
    }
    for header in ["x-company-id", "company-id", "companyId"] {
        let answer = send(api(Method::GET, "/echo").header(header, agency.id())).await;
        assert_eq!(for_whom(&answer), of_agency, "{header}");
    }
    for (query, expected) in [
        (format!("locationId={}", one.id()), &of_one),
        (format!("location_id={}", one.id()), &of_one),
        (format!("altId={}&altType=location", one.id()), &of_one),
        (format!("altType=company&altId={}", agency.id()), &of_agency),
        (format!("companyId={}&locationId={}", agency.id(), one.id()), &of_one),
    ] {
        let answer = send(api(Method::GET, &format!("/echo?{query}"))).await;
        assert_eq!(for_whom(&answer), *expected, "{query}");
        assert_eq!(answer.json()["query"], query, "as it was written");
    }
    let json = format!("{{ \"name\" : \"x\", \"locationId\":\"{}\" }}", one.id());
    let form = format!("a=1&locationId={}", one.id());
    let parts = format!(
        "--b\r\ncontent-disposition: form-data; name=\"altId\"\r\n\r\n{}\r\n--b\r\ncontent-disposition: form-data; \
         name=\"file\"; filename=\"x\"\r\n\r\n\u{0}\u{1}\r\n--b--\r\n",
        one.id()
    );
    for (content_type, body) in [
        ("application/json", &json),
        ("application/x-www-form-urlencoded", &form),
        ("multipart/form-data; boundary=b", &parts),
    ] {
        let request = api(Method::POST, "/echo").header("content-type", content_type).body(body.clone());
        let answer = send(request).await;
        assert_eq!(for_whom(&answer), of_one, "{content_type}");
        let sent = answer.json()["body_base64"].as_str().expect("a body").to_owned();
        assert_eq!(STANDARD.decode(sent).expect("base64"), body.as_bytes());
    }

    let answer = send(api(Method::GET, &format!("/locations/{}", one.id()))).await;
    assert_eq!(answer.json()["location"]["id"], one.id(), "by the path");
    let answer = send(api(Method::GET, &format!("/companies/{}", agency.id()))).await;
    assert_eq!(answer.json()["company"]["id"], agency.id(), "by the path");
    // The endpoint accepts only the company's token, and its path names a location.
    let answer = send(api(Method::DELETE, &format!("/locations/{}", one.id()))).await;
    assert_eq!(for_whom(&answer), of_agency, "with the token of the location's company");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_unclear_or_contradictory_ids_is_not_sent() {
    let system = system().await;
    let (one, two) = (location(1), location(2));
    let api =
        |path: &str| system.relay(Method::POST, &format!("/api{path}")).header("content-type", "application/json");
    let refused = async |request: reqwest::RequestBuilder| send(request).await.refusal();
    let expect = |status: u16, code: &str| (status, code.to_owned());
    let before = system.arrived(&one) + system.arrived(&two) + system.arrived(&company());

    let unclear = expect(400, "resource_unclear");
    assert_eq!(refused(api("/contacts/7")).await, unclear);
    assert_eq!(refused(api("/contacts/7").body(r#"{"contact":{"locationId":"x"}}"#)).await, unclear);
    assert_eq!(refused(api("/custom-menus/")).await, unclear);
    // The sources disagree about the token that this endpoint accepts, so the request is for the location that it
    // names.
    let unknown = refused(api("/objects/").body(r#"{"locationId":"HLunknown"}"#)).await;
    assert_eq!(unknown, expect(404, "not_installed"));
    let body = |id: &str| format!(r#"{{"locationId":"{id}"}}"#);
    let conflict = expect(400, "resource_conflict");
    assert_eq!(refused(api("/contacts/").header("locationId", one.id()).body(body(two.id()))).await, conflict);
    assert_eq!(refused(api(&format!("/locations/{}/tags", one.id())).body(body(two.id()))).await, conflict);
    assert_eq!(refused(api("/contacts/").header("x-location-id", "no id")).await, expect(400, "invalid_request"));
    assert_eq!(refused(api("/oauth/token").header("x-location-id", one.id())).await, expect(403, "forbidden"));
    assert_eq!(refused(api("/x").header("x-location-id", "HLnobody")).await, expect(404, "not_installed"));

    let mine = |path: &str| system.request(Method::GET, &format!("/api{path}")).bearer_auth(MINE);
    assert_eq!(refused(mine("/echo").header("x-location-id", two.id())).await, expect(403, "forbidden"));
    assert_eq!(refused(mine(&format!("/echo?locationId={}", two.id()))).await, expect(403, "forbidden"));
    assert_eq!(refused(system.request(Method::GET, "/api/echo")).await, expect(401, "unauthenticated"));
    // A caller that may not act for a location cannot find out if the app is installed there.
    for (key, id) in [(NO_COMPANY, one.id()), (NO_COMPANY, two.id()), (NO_COMPANY, "HLunknown"), (MINE, "HLunknown")] {
        let of_company = system.request(Method::DELETE, &format!("/api/locations/{id}")).bearer_auth(key);
        assert_eq!(refused(of_company).await, expect(403, "forbidden"), "{id}");
    }
    let after = system.arrived(&one) + system.arrived(&two) + system.arrived(&company());
    assert_eq!(after, before, "nothing was sent");
    assert_eq!(send(mine("/echo").header("x-location-id", one.id())).await.status, 200);
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_names_another_location_than_its_target_is_refused() {
    let system = system().await;
    let (one, two) = (location(1), location(2));
    let before = system.arrived(&one);
    let post = |path: &str| system.relay(Method::POST, &route(&one, path)).header("content-type", "application/json");
    let body = format!(r#"{{"firstName":"x","locationId":"{}"}}"#, two.id());
    for request in [
        post(&format!("/locations/{}/tags", two.id())),
        post(&format!("/echo?locationId={}", two.id())),
        post(&format!("/echo?altType=location&altId={}", two.id())),
        post(&format!("/echo?locationId={}&locationId={}", one.id(), two.id())),
        post("/contacts/").body(body.clone()),
        post("/contacts/").body(body.replace("locationId", "\\u006cocationId")),
        post("/echo").header("x-location-id", two.id()),
        post("/echo").body(body.replace('{', "{\"altType\":1e999,")),
        post(&format!("/echo?altId={}&altType=location&altType=user", two.id())),
    ] {
        let answer = send(request).await;
        assert_eq!(answer.refusal(), (403, "forbidden".to_owned()), "{answer:?}");
    }
    let direct = json!({ "resource": one, "method": "POST", "path": "/contacts/", "body": { "locationId": two.id() } });
    let answer = system.invoke(direct.to_string(), None).await;
    assert_eq!((&answer["status"], &answer["body"]["code"]), (&json!(403), &json!("forbidden")), "{answer}");
    // The logs are read concurrently with the answers, so the test waits for the lines.
    let logged =
        || system.sandbox.logs.lines().iter().filter(|line| line.line.contains("names another location")).count();
    assert!(until(|| logged() == 10).await, "each is logged, not {}", logged());
    assert_eq!(system.arrived(&one), before, "and none was sent");

    // Nested members belong to the platform and are not checked, and a company may name its locations.
    let nested = format!(r#"{{"contact":{{"locationId":"{}"}},"note":"locationId"}}"#, two.id());
    assert_eq!(for_whom(&send(post("/echo").body(nested)).await), json!({ "location": one.id() }));
    let own = send(post(&format!("/echo?locationId={}", one.id()))).await;
    assert_eq!(for_whom(&own), json!({ "location": one.id() }));
    let agency = send(system.relay(Method::GET, &route(&company(), &format!("/echo?locationId={}", two.id())))).await;
    assert_eq!(for_whom(&agency), json!({ "company": company().id() }));
    let other = send(system.relay(Method::GET, &route(&company(), "/echo?companyId=HLother"))).await;
    assert_eq!(other.refusal(), (403, "forbidden".to_owned()), "{other:?}");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_of_a_message_is_not_taken_for_an_account() {
    let system = system().await;
    let (one, two) = (location(1), location(2));
    let own_ids = [one.id(), two.id(), "0f8c1e6a-7b1d-4c55-9a0e-1f2e3d4c5b6a", "<1.2@mail.example>"];
    for path in ["/conversations/messages/inbound", "/conversations/messages/outbound"] {
        for own_id in own_ids {
            let body = json!({ "altId": own_id, "conversationId": "C1" }).to_string();
            let by_route = system.relay(Method::POST, &route(&one, path));
            let by_header = system.relay(Method::POST, &format!("/api{path}")).header("x-location-id", one.id());
            for request in [by_route, by_header] {
                let answer = send(request.header("content-type", "application/json").body(body.clone())).await;
                assert_eq!(for_whom(&answer), json!({ "location": one.id() }), "{path} {own_id}");
                let sent = answer.json()["body_base64"].as_str().expect("a body").to_owned();
                assert_eq!(STANDARD.decode(sent).expect("base64"), body.as_bytes());
            }
        }
    }
    // The control: on other paths the member names an account.
    let body = json!({ "altId": two.id(), "altType": "location" }).to_string();
    let invoice = system.relay(Method::POST, &route(&one, "/invoices/")).header("content-type", "application/json");
    assert_eq!(send(invoice.body(body)).await.refusal(), (403, "forbidden".to_owned()));
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_whose_token_class_is_disputed_are_sent_with_a_locations_token() {
    let system = system().await;
    let (one, agency) = (location(1), company());
    let permissions = format!("/locations/{}/permissions", one.id());
    for resource in [&one, &agency] {
        let read = send(system.relay(Method::GET, &route(resource, &permissions))).await;
        let written = send(system.relay(Method::POST, &route(resource, "/objects/")).body("{}")).await;
        for answer in [read, written] {
            assert_eq!(answer.source(), "platform", "{resource}: {answer:?}");
        }
    }
    // The control: the sources agree about this endpoint.
    let changed = send(system.relay(Method::PUT, &route(&one, &permissions)).body("{}")).await;
    assert_eq!(changed.refusal(), (400, "invalid_request".to_owned()));
    system.end().await;
}
