//! Reads single variables, and collects the problems of all of them.

use std::ops::RangeInclusive;

use url::Url;

use super::ConfigError;
use super::secure_url::parse_url;

/// Reads variables for [`super::read`]. An empty variable counts as absent, because templates set unused parameters to
/// `""`.
///
/// Each method that can fail gives [`ReportedProblem`] in place of a value, so that no invented value can be used. A
/// configuration calls the methods of all its variables first and uses `?` afterwards, so that every problem is found.
pub struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<String>,
}

/// Replaces a value that cannot be read. Only a [`Reader`] creates this, after recording a problem that names the
/// variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportedProblem(());

impl<'a> Reader<'a> {
    pub(super) fn new(lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { lookup, problems: Vec::new() }
    }

    /// The configuration, or all recorded problems.
    pub(super) fn finish<C>(self, config: Result<C, ReportedProblem>) -> Result<C, ConfigError> {
        config.ok().filter(|_| self.problems.is_empty()).ok_or(ConfigError(self.problems))
    }

    fn report(&mut self, problem: String) -> ReportedProblem {
        self.problems.push(problem);
        ReportedProblem(())
    }

    /// The text of an optional variable.
    pub fn optional(&self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// The text of a required variable.
    ///
    /// # Errors
    /// The variable is absent.
    pub fn required(&mut self, name: &str) -> Result<String, ReportedProblem> {
        self.optional(name).ok_or_else(|| self.report(format!("{name} is not set")))
    }

    /// An optional URL to which tokens and secrets may be sent: [`parse_url`].
    ///
    /// # Errors
    /// The URL is malformed or not secure.
    pub fn optional_url(&mut self, name: &str) -> Result<Option<Url>, ReportedProblem> {
        let Some(text) = self.optional(name) else { return Ok(None) };
        parse_url(&text).map(Some).map_err(|why| self.report(format!("{name} {why}")))
    }

    /// The same as [`Reader::optional_url`], with a default.
    ///
    /// # Errors
    /// The URL is malformed or not secure.
    pub fn url(&mut self, name: &str, default: &str) -> Result<Url, ReportedProblem> {
        let text = self.optional(name).unwrap_or_else(|| default.to_owned());
        parse_url(&text).map_err(|why| self.report(format!("{name} {why}")))
    }

    /// The absolute path of a URL.
    ///
    /// # Errors
    /// The text is not an absolute path, or has a query or a fragment.
    pub fn path(&mut self, name: &str, default: &str) -> Result<String, ReportedProblem> {
        let path = self.optional(name).unwrap_or_else(|| default.to_owned());
        if !path.starts_with('/') || path.starts_with("//") || path.contains(['?', '#', '\\']) {
            return Err(self.report(format!("{name} must be an absolute path without query or fragment")));
        }
        Ok(path)
    }

    /// A whole number within `range`.
    ///
    /// # Errors
    /// The text is not a number, or the number is out of range.
    pub fn number(&mut self, name: &str, default: u32, range: RangeInclusive<u32>) -> Result<u32, ReportedProblem> {
        let Some(text) = self.optional(name) else { return Ok(default) };
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| {
            self.report(format!("{name} must be a whole number from {} to {}", range.start(), range.end()))
        })
    }

    /// One of several words. The first is the default.
    ///
    /// # Errors
    /// The text is none of the words.
    pub fn choice<T: Copy, const N: usize>(
        &mut self,
        name: &str,
        choices: [(&str, T); N],
    ) -> Result<T, ReportedProblem> {
        const { assert!(N > 0, "the first choice is the default") };
        let Some(text) = self.optional(name) else { return Ok(choices[0].1) };
        let chosen = choices.iter().find(|(word, _)| *word == text);
        chosen.map(|(_, value)| *value).ok_or_else(|| {
            let words = choices.map(|(word, _)| word).join(", ");
            self.report(format!("{name} must be one of: {words}"))
        })
    }

    /// An optional value in a form of its own. `problem` is reported after the variable's name.
    ///
    /// # Errors
    /// `parse` rejects the text.
    pub fn parsed<T>(
        &mut self,
        name: &str,
        problem: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ReportedProblem> {
        let Some(text) = self.optional(name) else { return Ok(None) };
        parse(&text).map(Some).ok_or_else(|| self.report(format!("{name} {problem}")))
    }
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;

    /// The problems of a configuration that consists of the variable `X`.
    fn problems<T>(text: &str, value: impl FnOnce(&mut Reader<'_>) -> Result<T, ReportedProblem>) -> Vec<String> {
        let lookup = |name: &str| (name == "X").then(|| text.to_owned());
        read(&lookup, value).err().map(|error| error.problems().to_vec()).unwrap_or_default()
    }

    #[test]
    fn a_malformed_value_has_no_substitute() {
        assert_eq!(problems(" ", |env| env.required("X")), ["X is not set"]);
        assert_eq!(problems("nonsense", |env| env.url("X", "https://example.com")), ["X is not a URL"]);
        assert_eq!(problems("ftp://example.com", |env| env.optional_url("X")), ["X must be an https URL"]);
        let path = "X must be an absolute path without query or fragment";
        assert_eq!(problems("//evil.example", |env| env.path("X", "/")), [path]);
        assert_eq!(problems("4", |env| env.number("X", 2, 1..=3)), ["X must be a whole number from 1 to 3"]);
        assert_eq!(problems("maybe", |env| env.choice("X", [("yes", 1), ("no", 2)])), ["X must be one of: yes, no"]);
        assert_eq!(problems("a", |env| env.parsed("X", "must be short", |_| None::<u8>)), ["X must be short"]);
    }

    #[test]
    fn an_empty_value_is_the_default() {
        let absent = |_: &str| Some(" ".to_owned());
        assert_eq!(read(&absent, |env| env.number("X", 2, 1..=3)), Ok(2));
        assert_eq!(read(&absent, |env| env.choice("X", [("yes", 1), ("no", 2)])), Ok(1));
        assert_eq!(read(&absent, |env| env.path("X", "/default")).as_deref(), Ok("/default"));
        assert_eq!(read(&absent, |env| env.optional_url("X")), Ok(None));
        assert_eq!(read(&absent, |env| env.parsed("X", "must be short", |_| None::<u8>)), Ok(None));
    }

    #[test]
    fn a_problem_of_a_value_that_is_not_used_counts() {
        let unused = |env: &mut Reader<'_>| {
            let _not_used = env.optional_url("X");
            Ok(())
        };
        assert_eq!(problems("nonsense", unused), ["X is not a URL"]);
        assert!(problems("https://example.com", unused).is_empty());
    }
}
