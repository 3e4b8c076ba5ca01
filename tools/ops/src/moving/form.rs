//! Installations as text: JSON lines, CSV, and the documents of the official SDK. An error names the line and the
//! member, and never a value, which may be a token.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde_json::{Map, Value, json};
use shared::domain::clock::Millis;
use shared::domain::redacted::Redacted;
use shared::domain::resource::{Kind, Resource};
use shared::install::portable::Portable;
use shared::seal::pair::Pair;

use crate::arguments::{Format, instant};

/// The longest token.
const LONGEST_TOKEN: usize = 16 * 1024;
/// The longest life of an access token, as the token endpoint's answers are read, too.
const LONGEST_LIFE: Duration = Duration::from_hours(24);
/// The names of the members, as [`plain`] makes them.
const MEMBERS: [&str; 9] =
    ["resource", "class", "refreshtoken", "accesstoken", "issuedat", "expiresat", "company", "scope", "installedat"];

/// An installation and its line.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) line: u64,
    pub(super) installation: Portable,
}

/// Reads all installations.
///
/// # Errors
/// One sentence for each line that is wrong, with the number of the line. Then none of the installations may be stored.
pub(super) fn read(text: &str, format: Option<Format>, client_id: &str, now: Millis) -> Result<Vec<Read>, Vec<String>> {
    let format = format.unwrap_or(if text.trim_start().starts_with(['{', '[']) { Format::Json } else { Format::Csv });
    let rows = match format {
        Format::Json | Format::Sdk => json_lines(text),
        Format::Csv => csv_rows(text),
    };
    let (mut read, mut errors) = (Vec::new(), Vec::new());
    for (line, row) in rows {
        let installation = row.and_then(|row| match format {
            Format::Json | Format::Csv => of_members(row, now),
            Format::Sdk => of_session(&row, client_id, now),
        });
        match installation {
            Ok(installation) => read.push(Read { line, installation }),
            Err(error) => errors.push(format!("line {line}: {error}")),
        }
    }
    errors.extend(repeated(&read));
    if read.is_empty() && errors.is_empty() {
        errors.push("the file has no installations".to_owned());
    }
    if errors.is_empty() { Ok(read) } else { Err(errors) }
}

/// Writes an installation as one line of JSON.
pub(super) fn write(installation: &Portable) -> Redacted {
    let Portable { resource, company, scope, installed_at, pair } = installation;
    let class = match resource.kind() {
        Kind::Location => "Location",
        Kind::Company => "Company",
    };
    let mut line = json!({
        "resource": resource.to_string(),
        "class": class,
        "company": company,
        "scope": scope,
        "installed_at": installed_at.rfc3339(),
    });
    if let Some(Pair { access, refresh, issued_at, expires_at }) = pair {
        line["refresh_token"] = json!(refresh.as_ref().map(Redacted::expose));
        line["issued_at"] = json!(issued_at.rfc3339());
        if !access.expose().is_empty() {
            line["access_token"] = json!(access.expose());
            line["expires_at"] = json!(expires_at.rfc3339());
        }
    }
    format!("{line}\n").into()
}

type Row = Map<String, Value>;

fn json_lines(text: &str) -> Vec<(u64, Result<Row, String>)> {
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let read = |line: &str| match serde_json::from_str(line) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(_) => Err("expected one JSON object a line".to_owned()),
        // The text of the error may repeat a value.
        Err(error) => Err(format!("not one JSON object a line (column {})", error.column())),
    };
    lines.map(|(line, number)| (number, read(line))).collect()
}

fn csv_rows(text: &str) -> Vec<(u64, Result<Row, String>)> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(text.as_bytes());
    let Ok(names) = reader.headers().cloned() else { return vec![(1, Err("not CSV".to_owned()))] };
    let unknown = names.iter().find(|name| plain(name).is_none());
    if unknown.is_some() || names.is_empty() {
        let expected = "the first line must name the columns: resource, class, refresh_token, access_token, issued_at, \
                        expires_at, company, scope, installed_at";
        return vec![(1, Err(expected.to_owned()))];
    }
    let read = |record: Result<csv::StringRecord, csv::Error>| {
        let record = match record {
            Ok(record) => record,
            Err(error) => return (error.position().map_or(0, csv::Position::line), Err("not CSV".to_owned())),
        };
        let line = record.position().map_or(0, csv::Position::line);
        if record.len() != names.len() {
            return (line, Err(format!("{} columns instead of {}", record.len(), names.len())));
        }
        let filled = names.iter().zip(record.iter()).filter(|(_, value)| !value.is_empty());
        (line, Ok(filled.map(|(name, value)| (name.to_owned(), Value::from(value))).collect()))
    };
    reader.records().map(read).collect()
}

/// The name of a member without regard to case and separators, so that `refreshToken` and `refresh_token` are alike.
/// `None` if there is no such member.
fn plain(name: &str) -> Option<&'static str> {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let name = match plain.as_str() {
        "usertype" => "class",
        "companyid" => "company",
        "scopes" => "scope",
        "expiry" | "expireat" => "expiresat",
        other => other,
    };
    MEMBERS.iter().copied().find(|known| *known == name)
}

/// Reads a line of JSON or a row of CSV.
fn of_members(row: Row, now: Millis) -> Result<Portable, String> {
    let mut members = HashMap::new();
    for (name, value) in row {
        let Some(known) = plain(&name) else {
            // A name may be a token, if somebody has mixed up the two.
            let names =
                "resource, class, refresh_token, access_token, issued_at, expires_at, company, scope, installed_at";
            return Err(format!("a member has another name than {names}"));
        };
        if value.is_null() {
            continue;
        }
        if members.insert(known, value).is_some() {
            return Err(format!("two members mean {known}"));
        }
    }
    let resource = resource(members.get("resource"), members.get("class"))?;
    let company = members.get("company").map(company).transpose()?;
    portable(resource, company, &Members(&members), now)
}

/// Reads a document of the official SDK (collection `application_sessions`). Members with other names are ignored.
fn of_session(row: &Row, client_id: &str, now: Millis) -> Result<Portable, String> {
    let text = |name: &str| row.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let app = client_id.split('-').next().unwrap_or(client_id);
    if text("applicationId").is_some_and(|id| id.split('-').next() != Some(app)) {
        return Err("applicationId is another app than the app secret's client_id".to_owned());
    }
    let kind = kind(row.get("userType").ok_or("userType is missing")?)?;
    let id = match kind {
        Kind::Location => text("locationId"),
        Kind::Company => text("companyId"),
    };
    let id = id.or_else(|| text("resourceId")).ok_or("locationId or companyId is missing")?;
    let resource = Resource::new(kind, id).map_err(|error| error.to_string())?;
    let company = text("companyId").map(|id| company(&Value::from(id))).transpose()?;
    let member =
        |theirs: &str, ours: &'static str| Some((ours, row.get(theirs).cloned().filter(|value| !value.is_null())?));
    let members = [
        member("refresh_token", "refreshtoken"),
        member("access_token", "accesstoken"),
        member("expire_at", "expiresat"),
        member("scope", "scope"),
        member("createdAt", "installedat"),
    ];
    portable(resource, company, &Members(&members.into_iter().flatten().collect()), now)
}

/// The members of a line, by their plain names.
struct Members<'a>(&'a HashMap<&'static str, Value>);

impl Members<'_> {
    fn token(&self, name: &'static str, shown: &str) -> Result<Option<Redacted>, String> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        let token = value.as_str().map(str::trim).filter(|token| {
            (1..=LONGEST_TOKEN).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic())
        });
        token.map(|token| Some(token.into())).ok_or_else(|| format!("{shown} is not a token"))
    }

    fn time(&self, name: &'static str, shown: &str) -> Result<Option<Millis>, String> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        let error = || format!("{shown} is not a time, such as 2026-11-27T10:00:00Z or milliseconds since 1970");
        time(value).map(Some).ok_or_else(error)
    }
}

fn portable(
    resource: Resource,
    company: Option<String>,
    members: &Members<'_>,
    now: Millis,
) -> Result<Portable, String> {
    let refresh = members.token("refreshtoken", "refresh_token")?;
    let access = members.token("accesstoken", "access_token")?;
    let issued_at = members.time("issuedat", "issued_at")?.map(|at| at.min(now));
    let expires_at = members.time("expiresat", "expires_at")?.map(|at| at.min(now + LONGEST_LIFE));
    let installed_at = members.time("installedat", "installed_at")?.map(|at| at.min(now));
    let scope = match members.0.get("scope") {
        None => None,
        Some(Value::String(scopes)) => {
            Some(scopes.split([' ', ',']).filter(|scope| !scope.is_empty()).collect::<Vec<_>>().join(" "))
        }
        Some(Value::Array(scopes)) => {
            let scopes: Option<Vec<_>> = scopes.iter().map(Value::as_str).collect();
            Some(scopes.ok_or("scope is not a text or a list of texts")?.join(" "))
        }
        Some(_) => return Err("scope is not a text or a list of texts".to_owned()),
    };
    let company = match resource.kind() {
        Kind::Location => company,
        Kind::Company if company.as_deref().is_some_and(|company| company != resource.id()) => {
            return Err("company is another company than the resource".to_owned());
        }
        Kind::Company => Some(resource.id().to_owned()),
    };
    let is_minted = refresh.is_none() && resource.kind() == Kind::Location && company.is_some();
    let pair = match refresh {
        Some(refresh) => Some(Pair::received(refresh, access.zip(expires_at), issued_at)),
        None if is_minted => None,
        None => {
            let why = "only a location with a company has none: its token is made from the company's";
            return Err(format!("refresh_token is missing ({why})"));
        }
    };
    let granted_at = pair.as_ref().map(|pair| pair.issued_at).filter(|at| at.0 > 0);
    let installed_at = installed_at.or(granted_at).unwrap_or(now);
    Ok(Portable { resource, company, scope: scope.filter(|scope| !scope.is_empty()), installed_at, pair })
}

fn kind(value: &Value) -> Result<Kind, String> {
    let kinds = [Kind::Location, Kind::Company];
    let text = value.as_str().unwrap_or_default();
    let found = kinds.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(text));
    found.ok_or_else(|| "class is not Location or Company".to_owned())
}

fn resource(value: Option<&Value>, class: Option<&Value>) -> Result<Resource, String> {
    let class = class.map(kind).transpose()?;
    let value = value.ok_or("resource is missing")?;
    let form = || "resource is not location:ID, company:ID, or an ID with a class".to_owned();
    let found = match value {
        Value::Object(_) => serde_json::from_value(value.clone()).map_err(|_| form())?,
        Value::String(text) => match (text.trim().split_once(':'), class) {
            (Some((kind_name, id)), _) => Resource::new(kind(&Value::from(kind_name)).map_err(|_| form())?, id)
                .map_err(|error| error.to_string())?,
            (None, Some(class)) => Resource::new(class, text.trim()).map_err(|error| error.to_string())?,
            (None, None) => return Err(form()),
        },
        _ => return Err(form()),
    };
    if class.is_some_and(|class| class != found.kind()) {
        return Err("class is another one than the resource's".to_owned());
    }
    Ok(found)
}

/// A company as `ID` or `company:ID`.
fn company(value: &Value) -> Result<String, String> {
    let text = value.as_str().map(str::trim).unwrap_or_default();
    let id = text.strip_prefix("company:").unwrap_or(text);
    Resource::company(id).map(|company| company.id().to_owned()).map_err(|_| "company is not an ID".to_owned())
}

/// A time: RFC 3339, seconds or milliseconds since 1970, or the forms of `MongoDB`'s extended JSON.
fn time(value: &Value) -> Option<Millis> {
    /// A smaller number is seconds: in milliseconds it would be before 1973.
    const LEAST_MILLIS: i64 = 100_000_000_000;
    let of_number = |number: i64| {
        let millis = if number < LEAST_MILLIS { number.checked_mul(1_000)? } else { number };
        (number > 0).then_some(Millis(millis))
    };
    match value {
        #[expect(clippy::cast_possible_truncation, reason = "no time has more than 53 bits of milliseconds")]
        Value::Number(number) => of_number(number.as_i64().or_else(|| number.as_f64().map(|number| number as i64))?),
        Value::String(text) => match text.trim().parse() {
            Ok(number) => of_number(number),
            Err(_) => instant(text.trim()).ok(),
        },
        Value::Object(extended) => {
            let forms = ["$date", "$numberLong", "$numberInt", "$numberDouble"];
            time(forms.iter().find_map(|form| extended.get(*form))?)
        }
        Value::Null | Value::Bool(_) | Value::Array(_) => None,
    }
}

/// Finds resources and refresh tokens that stand in two lines.
fn repeated(read: &[Read]) -> Vec<String> {
    let (mut resources, mut tokens, mut errors) = (BTreeMap::new(), HashMap::new(), Vec::new());
    for Read { line, installation } in read {
        if let Some(first) = resources.insert(&installation.resource, line) {
            errors.push(format!("line {line}: the resource is also in line {first}"));
        }
        let refresh = installation.pair.as_ref().and_then(|pair| pair.refresh.as_ref());
        if let Some(first) = refresh.and_then(|token| tokens.insert(token.expose(), line)) {
            errors.push(format!("line {line}: the refresh token is also in line {first}"));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_795_000_000_000);

    fn of(text: &str, format: Option<Format>) -> Result<Vec<Portable>, Vec<String>> {
        let read = read(text, format, "app1-v2", NOW)?;
        Ok(read.into_iter().map(|read| read.installation).collect())
    }

    fn shown(installation: &Portable) -> Value {
        serde_json::from_str(write(installation).expose()).expect("JSON")
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
            "expires_at": "2026-11-18T09:46:40Z", "installed_at": "2026-09-21T14:13:20Z",
        });
        for (text, format) in [(json, None), (csv, None), (sdk, Some(Format::Sdk))] {
            let read = of(text, format).unwrap_or_else(|errors| panic!("{errors:?}: {text}"));
            assert_eq!((read.len(), shown(&read[0])), (1, expected.clone()), "{text}");
        }
        let again = of(write(&of(json, None).expect("read")[0]).expose(), None).expect("its own form");
        assert_eq!(shown(&again[0]), expected);
    }

    #[test]
    fn the_least_that_is_needed_is_a_resource_and_a_refresh_token() {
        let read = of(r#"{"resource":{"company":"C1"},"refresh_token":"r1"}"#, None).expect("enough");
        let pair = read[0].pair.as_ref().expect("a pair");
        assert_eq!((read[0].company.as_deref(), read[0].installed_at), (Some("C1"), NOW));
        assert_eq!((pair.issued_at, pair.expires_at), (Millis(0), Millis(0)), "the schedule renews it soon");
        let minted = of("resource,class,company\nL1,location,C1", None).expect("minted");
        assert!(minted[0].pair.is_none());
        let far =
            of(r#"{"resource":"company:C1","refresh_token":"r","access_token":"a","expires_at":1999999999}"#, None);
        let pair = far.expect("read")[0].pair.clone().expect("a pair");
        assert_eq!(pair.expires_at, NOW + LONGEST_LIFE);
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

        let csv =
            of("resource,refresh_token\nlocation:L1,secret-1,secret-2\nlocation:L2,\"secret\n-3\"\nteam:x,y", None);
        let errors = csv.expect_err("wrong");
        assert!(
            errors[0].starts_with("line 2: 3 columns") && errors[1].starts_with("line 3: refresh_token"),
            "{errors:?}"
        );
        assert!(errors[2].starts_with("line 5: ") && errors.len() == 3, "{errors:?}");
        for wrong in ["", "location:L1,secret", "resource,token\nlocation:L1,secret"] {
            assert!(of(wrong, None).is_err_and(|errors| errors.len() == 1 && !errors[0].contains("secret")), "{wrong}");
        }
        let other = r#"{"applicationId":"app2","userType":"Company","companyId":"C1","refresh_token":"secret"}"#;
        assert!(of(other, Some(Format::Sdk)).is_err_and(|errors| errors[0].contains("another app")));
    }
}
