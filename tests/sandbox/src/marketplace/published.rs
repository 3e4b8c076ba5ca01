//! The operations that the platform has published: method, path, and the class of token that each operation accepts.

use std::sync::LazyLock;

use super::grants::Resource;

/// The platform's list, with one operation per line.
const OPERATIONS: &str = include_str!("../../../it/data/operations.tsv");

/// One operation.
#[derive(Debug)]
pub(super) struct Operation {
    is_v3: bool,
    method: &'static str,
    segments: Vec<&'static str>,
    locations: bool,
    companies: bool,
}

impl Operation {
    /// Returns the operation of a request in v2 or v3. The error is true if the other version has such an operation.
    pub(super) fn of(method: &str, path: &str, is_v3: bool) -> Result<&'static Self, bool> {
        static ALL: LazyLock<Vec<Operation>> = LazyLock::new(|| OPERATIONS.lines().skip(1).filter_map(read).collect());
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let fitting = || ALL.iter().filter(|operation| operation.method == method && operation.fits(&segments));
        let of_version = fitting().filter(|operation| operation.is_v3 == is_v3);
        // Prefers `/locations/search` to `/locations/{locationId}`.
        let found =
            of_version.min_by_key(|operation| operation.segments.iter().filter(|part| part.starts_with('{')).count());
        found.ok_or_else(|| fitting().next().is_some())
    }

    fn fits(&self, segments: &[&str]) -> bool {
        let mut pairs = self.segments.iter().zip(segments);
        self.segments.len() == segments.len() && pairs.all(|(part, segment)| part.starts_with('{') || part == segment)
    }

    /// Returns true if the operation accepts a token of this resource's class.
    pub(super) fn takes(&self, resource: &Resource) -> bool {
        match resource {
            Resource::Location(_) => self.locations,
            Resource::Company(_) => self.companies,
        }
    }
}

fn read(line: &'static str) -> Option<Operation> {
    let is_v3 = line.starts_with("v3");
    let mut fields = line.split('\t').skip(2);
    let (method, path, classes) = (fields.next()?, fields.next()?, fields.next()?);
    let is_agencys = |class: &str| class.starts_with("Agency-Access");
    // For an operation without a class, the list says only that a token is needed.
    let companies = classes.split('+').any(|class| is_agencys(class) || class == "bearer" || class == "-");
    let locations = !classes.split('+').all(is_agencys);
    let segments = path.split('/').filter(|segment| !segment.is_empty()).collect();
    Some(Operation { is_v3, method, segments, locations, companies })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_has_its_token_class() {
        let (location, company) = (Resource::Location("L".into()), Resource::Company("C".into()));
        for (method, path, is_v3, takes) in [
            ("GET", "/calendars/", false, Ok((true, true))),
            ("GET", "/calendars/", true, Ok((true, true))),
            ("GET", "/locations/search", false, Ok((true, true))),
            ("DELETE", "/locations/L", false, Ok((false, true))),
            ("GET", "/payments/orders/7", false, Ok((true, false))),
            ("GET", "/chat-widget/list", true, Ok((true, false))),
            ("GET", "/chat-widget/list", false, Err(true)),
            ("GET", "/users/", true, Err(true)),
            ("PATCH", "/calendars/", false, Err(false)),
            ("GET", "/echo", true, Err(false)),
        ] {
            let found = Operation::of(method, path, is_v3);
            assert_eq!(found.map(|o| (o.takes(&location), o.takes(&company))), takes, "{method} {path} {is_v3}");
        }
    }
}
