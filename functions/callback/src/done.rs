//! What the page after an installation has to know. It travels in that page's URL, so it is nothing but two markers:
//! whoever changes them sees other words and nothing else.

use shared::domain::resource::Kind;

use crate::authorize::Entrance;
use crate::query::parameter;
use crate::route;

/// An installation that is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// What was connected; unknown where someone opened the page by hand.
    pub kind: Option<Kind>,
    /// Through which of the marketplace's hosts.
    pub entrance: Entrance,
}

impl Done {
    /// The path and query of the page.
    #[must_use]
    pub fn path(self) -> String {
        let markers = [
            self.kind.map(|kind| format!("for={}", kind.as_str())),
            (self.entrance == Entrance::WhiteLabel).then(|| "via=white-label".to_owned()),
        ];
        let query: Vec<_> = markers.into_iter().flatten().collect();
        if query.is_empty() { route::DONE.to_owned() } else { format!("{}?{}", route::DONE, query.join("&")) }
    }

    /// Reads the query of the page. What is not one of the known markers counts as absent.
    #[must_use]
    pub fn read(query: &str) -> Self {
        let marker = |name| parameter(query, name).ok().flatten();
        let kind = match marker("for").as_deref() {
            Some("location") => Some(Kind::Location),
            Some("company") => Some(Kind::Company),
            _ => None,
        };
        let white_label = marker("via").as_deref() == Some("white-label");
        Self { kind, entrance: if white_label { Entrance::WhiteLabel } else { Entrance::Standard } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_come_back_and_anything_else_is_nothing() {
        for kind in [None, Some(Kind::Location), Some(Kind::Company)] {
            for entrance in [Entrance::Standard, Entrance::WhiteLabel] {
                let done = Done { kind, entrance };
                let path = done.path();
                let query = path.split_once('?').map_or("", |(_, query)| query);
                assert_eq!(Done::read(query), done, "{path}");
            }
        }
        let nothing = Done { kind: None, entrance: Entrance::Standard };
        for query in ["for=<script>", "for=company&for=company", "for=Company", "via=x", "%00"] {
            assert_eq!(Done::read(query), nothing, "{query}");
        }
    }
}
