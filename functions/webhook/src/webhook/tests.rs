//! Tests of the reading of webhooks.

use super::*;

fn read(body: &Value) -> Result<Change, Refusal> {
    Webhook::of_app(body.to_string().as_bytes(), "app").map(|webhook| webhook.change)
}

#[test]
fn an_uninstall_names_a_location_or_a_company() {
    let uninstall = |resource: Resource, at| Ok(Change::Uninstall { resources: vec![resource], at });
    let (location, company) = (Resource::location("L1").expect("an id"), Resource::company("C1").expect("an id"));
    for (body, expected) in [
        (json!({"locationId": "L1"}), uninstall(location.clone(), None)),
        (json!({"companyId": "C1"}), uninstall(company.clone(), None)),
        (json!({"locationId": "L1", "companyId": "C1"}), uninstall(location, None)),
        (
            json!({"locationId": "", "companyId": "C1", "timestamp": 1_750_000_000_000_i64}),
            uninstall(company, Some(Reported { at: Millis(1_750_000_000_000), precision: MILLISECOND })),
        ),
        (json!({}), Ok(Change::Unreadable)),
        (json!({"locationId": "../x"}), Ok(Change::Unreadable)),
        (json!({"locationId": 7}), Ok(Change::Unreadable)),
    ] {
        let mut whole = json!({"type": "UNINSTALL", "appId": "app"});
        whole.as_object_mut().expect("an object").extend(body.as_object().expect("an object").clone());
        assert_eq!(read(&whole), expected, "{whole}");
    }
}

#[test]
fn another_app_is_refused_and_other_types_are_ignored() {
    for (body, expected) in [
        (json!({"type": "UNINSTALL", "appId": "other", "locationId": "L1"}), Err(Refusal::ForeignApp)),
        (json!({"type": "INSTALL", "appId": "app-2"}), Err(Refusal::ForeignApp)),
        (json!({"type": "ContactCreate", "appId": "other"}), Err(Refusal::ForeignApp)),
        (json!({"type": "UNINSTALL", "locationId": "L1"}), Ok(Change::Unreadable)),
        (json!({"type": "INSTALL", "appId": "app"}), Ok(Change::Unreadable)),
        (json!({"type": "ContactCreate", "locationId": "L1"}), Ok(Change::None)),
        (json!({"type": "PlanChange", "appId": "app", "locationId": ["L1"]}), Ok(Change::None)),
        (json!({"appId": "app"}), Err(Refusal::Malformed)),
        (json!([]), Err(Refusal::Malformed)),
        (json!("UNINSTALL"), Err(Refusal::Malformed)),
        (json!(["UNINSTALL", "app", "L1", null, null, null, null]), Err(Refusal::Malformed)),
        (json!({"type": "", "appId": "app"}), Err(Refusal::Malformed)),
        (json!({"type": null, "appId": "app"}), Err(Refusal::Malformed)),
        (json!({"type": ["UNINSTALL"], "appId": "app"}), Err(Refusal::Malformed)),
    ] {
        assert_eq!(read(&body), expected, "{body}");
    }
    assert_eq!(Webhook::of_app(b"\xff{", "app"), Err(Refusal::Malformed));
    assert_eq!(Webhook::of_app(b"{\"type\":\"A\",\"body\":\"\xff\"}", "app"), Err(Refusal::Malformed));
    assert_eq!(Webhook::of_app(b"{\"type\":\"A\",\"body\":\"\n\"}", "app"), Err(Refusal::Malformed));
    assert_eq!(Webhook::of_app(b"", "app"), Err(Refusal::Malformed));
}

#[test]
fn a_member_that_is_not_needed_may_hold_any_json() {
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    for odd in [r#""half an emoji \ud83d""#, r#"{"\udc00":1}"#, "1e400", "-1e999999999999", &deep] {
        for name in ["body", "trial", "companyId"] {
            let body = format!(r#"{{"type":"UNINSTALL","appId":"app","locationId":"L1","{name}":{odd}}}"#);
            let webhook = Webhook::of_app(body.as_bytes(), "app").expect("a webhook");
            let event = webhook.platform_event(&body, Millis(1));
            assert_eq!((event.kind(), event.body()), ("UNINSTALL", &*body));
            assert_eq!(event.resources(), [Resource::location("L1").expect("an id")]);
            assert!(webhook.changes_installations(), "{name}: {odd:.40}");
        }
    }
}

#[test]
fn an_install_names_its_company_if_it_can() {
    let location = Resource::location("L1").expect("an id");
    let install = |company: Option<&str>| {
        Ok(Change::Install {
            resources: vec![location.clone()],
            company: company.map(str::to_owned),
            at: None,
            details: Box::default(),
        })
    };
    for (company, expected) in [
        (json!("C1"), install(Some("C1"))),
        (json!(null), install(None)),
        (json!(""), install(None)),
        (json!("../x"), install(None)),
        (json!(7), install(None)),
    ] {
        let whole = json!({"type": "INSTALL", "appId": "app", "locationId": "L1", "companyId": company});
        assert_eq!(read(&whole), expected, "{whole}");
    }
    let whole = json!({"type": "INSTALL", "appId": "app", "companyId": "C1"});
    let resource = Resource::company("C1").expect("an id");
    let details = Box::default();
    assert_eq!(read(&whole), Ok(Change::Install { resources: vec![resource], company: None, at: None, details }));
}

#[test]
fn a_list_of_locations_never_means_the_whole_company() {
    let locations = |ids: &[&str]| ids.iter().map(|id| Resource::location(id).expect("an id")).collect::<Vec<_>>();
    for (body, expected) in [
        (json!({"locationIds": ["L2", "L1", "L2"]}), Some(locations(&["L1", "L2"]))),
        (json!({"locationIds": ["L1"], "locationId": "L3"}), Some(locations(&["L1", "L3"]))),
        (json!({"locationIds": ["L1", 7, null, "", "../x", {"id": "L2"}, ["L3"]]}), Some(locations(&["L1"]))),
        (json!({"locationIds": ["L1"], "locationId": 7}), Some(locations(&["L1"]))),
        (json!({"locationIds": []}), Some(Vec::new())),
        (json!({"locationIds": [], "locationId": ""}), Some(Vec::new())),
        (json!({"locationIds": [], "locationId": "L3"}), Some(locations(&["L3"]))),
        (json!({"locationIds": "L1"}), Some(locations(&["L1"]))),
        (json!({"locationIds": {"0": "L1"}, "locationId": "L3"}), Some(locations(&["L3"]))),
        (json!({"locationIds": {"0": "L1"}}), None),
        (json!({"locationIds": true}), None),
        (json!({"locationIds": [7, "../x"]}), None),
        (json!({"locationIds": null}), Some(vec![Resource::company("C1").expect("an id")])),
    ] {
        for kind in ["INSTALL", "UNINSTALL"] {
            let mut whole = json!({"type": kind, "appId": "app", "companyId": "C1"});
            whole.as_object_mut().expect("an object").extend(body.as_object().expect("an object").clone());
            let found = match read(&whole).expect("of this app") {
                Change::Install { resources, company, .. } => {
                    let is_of_company = resources.iter().any(|resource| resource.kind() == Kind::Company);
                    assert_eq!(company.is_none(), is_of_company, "{whole}");
                    Some(resources)
                }
                Change::Uninstall { resources, .. } => Some(resources),
                Change::Unreadable => None,
                Change::Details { .. } | Change::None => panic!("{whole}"),
            };
            assert_eq!(found, expected, "{whole}");
        }
    }
}

/// The entry that the bus gets for a body: its body, and the resources that it is about.
fn event(body: &Value) -> PlatformEvent {
    let text = body.to_string();
    Webhook::of_app(text.as_bytes(), "app").expect("a webhook").platform_event(&text, Millis(1))
}

#[test]
fn an_install_an_update_and_a_plan_change_carry_details() {
    let of = |kind: &str, members: &Value| {
        let mut whole = json!({"type": kind, "appId": "app", "locationId": "L1", "companyId": "C1"});
        whole.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
        match read(&whole).expect("of this app") {
            Change::Install { details, .. } => (None, *details),
            Change::Details { name, details, .. } => (Some(name), *details),
            other => panic!("{other:?}"),
        }
    };
    let text = |text: &str| Some(text.to_owned());
    let trial = json!({"onTrial": true, "trialDuration": 10, "trialStartDate": "2024-07-23T23:54:51.264Z"});
    let install = json!({
        "versionId": "v1", "planId": "p1", "trial": trial, "userId": "u1", "isWhitelabelCompany": true,
        "whitelabelDetails": {"domain": "app.example.com", "logoUrl": "https://example.com/logo.png"},
    });
    let trial_ends_at = Some(Millis(1_721_778_891_264 + 10 * 86_400_000));
    let expected = AppDetails {
        version_id: text("v1"),
        plan_id: text("p1"),
        trial_ends_at,
        installed_by: text("u1"),
        white_label: text("app.example.com"),
        ..AppDetails::default()
    };
    assert_eq!(of("INSTALL", &install), (None, expected));
    let update = json!({"versionId": "v2", "previousVersionId": "v1", "planId": "p1", "userId": "u2"});
    let expected = AppDetails { version_id: text("v2"), ..AppDetails::default() };
    assert_eq!(of("UPDATE", &update), (Some(Name::Updated), expected));
    let change = json!({"currentPlanId": "p1", "newPlanId": "p2", "userId": "u2", "trial": trial});
    let expected = AppDetails { plan_id: text("p2"), trial_ends_at, ..AppDetails::default() };
    assert_eq!(of("PLAN_CHANGE", &change), (Some(Name::PlanChanged), expected));
    let odd = json!({
        "versionId": 7, "planId": "", "trial": {"onTrial": true, "trialDuration": -1}, "userId": {},
        "isWhitelabelCompany": false, "whitelabelDetails": {"domain": "x"},
    });
    assert_eq!(of("INSTALL", &odd), (None, AppDetails::default()));
}

#[test]
fn an_event_names_what_it_is_about() {
    for (members, expected) in [
        (json!({}), vec![]),
        (json!({"locationId": "L1"}), vec!["location:L1"]),
        (json!({"locationId": "L1", "companyId": "C1"}), vec!["location:L1", "company:C1"]),
        (
            json!({"companyId": "C1", "locationIds": ["L2", "L1", 7, "../x"]}),
            vec!["location:L1", "location:L2", "company:C1"],
        ),
        (json!({"altId": "L1", "altType": "location"}), vec!["location:L1"]),
        (json!({"altId": "C1", "altType": "company"}), vec!["company:C1"]),
        (json!({"altId": "message-7"}), vec![]),
        (json!({"altId": "L2", "altType": "location", "locationId": "L1"}), vec!["location:L1"]),
        (json!({"locationId": ["L1"], "companyId": "a b"}), vec![]),
    ] {
        let mut body = json!({"type": "InvoicePaid"});
        body.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
        let found = event(&body);
        let resources: Vec<_> = found.resources().iter().map(ToString::to_string).collect();
        assert_eq!((resources, found.body()), (expected.iter().map(ToString::to_string).collect(), &*body.to_string()));
    }
}

#[test]
fn an_event_that_is_too_large_is_named_only() {
    let large = "x".repeat(1024 * 1024);
    let whole = json!({
        "type": "NoteCreate", "webhookId": "w1", "locationId": "L1", "companyId": "C1", "body": large,
        "locationIds": ["L2"],
    });
    let found = event(&whole);
    let expected = json!({
        "type": "NoteCreate", "webhookId": "w1", "locationId": "L1", "companyId": "C1", "truncated": true,
    });
    assert_eq!(serde_json::from_str::<Value>(found.body()).expect("JSON"), expected);
    assert_eq!((found.kind(), found.resources().len(), found.fits()), ("NoteCreate", 2, true));
    let found = event(&json!({"type": large, "webhookId": large, "locationId": large}));
    let expected = json!({"type": "x".repeat(128), "truncated": true});
    assert_eq!(serde_json::from_str::<Value>(found.body()).expect("JSON"), expected);
    assert!(found.fits());
}

#[test]
fn an_id_is_a_short_text() {
    let id = |id: Value| {
        let body = json!({"type": "X", "webhookId": id}).to_string();
        Webhook::of_app(body.as_bytes(), "app").expect("a webhook").id
    };
    assert_eq!(id(json!("w-1")), Some("w-1".to_owned()));
    for none in [json!(""), json!(7), json!(null), json!("x".repeat(201))] {
        assert_eq!(id(none.clone()), None, "{none}");
    }
}

#[test]
fn a_timestamp_is_read_from_each_form_with_its_precision() {
    let ms = |at| Some(Reported { at: Millis(at), precision: MILLISECOND });
    let s = |at| Some(Reported { at: Millis(at), precision: SECOND });
    for (timestamp, expected) in [
        (json!("2025-06-15T15:06:40.123Z"), ms(1_750_000_000_123)),
        (json!("2025-06-15T17:06:40.123+02:00"), ms(1_750_000_000_123)),
        (json!("2025-06-15T15:06:40.000Z"), ms(1_750_000_000_000)),
        (json!("2025-06-15T15:06:40Z"), s(1_750_000_000_000)),
        (json!(1_750_000_000_123_i64), ms(1_750_000_000_123)),
        (json!("1750000000123"), ms(1_750_000_000_123)),
        (json!(1_750_000_000), s(1_750_000_000_000)),
        (json!("1750000000"), s(1_750_000_000_000)),
        (json!("yesterday"), None),
        (json!("2025-06-15T15:06:40"), None),
        (json!(""), None),
        (json!(0), None),
        (json!(-5), None),
        (json!(1.5), None),
        (json!(1e300), None),
        (json!(null), None),
        (json!({}), None),
        (json!("9999-12-31T23:59:59Z"), s(253_402_300_799_000)),
    ] {
        assert_eq!(reported(&timestamp), expected, "{timestamp}");
    }
}
