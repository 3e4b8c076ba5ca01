use super::*;

const NOW: Millis = Millis(1_795_000_000_000);

fn of(text: &str, format: Option<Format>) -> Result<Vec<Portable>, Vec<String>> {
    let read = read(text, format, "app1-v2", NOW)?;
    Ok(read.into_iter().map(|read| read.installation).collect())
}

fn shown(installation: &Portable) -> Value {
    serde_json::from_str(write(installation, "app1-v2").expose()).expect("JSON")
}

#[test]
fn the_same_installation_is_read_in_every_format() {
    let json = r#"{"resource":"location:L1","class":"Location","refreshToken":"r1","access_token":"a1","expires_at":"2026-11-18T09:46:40Z","company":"C1","scopes":["contacts.readonly","users.readonly"],"installed_at":1790000000}"#;
    let csv = "Resource,refresh_token,access token,expiry,companyId,scope,installed_at\n\
               location:L1,r1,a1,1794995200000,C1,contacts.readonly users.readonly,2026-09-21T14:13:20Z\n";
    let sdk = r#"{"_id":{"$oid":"66"},"applicationId":"app1","resourceId":"L1","access_token":"a1","refresh_token":"r1","token_type":"Bearer","scope":"contacts.readonly users.readonly","userType":"Location","companyId":"C1","locationId":"L1","userId":"U1","expires_in":86399,"expire_at":{"$numberLong":"1794995200000"},"createdAt":{"$date":{"$numberLong":"1790000000000"}},"updatedAt":{"$date":"2026-11-17T09:46:40Z"}}"#;
    let expected = json!({
        "resource": "location:L1", "class": "Location", "company": "C1", "scope": "contacts.readonly users.readonly",
        "refresh_token": "r1", "access_token": "a1", "issued_at": "2026-11-17T09:46:40Z",
        "expires_at": "2026-11-18T09:46:40Z", "installed_at": "2026-09-21T14:13:20Z", "app": "app1",
    });
    let mut of_sdk = expected.clone();
    of_sdk["installed_at"] = json!("2026-11-17T09:46:40Z");
    let double = sdk.replace(r#""$numberLong":"1794995200000""#, r#""$numberDouble":"1.7949952E+12""#);
    let with_mark = format!("\u{feff}{json}");
    for (text, format, expected) in [
        (json, None, &expected),
        (&*with_mark, None, &expected),
        (csv, None, &expected),
        (sdk, Some(Format::Sdk), &of_sdk),
        (&*double, Some(Format::Sdk), &of_sdk),
    ] {
        let read = of(text, format).unwrap_or_else(|errors| panic!("{errors:?}: {text}"));
        assert_eq!((read.len(), &shown(&read[0])), (1, expected), "{text}");
    }
}

#[test]
fn an_export_is_read_again_and_one_that_is_cut_off_is_not() {
    let lines = [
        r#"{"resource":"location:L1","refresh_token":"r1","access_token":"a1","expires_at":"2026-11-18T09:46:40Z"}"#,
        r#"{"resource":"location:L2","class":"Location","company":"C1"}"#,
    ];
    let stored = of(&lines.join("\n"), None).expect("read");
    let mut export = write_count(stored.len());
    for one in &stored {
        export.push_str(write(one, "app1-v2").expose());
    }
    let again = of(&export, None).expect("its own form");
    assert_eq!(again.iter().map(shown).collect::<Vec<_>>(), stored.iter().map(shown).collect::<Vec<_>>());
    let cut = export.trim_end().rsplit_once('\n').expect("three lines").0;
    assert_eq!(of(cut, None).expect_err("cut off"), ["line 1: 2 lines were exported, and 1 follow"]);
    let of_other = export.replace(r#""app":"app1""#, r#""app":"app2""#);
    let errors = of(&of_other, None).expect_err("another app");
    assert_eq!(errors[0], "line 2: app is another app than the app secret's client_id");
}

#[test]
fn the_least_that_is_needed_is_a_resource_and_a_refresh_token() {
    let read = of(r#"{"resource":{"company":"C1"},"refresh_token":"r1"}"#, None).expect("enough");
    let pair = read[0].pair.as_ref().expect("a pair");
    assert_eq!((read[0].company.as_deref(), read[0].installed_at), (Some("C1"), NOW));
    assert_eq!((pair.issued_at, pair.expires_at), (Millis(0), Millis(0)), "the schedule renews it soon");
    // The time of the grant is known without an access token, too.
    let line = r#"{"resource":"company:C1","refresh_token":"r1","expires_at":"2026-11-18T09:46:40Z"}"#;
    let pair = of(line, None).expect("enough")[0].pair.clone().expect("a pair");
    let granted_at = Millis(1_794_908_800_000);
    assert_eq!((pair.access.expose(), pair.issued_at, pair.expires_at), ("", granted_at, granted_at));
    let minted = of("resource,class,company\nL1,location,C1", None).expect("minted");
    assert!(minted[0].pair.is_none());
}

#[test]
fn a_time_that_cannot_be_true_is_refused() {
    let line = |member: &str, time: &str| {
        let line = r#"{"resource":"company:C1","refresh_token":"r","access_token":"a","expires_at":1795000000}"#;
        let text = line.replace('}', &format!(r#","{member}":{time}}}"#));
        of(&text.replace(r#","expires_at":1795000000,"expires_at""#, r#","expires_at""#), None)
    };
    for (member, time, is_read) in [
        ("expires_at", "1795086400", true),
        ("expires_at", "1795087000", true),
        ("expires_at", "1795087001", false),
        ("expires_at", "1826536000000", false),
        ("expires_at", "1795000000000000", false),
        ("expires_at", r#""2026-11-20T09:00:00Z""#, false),
        ("issued_at", "1795000600", true),
        ("issued_at", "1795000601", false),
        ("issued_at", "1795000000000000", false),
        ("installed_at", "1795000601", false),
        ("installed_at", r#""NaN""#, false),
        ("installed_at", r#""inf""#, false),
    ] {
        assert_eq!(line(member, time).is_ok(), is_read, "{member}: {time}");
    }
    let ahead = line("issued_at", "1795000600").expect("a clock that is ahead");
    assert_eq!(ahead[0].pair.as_ref().expect("a pair").issued_at, NOW);
    let ahead = line("expires_at", "1795087000").expect("a clock that is ahead");
    let pair = ahead[0].pair.as_ref().expect("a pair");
    assert_eq!((pair.issued_at, pair.expires_at), (NOW, Millis(1_795_087_000_000)));
}

#[test]
fn a_stray_quote_does_not_make_tokens_a_scope() {
    let csv = "resource,refresh_token,scope\n\
               location:L1,secret-1,\"contacts.readonly\n\
               location:L2,secret-2,users.readonly\n";
    let errors = of(csv, None).expect_err("wrong");
    assert_eq!(errors, ["line 2: scope is not a list of scopes, such as contacts.readonly"]);
    let json = r#"{"resource":"location:L1","refresh_token":"r","scope":["a.b","secret 2"]}"#;
    assert!(of(json, None).is_err());
    let long = format!(r#"{{"resource":"location:L1","refresh_token":"r","scope":"{}"}}"#, "a".repeat(129));
    assert!(of(&long, None).is_err());
}

#[test]
fn lines_of_csv_are_counted_as_an_editor_does() {
    let wrong = ["resource,refresh_token", "location:L1,r1", "team:L2,r2", "", "location:L3,r 3"];
    for line_break in ["\n", "\r\n"] {
        let errors = of(&wrong.join(line_break), None).expect_err("wrong");
        let lines: Vec<_> = errors.iter().filter_map(|error| error.split(':').next()).collect();
        assert_eq!(lines, ["line 3", "line 5"], "{line_break:?}: {errors:?}");
    }
    let twice = of("resource,refresh_token,refreshToken\nlocation:L1,r1,r2", None).expect_err("wrong");
    assert_eq!(twice, ["line 1: two columns mean refreshtoken"]);
}

#[test]
fn every_wrong_line_is_told_with_its_number_and_without_a_value() {
    let lines = [
        r#"{"resource":"location:L1","refresh_token":"secret-0"}"#,
        r#"{"resource":"location:L2"}"#,
        r#"{"resource":"team:L3","refresh_token":"secret-1"}"#,
        r#"{"resource":"company:C/3","refresh_token":"secret-1b"}"#,
        r#"{"resource":"location:L4","refresh_token":"secret 2"}"#,
        "",
        r#"{"resource":"location:L5","refresh_token":"secret-3","expires_at":"secret-4"}"#,
        r#"{"resource":"location:L6","secret-5":"x"}"#,
        r#"{"resource":"location:L1","refresh_token":"secret-6"}"#,
        r#"{"resource":"location:L7","refresh_token":"secret-0"}"#,
        r#"{"resource":"secret-7"#,
        r#"["secret-8"]"#,
        r#"{"resource":"company:C1","class":"Location","refresh_token":"secret-9"}"#,
        r#"{"resource":"company:C1","company":"C2","refresh_token":"secret-9"}"#,
        r#"{"resource":"company:C1","refresh_token":"secret-9","refreshToken":"secret-9"}"#,
    ];
    let errors = of(&lines.join("\n"), None).expect_err("wrong");
    let numbers: Vec<_> =
        errors.iter().filter_map(|error| error.split([' ', ':']).nth(1)?.parse::<u32>().ok()).collect();
    assert_eq!(numbers, [2, 3, 4, 5, 7, 8, 11, 12, 13, 14, 15, 9, 10], "{errors:?}");
    assert!(errors.iter().all(|error| !error.contains("secret")), "{errors:?}");
    assert_eq!(
        errors[0],
        "line 2: refresh_token is missing (only a location with a company has none: its token is made from the company's)"
    );

    let csv = of("resource,refresh_token\nlocation:L1,secret-1,secret-2\nlocation:L2,\"secret\n-3\"\nteam:x,y", None);
    let errors = csv.expect_err("wrong");
    assert!(errors[0].starts_with("line 2: 3 columns") && errors[1].starts_with("line 3: refresh_token"), "{errors:?}");
    assert!(errors[2].starts_with("line 5: ") && errors.len() == 3, "{errors:?}");
    for wrong in ["", "location:L1,secret", "resource,token\nlocation:L1,secret"] {
        assert!(of(wrong, None).is_err_and(|errors| errors.len() == 1 && !errors[0].contains("secret")), "{wrong}");
    }
    let other = r#"{"applicationId":"app2","userType":"Company","companyId":"C1","refresh_token":"secret"}"#;
    assert!(of(other, Some(Format::Sdk)).is_err_and(|errors| errors[0].contains("another app")));
}
