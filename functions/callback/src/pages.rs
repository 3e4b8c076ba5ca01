//! The HTML pages. A page has no script and loads nothing from another host. The Content Security Policy allows its one
//! inline style by hash.
//!
//! The text of a page comes from [`words`], from the configuration, and from the Lambda request id. No part of a query
//! is shown.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{ALLOW, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER, STRICT_TRANSPORT_SECURITY};
use http::{HeaderValue, StatusCode};
use lambda_http::{Body, Response};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use shared::config::{Authorization, Brand};

use crate::accent;
use crate::authorize::Marketplace;
use crate::done::Done;
use crate::event::{response, with_header};
use crate::failure::InstallFailure;
use crate::public_url::PublicUrl;
use crate::route;
use crate::words::{self, Destination, Link, Tone, Words};

const STYLE: &str = include_str!("page.css");

/// The inline style of a page: `page.css`, and the brand's colours if there are any.
fn style(brand: &Brand) -> String {
    let mut style = STYLE.trim_end().to_owned();
    if let Some(colour) = brand.accent {
        style.push('\n');
        style.push_str(&accent::style(colour));
    }
    style
}

/// The Content Security Policy: allows `style` and nothing else. `form-action` and `base-uri` are named because
/// `default-src` does not cover them.
fn policy(style: &str) -> String {
    let style = STANDARD.encode(digest(&SHA256, style.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// The data that every page needs in addition to its text.
#[derive(Clone, Copy)]
pub struct PageContext<'a> {
    /// The configured marketplace.
    pub config: &'a Authorization,
    /// The brand that the pages show.
    pub brand: &'a Brand,
    /// This function's public URL, if it is known.
    pub public: Option<&'a PublicUrl>,
    /// The marketplace host that this admin uses. `Standard` if not known.
    pub marketplace: Marketplace,
    /// The Lambda request id.
    pub request_id: &'a str,
}

/// The page of a finished installation.
pub fn done(done: Done, context: PageContext<'_>) -> Response<Body> {
    let context = PageContext { marketplace: done.marketplace, ..context };
    page(StatusCode::OK, words::done(done), context, None)
}

/// The page on which the admin chooses a host of the marketplace.
pub fn choice(context: PageContext<'_>) -> Response<Body> {
    page(StatusCode::OK, words::choice(), context, None)
}

/// The page of a failure.
pub fn failure(failure: InstallFailure, context: PageContext<'_>) -> Response<Body> {
    let mut page = page(failure.status(), words::failure(failure), context, Some(context.request_id));
    if failure == InstallFailure::MethodNotAllowed {
        page.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    }
    if let Some(seconds) = failure.retry_after() {
        page.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    page
}

fn page(status: StatusCode, words: Words, context: PageContext<'_>, reference: Option<&str>) -> Response<Body> {
    let style = style(context.brand);
    let html = document(words, context, &style, reference).into_string();
    let mut page = with_header(response(status, Body::Text(html)), CONTENT_SECURITY_POLICY, &policy(&style));
    let headers = page.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    if context.public.is_some_and(PublicUrl::is_secure) {
        headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
    page
}

fn document(words: Words, context: PageContext<'_>, style: &str, reference: Option<&str>) -> Markup {
    let Brand { name, support, .. } = context.brand;
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (words.title) @if let Some(name) = name { " · " (name) } }
                style { (PreEscaped(style)) }
            }
            body {
                @if let Some(name) = name { header { p.brand { (name) } } }
                main class=(class(words.tone)) {
                    (sign(words.tone))
                    h1 { (words.title) }
                    p { (words.happened) }
                    @if !words.next.is_empty() { p.next { (words.next) } }
                    (links(words.links, context))
                    @if let Some(reference) = reference.filter(|r| !r.is_empty()) {
                        p.reference { "If you ask for help, please give this number: " code { (reference) } }
                    }
                }
                @if let Some(support) = support {
                    footer { p { "Do you need help? " a href=(support) { "Contact support" } } }
                }
            }
        }
    }
}

/// The buttons of a page, one below the other. Links without a known destination are left out.
fn links(links: &[Link], context: PageContext<'_>) -> Markup {
    let known: Vec<_> = links.iter().filter_map(|link| Some((destination(link.to, context)?, link.text))).collect();
    match known.as_slice() {
        [] => html! {},
        [(href, text)] => html! { p.actions { a.button href=(href) { (text) } } },
        several => html! {
            ul.actions { @for (href, text) in several { li { a.button href=(href) { (text) } } } }
        },
    }
}

fn destination(to: Destination, context: PageContext<'_>) -> Option<String> {
    match to {
        // An empty href is the page's own URL. The URL itself must not be on the page, because it contains the code.
        Destination::Here => Some(String::new()),
        Destination::Marketplace => Some(context.marketplace.url(context.config).into()),
        Destination::Install(marketplace) => {
            let white_label =
                match marketplace.or((context.marketplace == Marketplace::WhiteLabel).then_some(context.marketplace)) {
                    None => "",
                    Some(Marketplace::Standard) => "?white_label=0",
                    Some(Marketplace::WhiteLabel) => "?white_label=1",
                };
            Some(context.public?.at(&format!("{}{white_label}", route::INSTALL)))
        }
    }
}

fn class(tone: Tone) -> &'static str {
    match tone {
        Tone::Good => "good",
        Tone::Question => "question",
        Tone::Notice => "notice",
        Tone::Bad => "bad",
    }
}

/// A drawing for the page's tone. It repeats the heading, so screen readers skip it.
fn sign(tone: Tone) -> Markup {
    let drawing = match tone {
        Tone::Good => "M15 24.5l6.5 6.5L33.5 18.5",
        Tone::Question => "M15 24h18M26 17l7 7-7 7",
        Tone::Notice => "M24 14v12M24 33v.5",
        Tone::Bad => "M17.5 17.5l13 13M30.5 17.5l-13 13",
    };
    html! {
        svg viewBox="0 0 48 48" fill="none" stroke="currentColor" stroke-width="3.5" stroke-linecap="round"
            stroke-linejoin="round" aria-hidden="true" focusable="false" {
            circle cx="24" cy="24" r="21" {}
            path d=(drawing) {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorize::tests::config;
    use crate::redirect::Redirect;
    use crate::state::StateKey;
    use proptest::prelude::*;
    use shared::config::{Colour, MarketplaceInstalls};
    use shared::domain::redacted::Redacted;
    use shared::domain::resource::Kind;
    use url::Url;
    use url::form_urlencoded::byte_serialize;

    const REQUEST_ID: &str = "5f2b7e1c-0000-4000-8000-1234567890ab";

    fn public() -> PublicUrl {
        PublicUrl::of(None, Some("connect.example.com"), None, "/").expect("a domain")
    }

    fn html(page: &Response<Body>) -> &str {
        std::str::from_utf8(page.body()).expect("text")
    }

    fn header<'a>(page: &'a Response<Body>, name: &str) -> &'a str {
        page.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn with_context<T>(marketplace: Marketplace, use_them: impl FnOnce(PageContext<'_>) -> T) -> T {
        with_brand(&Brand::default(), marketplace, use_them)
    }

    fn with_brand<T>(brand: &Brand, marketplace: Marketplace, use_them: impl FnOnce(PageContext<'_>) -> T) -> T {
        let (config, public) = (config("https://marketplace.gohighlevel.com"), public());
        use_them(PageContext { config: &config, brand, public: Some(&public), marketplace, request_id: REQUEST_ID })
    }

    /// A brand whose members contain markup, quotes and accents.
    fn odd_brand() -> Brand {
        Brand {
            name: Some("<b>\"Ä&'".into()),
            accent: Colour::parse("#ffd60a"),
            support: Some(Url::parse("https://help.example.com/?a=1&b='<\">").expect("a URL")),
        }
    }

    fn all_pages() -> Vec<(String, Response<Body>)> {
        [Brand::default(), odd_brand()].iter().flat_map(pages_of).collect()
    }

    fn pages_of(brand: &Brand) -> Vec<(String, Response<Body>)> {
        with_brand(brand, Marketplace::Standard, |context| {
            let failures = InstallFailure::ALL.iter().copied().map(|f| (format!("{f:?}"), failure(f, context)));
            let kinds = [None, Some(Kind::Location), Some(Kind::Company)];
            let dones = kinds.into_iter().map(|kind| {
                (format!("Done{kind:?}"), done(Done { kind, marketplace: Marketplace::Standard }, context))
            });
            failures.chain(dones).chain([("Choice".to_owned(), choice(context))]).collect()
        })
    }

    #[test]
    fn every_page_has_the_security_headers_and_loads_nothing() {
        for (name, page) in all_pages() {
            for (name_of_header, value) in [
                ("cache-control", "no-store"),
                ("content-type", "text/html; charset=utf-8"),
                ("referrer-policy", "no-referrer"),
                ("x-content-type-options", "nosniff"),
                ("x-frame-options", "DENY"),
                ("strict-transport-security", "max-age=31536000"),
            ] {
                assert_eq!(header(&page, name_of_header), value, "{name}: {name_of_header}");
            }
            let policy = header(&page, "content-security-policy");
            for rule in ["default-src 'none'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"] {
                assert!(policy.contains(rule), "{name}: {policy}");
            }
            for never in ["<script", " style=", "src=", "<link", "@import", "url(", " onclick"] {
                assert!(!html(&page).contains(never), "{name}: {never}");
            }
            for needed in ["<!DOCTYPE html>", "<html lang=\"en\">", "<title>", "<main", "<h1>", "name=\"viewport\""] {
                assert!(html(&page).contains(needed), "{name}: {needed}");
            }
        }
    }

    #[test]
    fn the_policy_allows_exactly_the_style_on_the_page() {
        for (name, page) in all_pages() {
            let (_, rest) = html(&page).split_once("<style>").expect("a style");
            let (style, rest) = rest.split_once("</style>").expect("its end");
            assert!(!rest.contains("<style"), "{name}: one style only");
            let hash = STANDARD.encode(digest(&SHA256, style.as_bytes()));
            let policy = header(&page, "content-security-policy");
            assert!(policy.contains(&format!("style-src 'sha256-{hash}'")), "{name}: {policy}");
        }
    }

    #[test]
    fn the_retry_link_leads_to_the_start_and_keeps_the_white_label() {
        for (marketplace, href) in [
            (Marketplace::Standard, "href=\"https://connect.example.com/oauth/install\""),
            (Marketplace::WhiteLabel, "href=\"https://connect.example.com/oauth/install?white_label=1\""),
        ] {
            let page = with_context(marketplace, |context| failure(InstallFailure::PlatformUnavailable, context));
            assert_eq!((page.status().as_u16(), header(&page, "retry-after")), (503, "60"));
            assert!(html(&page).contains(href), "{}", html(&page));
        }
        let done = Done { kind: Some(Kind::Company), marketplace: Marketplace::WhiteLabel };
        let page = with_context(Marketplace::Standard, |context| super::done(done, context));
        assert!(html(&page).contains("https://marketplace.leadconnectorhq.com"), "{}", html(&page));
        assert!(!html(&page).contains("gohighlevel"), "the vendor's brand stays off a white label's page");
    }

    #[test]
    fn a_brand_is_escaped_text_on_every_page() {
        for (name, page) in pages_of(&odd_brand()) {
            assert!(html(&page).contains("<p class=\"brand\">&lt;b&gt;&quot;Ä&amp;'</p>"), "{name}: {}", html(&page));
            assert!(!html(&page).contains("<b>"), "{name}");
            let link = "<a href=\"https://help.example.com/?a=1&amp;b=%27%3C%22%3E\">";
            assert!(html(&page).contains(link), "{name}: {}", html(&page));
            assert!(html(&page).contains("--accent:#ffd60a"), "{name}: the dark scheme's button");
        }
        for (name, page) in pages_of(&Brand::default()) {
            assert!(!html(&page).contains("<header") && !html(&page).contains("<footer"), "{name}");
        }
    }

    #[test]
    fn the_choice_links_to_both_hosts() {
        let page = with_context(Marketplace::Standard, choice);
        for answer in ["0", "1"] {
            let href = format!("href=\"https://connect.example.com/oauth/install?white_label={answer}\"");
            assert!(html(&page).contains(&href), "{}", html(&page));
        }
    }

    #[test]
    fn a_405_names_the_allowed_method() {
        let page = with_context(Marketplace::Standard, |context| failure(InstallFailure::MethodNotAllowed, context));
        assert_eq!((page.status().as_u16(), header(&page, "allow")), (405, "GET"));
        assert!(!html(&page).contains("no such page"), "the page is there: {}", html(&page));
    }

    proptest! {
        /// No page shows any value of a query parameter.
        #[test]
        fn nothing_of_a_query_is_on_a_page(
            name in "code|state|error|error_description|for|via|white_label|locationId",
            padding in "[<>\"'&/a-z \\r\\n\\x00\u{e9}]{0,30}",
            approved in any::<bool>(),
        ) {
            let hostile = format!("MARKER{padding}<i>\"{padding}");
            let value: String = byte_serialize(hostile.as_bytes()).collect();
            let query = if approved { format!("code=good&{name}={value}") } else { format!("{name}={value}") };
            let key = StateKey::derive(&Redacted::from("the app's client secret"));
            let outcome = Redirect::read(&query).and_then(|redirect| {
                redirect.admit(&key, None, "https://x.example/", MarketplaceInstalls::Deny)
            });
            let pages = with_context(Marketplace::Standard, |context| {
                [failure(outcome.expect_err("nothing is exchanged"), context), done(Done::read(&query), context)]
            });
            for page in pages {
                prop_assert!(!html(&page).contains("MARKER"), "{}", html(&page));
                prop_assert!(!page.headers().values().any(|v| String::from_utf8_lossy(v.as_bytes()).contains("MARKER")));
            }
        }
    }
}
