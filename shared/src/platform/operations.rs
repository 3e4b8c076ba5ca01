//! The table of the platform's operations, and its one matcher. Pure.
//!
//! Nearly all of the 1,203 published operations take a location's token and the same `Version`, and name their location in
//! query or body. The table has the rules for the others. Tests compare it with the published list
//! (`tests/it/data/operations.tsv`).

use http::Method;

use crate::domain::resource::Kind;

/// The `Version` that the platform's documents name for most operations.
pub(super) const USUAL: &str = "2021-07-28";
/// The `Version` that the platform's documents name for older operations.
const OLDER: &str = "2021-04-15";
/// The `Version` of the operations that only v3 has.
pub(super) const V3: &str = "v3";

/// The two readings of a path, as in [`crate::request::path::Path::readings`].
type Readings = [Vec<String>; 2];

/// A property of the operations that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fact {
    /// The platform takes only a company's token.
    CompanyOnly,
    /// The `Version` that the platform's documents name.
    Version(&'static str),
    /// The member `altId` is the caller's own id of a message. In all other operations it is an account.
    OwnAltId,
}
use Fact::{CompanyOnly, OwnAltId, Version};

/// Methods (none means all), a path pattern, and the properties of the matching operations.
type Rule = (&'static [Method], &'static str, &'static [Fact]);

const ANY: &[Method] = &[];
const GET: Method = Method::GET;
const POST: Method = Method::POST;
const PUT: Method = Method::PUT;
const DELETE: Method = Method::DELETE;

/// All rules. In a pattern, `*` matches any segment, `{location}` and `{company}` match the id of one, and `**` at the end
/// matches any number of segments, also none.
///
/// `GET /locations/{id}/permissions` and `POST /objects` have no rule: one source says that they need a company's token,
/// another says that a location's token works. Such requests are sent, and the platform decides.
const TABLE: &[Rule] = &[
    (ANY, "affiliate-manager/{location}/**", &[]),
    (&[GET], "ad-publishing/facebook/campaigns/*/publishing-progress", &[Version(V3)]),
    (ANY, "agent-studio/**", &[Version(OLDER)]),
    (ANY, "brand-boards/locations/{location}/**", &[]),
    (ANY, "brand-boards/locations/*/brand-voices/**", &[Version(V3)]),
    (ANY, "brand-boards/{location}/**", &[]),
    (ANY, "calendars/**", &[Version(OLDER)]),
    (&[GET, POST, PUT], "calendars/schedules/event-calendar/*", &[Version(V3)]),
    (ANY, "calendars/services/**", &[Version(V3)]),
    (ANY, "chat-widget/**", &[Version(V3)]),
    (ANY, "chat-widget/data/{location}/**", &[]),
    (ANY, "chat-widget/{location}/**", &[]),
    (&[GET], "companies/*", &[CompanyOnly]),
    (ANY, "companies/{company}/**", &[]),
    (&[DELETE], "contacts/*/campaigns/remove-all", &[Version(V3)]),
    (ANY, "conversation-ai/**", &[Version(OLDER)]),
    (ANY, "conversations/**", &[Version(OLDER)]),
    (ANY, "conversations/locations/{location}/**", &[]),
    (ANY, "conversations/messages/*/locations/{location}/**", &[]),
    (&[PUT], "conversations/messages/email/*/status", &[Version(V3)]),
    (&[POST], "conversations/messages/inbound", &[OwnAltId]),
    (&[POST], "conversations/messages/outbound", &[OwnAltId]),
    (&[GET, POST, PUT, DELETE], "custom-menus/**", &[CompanyOnly]),
    (ANY, "emails/builder/{location}/**", &[]),
    (ANY, "emails/locations/{location}/**", &[Version(V3)]),
    (ANY, "knowledge-base/**", &[Version(OLDER)]),
    (ANY, "knowledge-bases/**", &[Version(OLDER)]),
    (ANY, "links/search/**", &[Version(OLDER)]),
    (&[POST], "locations", &[CompanyOnly]),
    (&[PUT, DELETE], "locations/*", &[CompanyOnly]),
    (&[GET], "locations/*/conversationChannels/*", &[Version(V3)]),
    (&[GET], "locations/*/permissions", &[Version(V3)]),
    (&[PUT], "locations/*/permissions", &[CompanyOnly, Version(V3)]),
    (ANY, "locations/{location}/**", &[]),
    (ANY, "marketplace/app/*/rebilling-config/location/{location}/**", &[]),
    (ANY, "phone-system/numbers/location/{location}/**", &[]),
    (ANY, "saas-api/**", &[Version(OLDER)]),
    (&[GET, POST, PUT], "saas-api/**", &[CompanyOnly]),
    (ANY, "saas-api/public-api/agency-plans/{company}/**", &[]),
    (ANY, "saas-api/public-api/bulk-disable-saas/{company}/**", &[]),
    (ANY, "saas-api/public-api/bulk-enable-saas/{company}/**", &[]),
    (ANY, "saas-api/public-api/companies/{company}/locations/{location}/**", &[Version(V3)]),
    (ANY, "saas-api/public-api/enable-saas/{location}/**", &[]),
    (ANY, "saas-api/public-api/get-saas-subscription/{location}/**", &[]),
    (ANY, "saas-api/public-api/pause/{location}/**", &[]),
    (ANY, "saas-api/public-api/saas-locations/{company}/**", &[]),
    (ANY, "saas-api/public-api/update-rebilling/{company}/**", &[]),
    (ANY, "saas-api/public-api/update-saas-subscription/{location}/**", &[]),
    (ANY, "saas/**", &[Version(OLDER)]),
    (&[GET, POST, PUT], "saas/**", &[CompanyOnly]),
    (ANY, "saas/agency-plans/{company}/**", &[]),
    (ANY, "saas/allow-attach-rebilling/{location}/**", &[Version(V3)]),
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
    (ANY, "social-media-posting/category/queues/**", &[Version(V3)]),
    (ANY, "social-media-posting/comments/**", &[Version(V3)]),
    (ANY, "social-media-posting/oauth/{location}/**", &[]),
    (&[GET, POST], "social-media-posting/oauth/*/*/accounts/*", &[Version(V3)]),
    (&[GET, POST], "social-media-posting/oauth/*/facebook/accounts/*", &[Version(USUAL)]),
    (&[GET, POST], "social-media-posting/oauth/*/instagram/accounts/*", &[Version(USUAL)]),
    (&[GET, POST], "social-media-posting/oauth/*/linkedin/accounts/*", &[Version(USUAL)]),
    (&[GET], "social-media-posting/oauth/*/tiktok-business/accounts/*", &[Version(USUAL)]),
    (&[GET, POST], "social-media-posting/oauth/*/tiktok/accounts/*", &[Version(USUAL)]),
    (&[GET, POST], "social-media-posting/oauth/*/twitter/accounts/*", &[Version(USUAL)]),
    (&[GET], "social-media-posting/oauth/*/start", &[Version(V3)]),
    (&[GET], "social-media-posting/oauth/facebook/start", &[Version(USUAL)]),
    (&[GET], "social-media-posting/oauth/google/start", &[Version(USUAL)]),
    (&[GET], "social-media-posting/oauth/instagram/start", &[Version(USUAL)]),
    (&[GET], "social-media-posting/oauth/linkedin/start", &[Version(USUAL)]),
    (&[GET], "social-media-posting/oauth/tiktok-business/start", &[Version(USUAL)]),
    (&[GET], "social-media-posting/oauth/tiktok/start", &[Version(USUAL)]),
    (&[GET], "social-media-posting/oauth/twitter/start", &[Version(USUAL)]),
    (ANY, "social-media-posting/{location}/**", &[]),
    (&[POST], "users/search/filter-by-email", &[CompanyOnly]),
    (ANY, "voice-ai/**", &[Version(OLDER)]),
];

/// True if the platform takes only a company's token for an operation.
///
/// Routers may read a path in two ways. The rule must match in both: an ambiguous request is sent, and the platform
/// decides.
pub fn needs_company_token(method: &Method, path: &Readings) -> bool {
    path.iter()
        .all(|segments| rules(method, segments).any(|(facts, found)| found.exact && facts.contains(&CompanyOnly)))
}

/// The `Version` that the platform's documents name for an operation: that of v2, and `v3` for an operation that only v3
/// has. The rule with the most names in its pattern decides.
pub fn version(method: &Method, [path, _]: &Readings) -> &'static str {
    let exact = rules(method, path).filter(|(_, found)| found.exact);
    let versions = exact.filter_map(|(facts, found)| {
        let version = facts.iter().find_map(|fact| if let Version(version) = fact { Some(*version) } else { None })?;
        Some((found.names, version))
    });
    versions.max_by_key(|(names, _)| *names).map_or(USUAL, |(_, version)| version)
}

/// True if the member `altId` of an operation is an account.
pub fn alt_id_names_an_account(method: &Method, path: &Readings) -> bool {
    !path.iter().any(|segments| rules(method, segments).any(|(facts, _)| facts.contains(&OwnAltId)))
}

/// Calls `found` with each id in a path, in both readings: both must be ids that the caller is allowed to use.
pub fn ids_in_path<'a>(method: &Method, [first, second]: &'a Readings, mut found: impl FnMut(Kind, &'a str)) {
    let readings = [Some(first), (second != first).then_some(second)];
    for (_, matched) in readings.into_iter().flatten().flat_map(|segments| rules(method, segments)) {
        matched.ids.into_iter().flatten().for_each(|(kind, id)| found(kind, id));
    }
}

/// A path that matches a pattern.
struct Match<'a> {
    /// True if the names in the path are spelled as the platform spells them.
    exact: bool,
    /// The number of names in the pattern.
    names: u8,
    /// The ids in the path. No pattern has more than two.
    ids: [Option<(Kind, &'a str)>; 2],
}

/// The rules that match a request.
fn rules<'a>(method: &Method, segments: &'a [String]) -> impl Iterator<Item = (&'static [Fact], Match<'a>)> {
    TABLE.iter().filter_map(move |(methods, pattern, facts)| {
        let found = match_path(pattern, segments)?;
        (methods.is_empty() || methods.contains(method)).then_some((*facts, found))
    })
}

/// Matches a path with a pattern.
///
/// Some routers ignore case and `;parameters`, so they are ignored here too. [`Match::exact`] says if the path matches
/// without that.
fn match_path<'a>(pattern: &str, segments: &'a [String]) -> Option<Match<'a>> {
    let mut found = Match { exact: true, names: 0, ids: [None, None] };
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
            name if plain(segment).eq_ignore_ascii_case(name) => {
                found.exact &= segment == name;
                found.names += 1;
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

/// A segment without its `;parameters` and outer spaces.
fn plain(segment: &str) -> &str {
    segment.split(';').next().unwrap_or_default().trim()
}

/// True if a segment is a name and not an id. Some paths have a name in the place of an id (`/locations/search`,
/// `/social-media-posting/statistics`). All these names are in lower case; an id has twenty letters and digits of both
/// cases.
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
            assert_eq!(needs_company_token(&method, path.readings()), expected, "{method} {template}: {classes}");
        }
        assert_eq!(disputed, 3, "GET permissions in v3, POST objects in v2 and v3");
        assert!(companys > 70 && others > 1_000, "only {companys} and {others} operations were looked at");
    }

    #[test]
    fn the_version_is_that_of_the_published_operations() {
        // Two spellings of a path are one operation: the names of parameters and a slash at the end do not count.
        let key = |line: &Published| {
            let parts = line.template.trim_end_matches('/').split('/');
            let parts: Vec<_> = parts.map(|part| if part.starts_with('{') { "*" } else { part }).collect();
            (line.method.to_string(), parts.join("/"))
        };
        let in_v2: std::collections::HashSet<_> =
            published().filter(|line| line.generation == "v2").map(|l| key(&l)).collect();
        let (mut of_v2, mut only_v3, mut undocumented) = (0, 0, 0);
        for line in published() {
            let is_in_v2 = in_v2.contains(&key(&line));
            let Published { generation, method, template, version: documented, path, .. } = line;
            let added = version(&method, path.readings());
            match (generation, documented) {
                (_, "-") => undocumented += 1,
                ("v2", documented) => {
                    assert_eq!(added, documented, "{method} {template}");
                    of_v2 += 1;
                }
                // An operation of both versions is sent in v2, unless the caller says otherwise.
                _ if is_in_v2 => assert_ne!(added, V3, "{method} {template}"),
                (_, documented) => {
                    // Never relayed.
                    if !template.starts_with("/oauth/") {
                        assert_eq!(added, documented, "{method} {template}");
                        only_v3 += 1;
                    }
                }
            }
        }
        assert_eq!((of_v2, only_v3, undocumented), (547, 85, 61));
        for (text, expected) in [
            ("/calendarsx", USUAL),
            ("/calendars/services/bookings", V3),
            ("/Calendars/services/bookings", USUAL),
            ("/social-media-posting/oauth/bluesky/start", V3),
            ("/social-media-posting/oauth/facebook/start", USUAL),
            ("/social-media-posting/oauth/ve9EPM428h8vShlRW1KT/threads/accounts/A1", V3),
        ] {
            assert_eq!(version(&GET, path(text).readings()), expected, "{text}");
        }
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
            // In `/emails/builder/{id}`, another id stands in the place of a location's. It is taken for a location's.
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
            assert_eq!(needs_company_token(&DELETE, path(text).readings()), expected, "{text}");
        }
    }
}
