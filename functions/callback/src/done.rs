//! The parameters of the page after an installation. They are two markers in the page's URL. A changed marker changes
//! the page's text and nothing else.

use shared::domain::resource::Kind;

use crate::authorize::Marketplace;
use crate::query::parameter;
use crate::route;

/// A finished installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The kind of resource that was connected. `None` if the URL does not name it.
    pub kind: Option<Kind>,
    /// The marketplace host that the installation was started on.
    pub marketplace: Marketplace,
}

impl Done {
    /// The path and query of the page.
    pub fn path(self) -> String {
        let markers = [
            self.kind.map(|kind| format!("for={}", kind.as_str())),
            (self.marketplace == Marketplace::WhiteLabel).then(|| "via=white-label".to_owned()),
        ];
        let query: Vec<_> = markers.into_iter().flatten().collect();
        if query.is_empty() { route::DONE.to_owned() } else { format!("{}?{}", route::DONE, query.join("&")) }
    }

    /// Reads the query of the page. An unknown marker counts as absent.
    pub fn read(query: &str) -> Self {
        let marker = |name| parameter(query, name).ok().flatten();
        let kind = match marker("for").as_deref() {
            Some("location") => Some(Kind::Location),
            Some("company") => Some(Kind::Company),
            _ => None,
        };
        let white_label = marker("via").as_deref() == Some("white-label");
        Self { kind, marketplace: if white_label { Marketplace::WhiteLabel } else { Marketplace::Standard } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_markers_are_read_and_others_are_ignored() {
        for kind in [None, Some(Kind::Location), Some(Kind::Company)] {
            for marketplace in [Marketplace::Standard, Marketplace::WhiteLabel] {
                let done = Done { kind, marketplace };
                let path = done.path();
                let query = path.split_once('?').map_or("", |(_, query)| query);
                assert_eq!(Done::read(query), done, "{path}");
            }
        }
        let nothing = Done { kind: None, marketplace: Marketplace::Standard };
        for query in ["for=<script>", "for=company&for=company", "for=Company", "via=x", "%00"] {
            assert_eq!(Done::read(query), nothing, "{query}");
        }
    }
}
