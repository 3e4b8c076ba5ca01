//! The platform's operations, as far as the relay must know them: one table, and one way in which a path is compared.
//!
//! Nearly all of the 1,203 published operations take a location's token, the same `Version`, and name their location in
//! query or body. The table has the rules for the others. A test compares it with the published list
//! (`tests/it/data/operations.tsv`).

use http::Method;

use crate::domain::resource::Kind;

/// The version that the platform's documents name for most operations…
const USUAL: &str = "2021-07-28";
/// …and for the older ones.
const OLDER: &str = "2021-04-15";

/// The two readings of a path: [`crate::request::path::Path::readings`].
type Readings = [Vec<String>; 2];

/// What is known of the operations that a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fact {
    /// The platform takes them with a company's token only.
    CompanyOnly,
    /// The `Version` that the platform's documents name.
    Version(&'static str),
    /// The member `altId` is the caller's own id of what it sends, and no account.
    OwnAltId,
}
use Fact::{CompanyOnly, OwnAltId, Version};

/// Methods, a pattern of paths, and what is known of them besides the ids in the path.
type Rule = (&'static [Method], &'static str, &'static [Fact]);

const ANY: &[Method] = &[];
const GET: Method = Method::GET;
const POST: Method = Method::POST;
const PUT: Method = Method::PUT;
const DELETE: Method = Method::DELETE;

/// The segments of a pattern: `*` is any segment; `{location}` and `{company}` are the id of one; `**`, at the end, is any
/// number of segments, none included.
///
/// `GET /locations/{id}/permissions` and `POST /objects` are not here: one source says that they are for a company's
/// token, another that a location's works. The platform decides.
const TABLE: &[Rule] = &[
    (ANY, "affiliate-manager/{location}/**", &[]),
    (ANY, "agent-studio/**", &[Version(OLDER)]),
    (ANY, "brand-boards/locations/{location}/**", &[]),
    (ANY, "brand-boards/{location}/**", &[]),
    (ANY, "calendars/**", &[Version(OLDER)]),
    (ANY, "chat-widget/data/{location}/**", &[]),
    (ANY, "chat-widget/{location}/**", &[]),
    (&[GET], "companies/*", &[CompanyOnly]),
    (ANY, "companies/{company}/**", &[]),
    (ANY, "conversation-ai/**", &[Version(OLDER)]),
    (ANY, "conversations/**", &[Version(OLDER)]),
    (ANY, "conversations/locations/{location}/**", &[]),
    (ANY, "conversations/messages/*/locations/{location}/**", &[]),
    (&[POST], "conversations/messages/inbound", &[OwnAltId]),
    (&[POST], "conversations/messages/outbound", &[OwnAltId]),
    (&[GET, POST, PUT, DELETE], "custom-menus/**", &[CompanyOnly]),
    (ANY, "emails/builder/{location}/**", &[]),
    (ANY, "emails/locations/{location}/**", &[]),
    (ANY, "knowledge-base/**", &[Version(OLDER)]),
    (ANY, "knowledge-bases/**", &[Version(OLDER)]),
    (ANY, "links/search/**", &[Version(OLDER)]),
    (&[POST], "locations", &[CompanyOnly]),
    (&[PUT, DELETE], "locations/*", &[CompanyOnly]),
    (&[PUT], "locations/*/permissions", &[CompanyOnly]),
    (ANY, "locations/{location}/**", &[]),
    (ANY, "marketplace/app/*/rebilling-config/location/{location}/**", &[]),
    (ANY, "phone-system/numbers/location/{location}/**", &[]),
    (ANY, "saas-api/**", &[Version(OLDER)]),
    (&[GET, POST, PUT], "saas-api/**", &[CompanyOnly]),
    (ANY, "saas-api/public-api/agency-plans/{company}/**", &[]),
    (ANY, "saas-api/public-api/bulk-disable-saas/{company}/**", &[]),
    (ANY, "saas-api/public-api/bulk-enable-saas/{company}/**", &[]),
    (ANY, "saas-api/public-api/companies/{company}/locations/{location}/**", &[]),
    (ANY, "saas-api/public-api/enable-saas/{location}/**", &[]),
    (ANY, "saas-api/public-api/get-saas-subscription/{location}/**", &[]),
    (ANY, "saas-api/public-api/pause/{location}/**", &[]),
    (ANY, "saas-api/public-api/saas-locations/{company}/**", &[]),
    (ANY, "saas-api/public-api/update-rebilling/{company}/**", &[]),
    (ANY, "saas-api/public-api/update-saas-subscription/{location}/**", &[]),
    (ANY, "saas/**", &[Version(OLDER)]),
    (&[GET, POST, PUT], "saas/**", &[CompanyOnly]),
    (ANY, "saas/agency-plans/{company}/**", &[]),
    (ANY, "saas/allow-attach-rebilling/{location}/**", &[]),
    (ANY, "saas/bulk-disable-saas/{company}/**", &[]),
    (ANY, "saas/bulk-enable-saas/{company}/**", &[]),
    (ANY, "saas/enable-saas/{location}/**", &[]),
    (ANY, "saas/get-saas-subscription/{location}/**", &[]),
    (ANY, "saas/pause/{location}/**", &[]),
    (ANY, "saas/saas-locations/{company}/**", &[]),
    (ANY, "saas/update-rebilling/{company}/**", &[]),
    (ANY, "saas/update-saas-subscription/{location}/**", &[]),
    (&[GET, POST], "snapshots/**", &[CompanyOnly]),
    (ANY, "snapshots/snapshot-status/*/location/{location}/**", &[]),
    (ANY, "social-media-posting/oauth/{location}/**", &[]),
    (ANY, "social-media-posting/{location}/**", &[]),
    (&[POST], "users/search/filter-by-email", &[CompanyOnly]),
    (ANY, "voice-ai/**", &[Version(OLDER)]),
];

/// Whether the platform takes an operation with a company's token only.
///
/// Where routers could read the path differently both readings must say so: a call that may be meant otherwise is the
/// platform's to refuse.
#[must_use]
pub fn needs_company(method: &Method, path: &Readings) -> bool {
    path.iter()
        .all(|segments| rules(method, segments).any(|(facts, found)| found.exact && facts.contains(&CompanyOnly)))
}

/// The version that the platform's documents name for an operation.
#[must_use]
pub fn version(method: &Method, [path, _]: &Readings) -> &'static str {
    let facts = rules(method, path).filter(|(_, found)| found.exact).flat_map(|(facts, _)| facts);
    let mut versions = facts.filter_map(|fact| if let Version(version) = fact { Some(*version) } else { None });
    versions.next().unwrap_or(USUAL)
}

/// Whether the member `altId` of an operation names an account.
#[must_use]
pub fn alt_id_names_an_account(method: &Method, path: &Readings) -> bool {
    !path.iter().any(|segments| rules(method, segments).any(|(facts, _)| facts.contains(&OwnAltId)))
}

/// Tells each id that stands in a path, in either reading: whatever one of them names must be the one that is allowed.
pub fn ids_in_path<'a>(method: &Method, [first, second]: &'a Readings, mut tell: impl FnMut(Kind, &'a str)) {
    let readings = [Some(first), (second != first).then_some(second)];
    for (_, found) in readings.into_iter().flatten().flat_map(|segments| rules(method, segments)) {
        found.ids.into_iter().flatten().for_each(|(kind, id)| tell(kind, id));
    }
}

/// A path that a pattern fits.
struct Found<'a> {
    /// Whether the names in it are written as the platform writes them.
    exact: bool,
    /// No pattern has more ids than these.
    ids: [Option<(Kind, &'a str)>; 2],
}

/// The rules that are for a request.
fn rules<'a>(method: &Method, segments: &'a [String]) -> impl Iterator<Item = (&'static [Fact], Found<'a>)> {
    TABLE.iter().filter_map(move |(methods, pattern, facts)| {
        let found = fit(pattern, segments)?;
        (methods.is_empty() || methods.contains(method)).then_some((*facts, found))
    })
}

/// Compares a path with a pattern.
///
/// Routers differ in case and in what they make of `;parameters`, so a path fits in spite of these; [`Found::exact`] says
/// whether it has to.
fn fit<'a>(pattern: &str, segments: &'a [String]) -> Option<Found<'a>> {
    let mut found = Found { exact: true, ids: [None, None] };
    let mut ids = found.ids.iter_mut();
    let mut segments = segments.iter();
    for part in pattern.split('/') {
        if part == "**" {
            return Some(found);
        }
        let segment = segments.next()?;
        let kind = match part {
            "*" => continue,
            "{location}" => Kind::Location,
            "{company}" => Kind::Company,
            name if segment == name => continue,
            name if plain(segment).eq_ignore_ascii_case(name) => {
                found.exact = false;
                continue;
            }
            _ => return None,
        };
        if is_name(segment) {
            return None;
        }
        if let Some(id) = ids.next() {
            *id = Some((kind, segment.as_str()));
        }
    }
    segments.next().is_none().then_some(found)
}

/// A segment as a name of the platform's.
fn plain(segment: &str) -> &str {
    segment.split(';').next().unwrap_or_default().trim()
}

/// The platform has names in the places of ids (`/locations/search`, `/social-media-posting/statistics`), all in small
/// letters; its ids are twenty letters and digits of both cases, of which none is like that.
fn is_name(segment: &str) -> bool {
    segment.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::path::Path;

    fn path(text: &str) -> Path {
        Path::parse(text).expect("a path")
    }

    /// One line of the platform's published list.
    struct Published {
        generation: &'static str,
        method: Method,
        template: &'static str,
        classes: &'static str,
        version: &'static str,
        path: Path,
    }

    fn published() -> impl Iterator<Item = Published> {
        include_str!("../../../tests/it/data/operations.tsv").lines().skip(1).map(|line| {
            let fields: Vec<_> = line.split('\t').collect();
            Published {
                generation: fields[0],
                method: fields[2].parse().expect("a method"),
                template: fields[3],
                classes: fields[4],
                version: fields[5],
                path: path(&fields[3].replace(['{', '}'], "")),
            }
        })
    }

    /// Operations whose sources disagree about the class of the token.
    const DISPUTED: [(Method, &str); 2] = [(GET, "/locations/{locationId}/permissions"), (POST, "/objects/")];

    #[test]
    fn the_class_of_the_token_is_that_of_the_published_operations() {
        let (mut companys, mut others, mut disputed) = (0, 0, 0);
        for Published { method, template, classes, path, .. } in published() {
            // Never relayed.
            if template.starts_with("/oauth/") {
                continue;
            }
            let is_disputed = DISPUTED.contains(&(method.clone(), template));
            let expected = matches!(classes, "Agency-Access" | "Agency-Access-Only") && !is_disputed;
            *(if is_disputed {
                &mut disputed
            } else if expected {
                &mut companys
            } else {
                &mut others
            }) += 1;
            assert_eq!(needs_company(&method, path.readings()), expected, "{method} {template}: {classes}");
        }
        assert_eq!(disputed, 3, "GET permissions in v3, POST objects in v2 and v3");
        assert!(companys > 70 && others > 1_000, "only {companys} and {others} operations were looked at");
    }

    #[test]
    fn the_version_is_that_of_the_published_operations() {
        let mut seen = 0;
        let v2 = published().filter(|line| line.generation == "v2" && line.version.starts_with("2021-"));
        for Published { method, template, version: documented, path, .. } in v2 {
            assert_eq!(version(&method, path.readings()), documented, "{method} {template}");
            seen += 1;
        }
        assert!(seen > 500, "only {seen} operations were looked at");
        assert_eq!(version(&GET, path("/calendarsx").readings()), USUAL);
    }

    #[test]
    fn the_ids_in_a_path_are_those_of_the_published_operations() {
        let mut seen = 0;
        for Published { method, template, .. } in published() {
            let concrete = template.replace("{locationId}", "L1").replace("{companyId}", "C1").replace(['{', '}'], "");
            let mut expected = Vec::new();
            expected.extend(template.contains("{locationId}").then_some((Kind::Location, "L1")));
            expected.extend(template.contains("{companyId}").then_some((Kind::Company, "C1")));
            let concrete = path(&concrete);
            let mut found = Vec::new();
            ids_in_path(&method, concrete.readings(), |kind, id| found.push((kind, id)));
            // Where another thing's id stands in the place of a location's, it is taken for one: `/emails/builder/{id}`.
            found.retain(|(_, id)| matches!(*id, "L1" | "C1"));
            found.dedup();
            for id in &expected {
                assert!(found.contains(id), "{method} {template}: {found:?}");
            }
            seen += usize::from(!expected.is_empty());
        }
        assert!(seen > 200, "only {seen} operations were looked at");
    }

    #[test]
    fn alt_id_names_an_account_but_where_it_is_the_callers_own() {
        let own: Vec<_> = published()
            .filter(|line| !alt_id_names_an_account(&line.method, line.path.readings()))
            .map(|line| format!("{} {} {}", line.generation, line.method, line.template))
            .collect();
        assert_eq!(
            own,
            [
                "v2 POST /conversations/messages/inbound",
                "v2 POST /conversations/messages/outbound",
                "v3 POST /conversations/messages/inbound",
                "v3 POST /conversations/messages/outbound",
            ]
        );
        assert!(!alt_id_names_an_account(&POST, path("/Conversations/messages/inbound/").readings()));
        assert!(alt_id_names_an_account(&GET, path("/conversations/messages/inbound").readings()));
    }

    #[test]
    fn ids_are_told_from_names() {
        let (location, company) = (Kind::Location, Kind::Company);
        for (text, expected) in [
            ("/locations/L1", &[(location, "L1")][..]),
            ("/locations/L1/customFields/F1", &[(location, "L1")]),
            ("/locations/search", &[]),
            ("/locations", &[]),
            ("/xlocations/L1", &[]),
            ("/social-media-posting/L1/posts", &[(location, "L1")]),
            ("/social-media-posting/oauth/L1/facebook/accounts/A1", &[(location, "L1")]),
            ("/social-media-posting/oauth/google/start", &[]),
            ("/social-media-posting/category/queues/Q1", &[]),
            ("/saas-api/public-api/companies/C1/locations/L1/wallet-balance", &[(company, "C1"), (location, "L1")]),
            ("/conversations/messages/M1/locations/L1/transcription", &[(location, "L1")]),
            ("/calendars/services/locations/S1", &[]),
            ("/companies/C1", &[(company, "C1")]),
            ("/locations/L1%2FL2", &[(location, "L1/L2"), (location, "L1")]),
            ("/locations%2FL1", &[(location, "L1")]),
            ("/Locations/L1", &[(location, "L1")]),
            ("/locations;x=1/L1/tags", &[(location, "L1")]),
            ("/%6Cocations%20/L1", &[(location, "L1")]),
        ] {
            let path = path(text);
            let mut found = Vec::new();
            ids_in_path(&GET, path.readings(), |kind, id| found.push((kind, id)));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn a_path_that_may_be_meant_otherwise_is_the_platforms_to_refuse() {
        for (text, expected) in [
            ("/locations/L1", true),
            ("/locations/L1/", true),
            ("/Locations/L1", false),
            ("/locations;x/L1", false),
            ("/locations/L1%2Ftags", false),
            ("/locations/L1/tags", false),
        ] {
            assert_eq!(needs_company(&DELETE, path(text).readings()), expected, "{text}");
        }
    }
}
