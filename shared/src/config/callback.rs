//! The settings of the `callback` function: the link to the authorization page, and the look of the pages.

use url::Url;

use super::{AppConfig, Reader, ReportedProblem};

/// The configuration of the `callback` function.
#[derive(Clone, Debug)]
pub struct CallbackConfig {
    /// The part that all functions have.
    pub app: AppConfig,
    /// The authorization page.
    pub authorization: Authorization,
    /// The look of the pages.
    pub brand: Brand,
}

impl CallbackConfig {
    /// Reads the variables of the `callback` function.
    ///
    /// # Errors
    /// A variable is missing or malformed.
    pub fn read(env: &mut Reader<'_>) -> Result<Self, ReportedProblem> {
        let (app, authorization, brand) = (AppConfig::read(env), Authorization::read(env), Brand::read(env));
        Ok(Self { app: app?, authorization: authorization?, brand: brand? })
    }
}

/// The rule for installations that start in the marketplace's own pages, which send no `state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarketplaceInstalls {
    /// A callback without state is accepted.
    Allow,
    /// A callback without state is refused.
    Deny,
}

/// The answer to `GET /oauth/install` if its query names none of the marketplace's hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallChoice {
    /// Redirects to the configured host.
    Direct,
    /// Shows a page on which the admin chooses the configured host or the white-label host.
    Ask,
}

/// The settings of the link to the authorization page.
#[derive(Clone, Debug)]
pub struct Authorization {
    /// Host of the consent page.
    pub marketplace: Url,
    /// Path of the consent page.
    pub path: String,
    /// Space-separated scopes for the link. `None` if the link names no scopes.
    pub scopes: Option<String>,
    /// The app's `version_id`, if one is set: see [`Authorization::version_of`].
    pub version_id: Option<String>,
    /// The value of `loginWindowOpenMode`.
    pub login_window: Option<String>,
    /// The base of the redirect URI. `None` if the base is the request's own domain and stage.
    pub public_url: Option<Url>,
    /// The rule for installs without `state`.
    pub marketplace_installs: MarketplaceInstalls,
    /// The answer to an install link that names no host.
    pub install_choice: InstallChoice,
}

/// The path of the authorization page of newer apps.
const NEWER_PAGE: &str = "/v2/oauth/chooselocation";

impl Authorization {
    /// Reads the variables of the link.
    pub fn read(env: &mut Reader<'_>) -> Result<Self, ReportedProblem> {
        let marketplace = env.url("MARKETPLACE_URL", "https://marketplace.gohighlevel.com");
        let path = env.path("AUTHORIZATION_PATH", "/oauth/chooselocation");
        let public_url = env.optional_url("PUBLIC_URL");
        let installs = [("allow", MarketplaceInstalls::Allow), ("deny", MarketplaceInstalls::Deny)];
        let marketplace_installs = env.choice("MARKETPLACE_INSTALLS", installs);
        let install_choice =
            env.choice("INSTALL_CHOICE", [("direct", InstallChoice::Direct), ("ask", InstallChoice::Ask)]);
        Ok(Self {
            marketplace: marketplace?,
            path: path?,
            scopes: env.optional("SCOPES"),
            version_id: env.optional("APP_VERSION_ID"),
            login_window: env.optional("LOGIN_WINDOW"),
            public_url: public_url?,
            marketplace_installs: marketplace_installs?,
            install_choice: install_choice?,
        })
    }

    /// The `version_id` of the link. An app that has versions cannot be installed by its `client_id` alone. If none is set
    /// and the page is that of newer apps, this is the app's id: the part of the client id before the dash, which has been
    /// seen as the id of an app's first version.
    pub fn version_of<'a>(&'a self, client_id: &'a str) -> Option<&'a str> {
        let derived = || client_id.split_once('-').map(|(app, _)| app).filter(|app| !app.is_empty());
        self.version_id.as_deref().or_else(|| if self.is_newer_page() { derived() } else { None })
    }

    /// True if the page is that of newer apps.
    pub fn is_newer_page(&self) -> bool {
        self.path == NEWER_PAGE
    }
}

/// The look of the pages that an admin reads.
#[derive(Clone, Debug, Default)]
pub struct Brand {
    /// The name that is shown above each page.
    pub name: Option<String>,
    /// Colour of the button.
    pub accent: Option<Colour>,
    /// The place where an admin finds help: an `https:` or a `mailto:` URL.
    pub support: Option<Url>,
}

impl Brand {
    fn read(env: &mut Reader<'_>) -> Result<Self, ReportedProblem> {
        let name = env.parsed("BRAND_NAME", "must be at most 60 characters without control characters", brand_name);
        let accent = env.parsed("ACCENT_COLOR", "must be a colour of the form #1d4ed8", Colour::parse);
        let support = env.parsed("SUPPORT_URL", "must be an https or a mailto URL without credentials", support_url);
        Ok(Self { name: name?, accent: accent?, support: support? })
    }
}

/// A colour of the sRGB space, `#rrggbb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour {
    /// Red, green and blue.
    pub rgb: [u8; 3],
}

impl Colour {
    /// Parses `#rrggbb`. Other forms of CSS colours are refused, because the value is written into a style sheet.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rgb = [0; 3];
        hex::decode_to_slice(text.strip_prefix('#')?, &mut rgb).ok()?;
        Some(Self { rgb })
    }
}

/// The longest brand name, in characters. The brand name is shown above each page.
const LONGEST_BRAND: usize = 60;

fn brand_name(text: &str) -> Option<String> {
    let plain = text.chars().count() <= LONGEST_BRAND && !text.chars().any(char::is_control);
    plain.then(|| text.to_owned())
}

/// Parses a link on a page. The URL must have a host or an address, and no scheme that runs code.
fn support_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let good = match url.scheme() {
        "https" => url.username().is_empty() && url.password().is_none(),
        "mailto" => url.path().contains('@'),
        _ => false,
    };
    good.then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colour_is_six_hexadecimal_digits_and_nothing_that_css_would_go_on_with() {
        assert_eq!(Colour::parse("#1d4eD8"), Some(Colour { rgb: [0x1d, 0x4e, 0xd8] }));
        for odd in ["", "#", "#fff", "1d4ed8", "#1d4ed8 ", "#1d4ed8;", "#+1+2+3", "#1d4ed", "#é1d4e", "red}*{"] {
            assert_eq!(Colour::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_support_link_leads_to_a_page_or_an_address() {
        for (text, good) in [
            ("https://example.com/help?from=install#top", true),
            ("mailto:help@example.com?subject=Install", true),
            ("mailto:", false),
            ("http://example.com", false),
            ("https://user:pass@example.com", false),
            ("javascript:alert(1)", false),
            ("data:text/html,x", false),
            ("/help", false),
        ] {
            assert_eq!(support_url(text).is_some(), good, "{text}");
        }
    }
}
