//! The segments of the platform's paths that are a location's or a company's id.

use super::Names;
use crate::relay::path::Path;
use crate::resource::Kind;

/// Beginnings of paths. `*` is any segment. Compared with the platform's whole list by a test in
/// [`crate::relay::inference`].
const BEGINNINGS: [&str; 36] = [
    "affiliate-manager/{location}",
    "brand-boards/locations/{location}",
    "brand-boards/{location}",
    "chat-widget/data/{location}",
    "chat-widget/{location}",
    "companies/{company}",
    "conversations/locations/{location}",
    "conversations/messages/*/locations/{location}",
    "emails/builder/{location}",
    "emails/locations/{location}",
    "locations/{location}",
    "marketplace/app/*/rebilling-config/location/{location}",
    "phone-system/numbers/location/{location}",
    "saas-api/public-api/agency-plans/{company}",
    "saas-api/public-api/bulk-disable-saas/{company}",
    "saas-api/public-api/bulk-enable-saas/{company}",
    "saas-api/public-api/companies/{company}/locations/{location}",
    "saas-api/public-api/enable-saas/{location}",
    "saas-api/public-api/get-saas-subscription/{location}",
    "saas-api/public-api/pause/{location}",
    "saas-api/public-api/saas-locations/{company}",
    "saas-api/public-api/update-rebilling/{company}",
    "saas-api/public-api/update-saas-subscription/{location}",
    "saas/agency-plans/{company}",
    "saas/allow-attach-rebilling/{location}",
    "saas/bulk-disable-saas/{company}",
    "saas/bulk-enable-saas/{company}",
    "saas/enable-saas/{location}",
    "saas/get-saas-subscription/{location}",
    "saas/pause/{location}",
    "saas/saas-locations/{company}",
    "saas/update-rebilling/{company}",
    "saas/update-saas-subscription/{location}",
    "snapshots/snapshot-status/*/location/{location}",
    "social-media-posting/oauth/{location}",
    "social-media-posting/{location}",
];

/// In both readings of a path: whatever one of them names must be the one that is allowed.
pub(super) fn read(path: &Path, names: &mut Names) {
    let [first, second] = path.readings();
    read_segments(first, names);
    if second != first {
        read_segments(second, names);
    }
}

fn read_segments(segments: &[String], names: &mut Names) {
    let Some(first) = segments.first().map(|segment| plain(segment)) else { return };
    let begins = |beginning: &str| {
        let name = beginning.split('/').next();
        name.is_some_and(|name| name.eq_ignore_ascii_case(first))
    };
    for beginning in BEGINNINGS.iter().filter(|beginning| begins(beginning)) {
        let mut found = Names::default();
        let mut segments = segments.iter();
        let matches = beginning.split('/').all(|part| {
            let Some(segment) = segments.next() else { return false };
            match part {
                "*" => true,
                "{location}" => is_id(segment, Kind::Location, &mut found),
                "{company}" => is_id(segment, Kind::Company, &mut found),
                name => plain(segment).eq_ignore_ascii_case(name),
            }
        });
        if matches {
            names.locations.append(&mut found.locations);
            names.companies.append(&mut found.companies);
        }
    }
}

/// A segment as a name of the platform's: routers differ in what they make of `;parameters`, and in case, too.
fn plain(segment: &str) -> &str {
    segment.split(';').next().unwrap_or_default().trim()
}

/// The platform has names in the places of ids (`/locations/search`, `/social-media-posting/statistics`), all in small
/// letters; its ids are twenty letters and digits of both cases, of which none is like that.
fn is_id(segment: &str, kind: Kind, names: &mut Names) -> bool {
    if segment.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') {
        return false;
    }
    names.add(kind, segment);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_names() {
        for (path, locations, companies) in [
            ("/locations/L1", &["L1"][..], &[][..]),
            ("/locations/L1/customFields/F1", &["L1"], &[]),
            ("/locations/search", &[], &[]),
            ("/locations", &[], &[]),
            ("/xlocations/L1", &[], &[]),
            ("/social-media-posting/L1/posts", &["L1"], &[]),
            ("/social-media-posting/oauth/L1/facebook/accounts/A1", &["L1"], &[]),
            ("/social-media-posting/oauth/google/start", &[], &[]),
            ("/social-media-posting/category/queues/Q1", &[], &[]),
            ("/saas-api/public-api/companies/C1/locations/L1/wallet-balance", &["L1"], &["C1"]),
            ("/conversations/messages/M1/locations/L1/transcription", &["L1"], &[]),
            ("/calendars/services/locations/S1", &[], &[]),
            ("/companies/C1", &[], &["C1"]),
            ("/locations/L1%2FL2", &["L1/L2", "L1"], &[]),
            ("/locations%2FL1", &["L1"], &[]),
            ("/Locations/L1", &["L1"], &[]),
            ("/locations;x=1/L1/tags", &["L1"], &[]),
            ("/%6Cocations%20/L1", &["L1"], &[]),
        ] {
            let mut names = Names::default();
            read(&Path::parse(path).expect("a path"), &mut names);
            assert_eq!((&*names.locations, &*names.companies), (&*texts(locations), &*texts(companies)), "{path}");
        }
    }

    fn texts(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }
}
