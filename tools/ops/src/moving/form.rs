//! Installations as text: JSON lines, CSV, and the documents of the official SDK. An error names the line and the
//! member, and never a value, which may be a token.

use std::collections::{BTreeMap, HashMap, HashSet};
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
/// The longest scope, and the longest text of all scopes.
const LONGEST_SCOPE: usize = 128;
const LONGEST_SCOPES: usize = 8 * 1024;
/// The longest life of an access token, as the token endpoint's answers are read, too.
const LONGEST_LIFE: Duration = Duration::from_hours(24);
/// The clock of another system may be ahead by this time.
const AHEAD: Duration = Duration::from_mins(10);
/// The names of the members, as they are written.
const NAMES: &str =
    "resource, class, refresh_token, access_token, issued_at, expires_at, company, scope, installed_at, app";
/// The names of the members, as [`plain`] makes them.
const MEMBERS: [&str; 10] = [
    "resource",
    "class",
    "refreshtoken",
    "accesstoken",
    "issuedat",
    "expiresat",
    "company",
    "scope",
    "installedat",
    "app",
];
/// The only member of the first line of an export: the number of lines that follow.
const COUNT: &str = "count";

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
    // Some programs begin a text with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let format = format.unwrap_or(if text.trim_start().starts_with(['{', '[']) { Format::Json } else { Format::Csv });
    let mut rows = match format {
        Format::Json | Format::Sdk => json_lines(text),
        Format::Csv => csv_rows(text),
    };
    let (mut read, mut errors) = (Vec::new(), Vec::new());
    if let Some((_, Ok(first))) = rows.first()
        && let Some(count) = first.get(COUNT).filter(|_| first.len() == 1).and_then(Value::as_u64)
    {
        drop(rows.remove(0));
        if count != rows.len() as u64 {
            errors.push(format!("line 1: {count} lines were exported, and {} follow", rows.len()));
        }
    }
    let app = app_of(client_id);
    for (line, row) in rows {
        let installation = row.and_then(|row| match format {
            Format::Json | Format::Csv => of_members(row, app, now),
            Format::Sdk => of_session(&row, app, now),
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

/// The first line of an export of `count` installations. So an import notices that the rest is cut off.
pub(super) fn write_count(count: usize) -> String {
    format!("{}\n", json!({ COUNT: count }))
}

/// The id of the app: the part of its client id before the dash.
fn app_of(client_id: &str) -> &str {
    client_id.split('-').next().unwrap_or(client_id)
}

/// Writes an installation of the app with this client id as one line of JSON.
pub(super) fn write(installation: &Portable, client_id: &str) -> Redacted {
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
        "app": app_of(client_id),
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
    if names.is_empty() || names.iter().any(|name| plain(name).is_none()) {
        return vec![(1, Err(format!("the first line must name the columns: {NAMES}")))];
    }
    let mut seen = HashSet::new();
    if let Some(twice) = names.iter().filter_map(plain).find(|name| !seen.insert(*name)) {
        return vec![(1, Err(format!("two columns mean {twice}")))];
    }
    let mut lines = Lines::of(text);
    let read = |record: Result<csv::StringRecord, csv::Error>| {
        let record = match record {
            Ok(record) => record,
            Err(error) => return (lines.at(error.position()), Err("not CSV".to_owned())),
        };
        let line = lines.at(record.position());
        if record.len() != names.len() {
            return (line, Err(format!("{} columns instead of {}", record.len(), names.len())));
        }
        let filled = names.iter().zip(record.iter()).filter(|(_, value)| !value.is_empty());
        (line, Ok(filled.map(|(name, value)| (name.to_owned(), Value::from(value))).collect()))
    };
    reader.records().map(read).collect()
}

/// The numbers of lines in a text. The reader of CSV counts the line break before a record, and blank lines, to the record.
struct Lines<'a> {
    text: &'a [u8],
    /// The bytes before this one are counted.
    counted: usize,
    line: u64,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        Self { text: text.as_bytes(), counted: 0, line: 1 }
    }

    /// The number of the line of a record. The positions must ascend.
    fn at(&mut self, position: Option<&csv::Position>) -> u64 {
        let from = position.and_then(|position| usize::try_from(position.byte()).ok()).unwrap_or(self.counted);
        let is_break = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let rest = self.text.get(from..).unwrap_or_default();
        let start = from + rest.iter().take_while(|byte| is_break(byte)).count();
        let passed = self.text.get(self.counted..start).unwrap_or_default();
        self.line += (passed.split(|byte| *byte == b'\n').count() - 1) as u64;
        self.counted = start;
        self.line
    }
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
fn of_members(row: Row, app: &str, now: Millis) -> Result<Portable, String> {
    let mut members = HashMap::new();
    for (name, value) in row {
        let Some(known) = plain(&name) else {
            // A name may be a token, if somebody has mixed up the two.
            return Err(format!("a member has another name than {NAMES}"));
        };
        if value.is_null() {
            continue;
        }
        if members.insert(known, value).is_some() {
            return Err(format!("two members mean {known}"));
        }
    }
    expect_app("app", members.get("app"), app)?;
    let resource = resource(members.get("resource"), members.get("class"))?;
    let company = members.get("company").map(company).transpose()?;
    portable(resource, company, &Members(&members), now)
}

/// Reads a document of the official SDK (collection `application_sessions`). Members with other names are ignored, also
/// `createdAt`: it is the time of the first install, and the app may have been uninstalled and installed again since.
fn of_session(row: &Row, app: &str, now: Millis) -> Result<Portable, String> {
    let text = |name: &str| row.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    expect_app("applicationId", row.get("applicationId").filter(|value| !value.is_null()), app)?;
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
    ];
    portable(resource, company, &Members(&members.into_iter().flatten().collect()), now)
}

/// Tokens of another app must not take the place of this app's.
fn expect_app(name: &str, found: Option<&Value>, app: &str) -> Result<(), String> {
    match found.map(|found| found.as_str().map(|id| app_of(id.trim()))) {
        None => Ok(()),
        Some(found) if found == Some(app) => Ok(()),
        Some(_) => Err(format!("{name} is another app than the app secret's client_id")),
    }
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

    /// A time that has passed. The other system's clock may be a little ahead.
    fn past(&self, name: &'static str, shown: &str, now: Millis) -> Result<Option<Millis>, String> {
        match self.time(name, shown)? {
            Some(at) if at > now + AHEAD => Err(format!("{shown} is in the future")),
            at => Ok(at.map(|at| at.min(now))),
        }
    }

    /// The end of the access token's life. A time after the longest life is not that end, and would make every pair seem
    /// newer than the stored one.
    fn expiry(&self, now: Millis) -> Result<Option<Millis>, String> {
        match self.time("expiresat", "expires_at")? {
            Some(at) if at > now + LONGEST_LIFE + AHEAD => {
                Err("expires_at is more than a day ahead: it must be the end \
                of the access token's life, not of the refresh token's, in UTC, and in seconds or milliseconds"
                    .to_owned())
            }
            at => Ok(at),
        }
    }
}

/// The scopes, separated by spaces. Other characters are refused: after a stray quote in CSV, the next rows with their
/// tokens would be read as a scope.
fn scope(value: Option<&Value>) -> Result<Option<String>, String> {
    let wrong = || "scope is not a list of scopes, such as contacts.readonly".to_owned();
    let words: Vec<&str> = match value {
        None => return Ok(None),
        Some(Value::String(scopes)) => scopes.split([' ', ',']).filter(|scope| !scope.is_empty()).collect(),
        Some(Value::Array(scopes)) => scopes.iter().map(Value::as_str).collect::<Option<_>>().ok_or_else(wrong)?,
        Some(_) => return Err(wrong()),
    };
    let is_scope = |word: &&str| {
        (1..=LONGEST_SCOPE).contains(&word.len())
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._/:-".contains(&byte))
    };
    let scopes = words.join(" ");
    if !words.iter().all(is_scope) || scopes.len() > LONGEST_SCOPES {
        return Err(wrong());
    }
    Ok((!scopes.is_empty()).then_some(scopes))
}

fn portable(
    resource: Resource,
    company: Option<String>,
    members: &Members<'_>,
    now: Millis,
) -> Result<Portable, String> {
    let refresh = members.token("refreshtoken", "refresh_token")?;
    let access = members.token("accesstoken", "access_token")?;
    let issued_at = members.past("issuedat", "issued_at", now)?;
    let expires_at = members.expiry(now)?;
    let installed_at = members.past("installedat", "installed_at", now)?;
    let scope = scope(members.0.get("scope"))?;
    let company = match resource.kind() {
        Kind::Location => company,
        Kind::Company if company.as_deref().is_some_and(|company| company != resource.id()) => {
            return Err("company is another company than the resource".to_owned());
        }
        Kind::Company => Some(resource.id().to_owned()),
    };
    let is_minted = refresh.is_none() && resource.kind() == Kind::Location && company.is_some();
    let pair = match refresh {
        Some(refresh) => Some(Pair::received(refresh, access, expires_at, issued_at, now)),
        None if is_minted => None,
        None => {
            let why = "only a location with a company has none: its token is made from the company's";
            return Err(format!("refresh_token is missing ({why})"));
        }
    };
    let granted_at = pair.as_ref().map(|pair| pair.issued_at).filter(|at| at.0 > 0);
    let installed_at = installed_at.or(granted_at).unwrap_or(now);
    Ok(Portable { resource, company, scope, installed_at, pair })
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
    const LEAST_MILLIS: f64 = 100_000_000_000.0;
    #[expect(clippy::cast_possible_truncation, reason = "no time has more than 53 bits of milliseconds")]
    let of_number = |number: f64| {
        let millis = if number < LEAST_MILLIS { number * 1_000.0 } else { number };
        (number > 0.0).then_some(Millis(millis as i64))
    };
    match value {
        Value::Number(number) => of_number(number.as_f64()?),
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
mod tests;
