//! The texts of the pages. The reader is an agency's admin, who has ten seconds and does not know the terms of OAuth.

use shared::domain::resource::Kind;

use crate::authorize::Marketplace;
use crate::done::Done;
use crate::failure::InstallFailure;

/// The kind of a page. Each kind has its own colour, drawing and words, so that colour is never the only sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// The installation succeeded.
    Good,
    /// The page asks the admin a question.
    Question,
    /// Nothing was installed, and the admin can continue.
    Notice,
    /// Nothing was installed, and another person must repair something.
    Bad,
}

/// The destination of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The same page again.
    Here,
    /// The marketplace.
    Marketplace,
    /// The start of an installation on this host of the marketplace. `None`: the host that this admin used before.
    Install(Option<Marketplace>),
}

/// A button on a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The destination.
    pub to: Destination,
    /// The label.
    pub text: &'static str,
}

/// The text of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    /// The kind of page.
    pub tone: Tone,
    /// The title and the heading.
    pub title: &'static str,
    /// The explanation: the event that led to this page.
    pub happened: &'static str,
    /// The next step. Empty if the buttons are enough.
    pub next: &'static str,
    /// The buttons.
    pub links: &'static [Link],
}

const fn install(text: &'static str) -> Link {
    Link { to: Destination::Install(None), text }
}

const START_AGAIN: &[Link] = &[install("Start again")];
const TRY_AGAIN: &[Link] = &[install("Try again")];
const FROM_HERE: &[Link] = &[install("Install the app")];
const CHECK_AGAIN: &[Link] = &[Link { to: Destination::Here, text: "Check again" }];
const TRY_HERE: &[Link] = &[Link { to: Destination::Here, text: "Try again" }];
const TO_THE_MARKETPLACE: &[Link] = &[Link { to: Destination::Marketplace, text: "Back to the marketplace" }];
const EITHER: &[Link] = &[
    Link { to: Destination::Install(Some(Marketplace::Standard)), text: "At the marketplace" },
    Link { to: Destination::Install(Some(Marketplace::WhiteLabel)), text: "At my agency’s own address" },
];

/// The text of the page on which the admin chooses a host of the marketplace.
pub fn choice() -> Words {
    let happened = "You will be asked to sign in and to approve the app. Choose the way you usually sign in. If your \
                    agency uses the platform under its own name, choose your agency’s own address.";
    Words { tone: Tone::Question, title: "Where do you sign in?", happened, next: "", links: EITHER }
}

/// The text of the page after an installation.
pub fn done(done: Done) -> Words {
    let (title, happened) = match done.kind {
        Some(Kind::Location) => ("The app is connected", "It can now work with the account you chose."),
        Some(Kind::Company) => (
            "The app is connected to your agency",
            "The accounts you chose are being connected in the background. If there are many, this can take a few \
             minutes.",
        ),
        None => ("The app is connected", "It can now work with what you chose."),
    };
    let next = "There is nothing left to do here. You can close this page.";
    Words { tone: Tone::Good, title, happened, next, links: TO_THE_MARKETPLACE }
}

/// The text of an error page.
#[expect(clippy::too_many_lines, reason = "one list of texts is easiest to read in one piece")]
pub fn failure(failure: InstallFailure) -> Words {
    const NOTHING: &[Link] = &[];
    let (tone, title, happened, next, links) = match failure {
        InstallFailure::NotFound => (
            Tone::Notice,
            "There is no such page",
            "The address may be incomplete or mistyped.",
            "If you followed a link to install the app, please ask the person who gave it to you for a new one.",
            NOTHING,
        ),
        InstallFailure::MethodNotAllowed => (
            Tone::Notice,
            "This page does not accept data",
            "Your browser sent data to this page, but the page can only be opened. Nothing was installed.",
            "Open the address in your browser, or follow the link to install the app again.",
            NOTHING,
        ),
        InstallFailure::Prefetched => (
            Tone::Notice,
            "Please open this page yourself",
            "Your browser tried to load it ahead of time, which this page does not allow.",
            "Reload the page to go on.",
            NOTHING,
        ),
        InstallFailure::Malformed => (
            Tone::Notice,
            "This link is not complete",
            "The address lacks something that is needed to connect the app, so nothing was installed.",
            "Please start the installation again. It takes a few seconds.",
            START_AGAIN,
        ),
        InstallFailure::NotApproved => (
            Tone::Notice,
            "The app was not installed",
            "The request was not approved, so the app has no access to anything.",
            "If that was not what you wanted, start again and approve the request. Some apps can only be approved by \
             an admin of the agency.",
            START_AGAIN,
        ),
        InstallFailure::BrowserUnknown => (
            Tone::Notice,
            "Please finish in the browser you began with",
            "This installation was started in another browser, or this browser blocks cookies. For your safety, \
             nothing was installed.",
            "Start again here and stay in this browser. If you see this page again, allow cookies for this site.",
            START_AGAIN,
        ),
        InstallFailure::StateForeign => (
            Tone::Notice,
            "Please start the installation again",
            "We could not make sure that this installation was started by you in this browser. For your safety, \
             nothing was installed.",
            "If someone else sent you this link, do not use it. Start again with the button below.",
            START_AGAIN,
        ),
        InstallFailure::StateExpired => (
            Tone::Notice,
            "This took a little too long",
            "An installation must be finished within half an hour. This one took longer, so nothing was installed.",
            "Please start again.",
            START_AGAIN,
        ),
        InstallFailure::StateRequired => (
            Tone::Notice,
            "Please start the installation from here",
            "This app cannot be installed straight from the marketplace, so it is not connected yet.",
            "Start again with the button below.",
            FROM_HERE,
        ),
        InstallFailure::StateUsed => (
            Tone::Notice,
            "This link was already used",
            "Each start of an installation connects the app once. This one was already used for another approval, so \
             nothing was installed this time.",
            "To connect the app to another account, please start again.",
            START_AGAIN,
        ),
        InstallFailure::CodeRefused => (
            Tone::Notice,
            "This link was already used, or is too old",
            "Each link connects the app once, and only for a few minutes.",
            "If you have just seen that the app is connected, everything is fine and you can close this page. If not, \
             please start again.",
            START_AGAIN,
        ),
        InstallFailure::InProgress => (
            Tone::Notice,
            "The app is still being connected",
            "This is taking longer than usual. It continues by itself, and you do not have to approve anything again.",
            "Please check again in a few seconds.",
            CHECK_AGAIN,
        ),
        InstallFailure::Busy => (
            Tone::Notice,
            "Too many installations at the same time",
            "Your approval is kept, but the app is not connected yet.",
            "Please stay on this page and try again in a minute.",
            TRY_HERE,
        ),
        InstallFailure::Suspended => (
            Tone::Notice,
            "This account is paused",
            "The app cannot be connected to an account that is not active.",
            "Once the agency has made the account active again, start the installation again.",
            START_AGAIN,
        ),
        InstallFailure::Misconfigured => (
            Tone::Bad,
            "The app is not set up correctly",
            "You did nothing wrong, and nothing was installed. Another try will not help until this is repaired.",
            "Please tell the maker of the app: “Your app’s credentials or redirect address are not accepted.”",
            NOTHING,
        ),
        InstallFailure::PlatformUnavailable => (
            Tone::Bad,
            "The marketplace does not answer",
            "We could not finish the installation because the marketplace cannot be reached at the moment.",
            "Please start again in a few minutes.",
            TRY_AGAIN,
        ),
        InstallFailure::Unavailable => (
            Tone::Bad,
            "We could not finish the installation",
            "One of our own services does not respond at the moment. You did nothing wrong.",
            "Please try again in a minute.",
            TRY_AGAIN,
        ),
    };
    Words { tone, title, happened, next, links }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_an_explanation_and_a_next_step_without_jargon() {
        for &one in InstallFailure::ALL {
            let text = failure(one);
            assert!(text.next.len() > 15 && text.happened.len() > 15, "{one:?}");
            let jargon = ["OAuth", "token", " code", "state ", "HTTP", "error", "exception"];
            for word in jargon {
                assert!(!format!("{} {} {}", text.title, text.happened, text.next).contains(word), "{one:?}: {word}");
            }
        }
    }

    #[test]
    fn a_page_has_a_button_if_the_admin_can_continue() {
        let without: Vec<_> = InstallFailure::ALL.iter().copied().filter(|f| failure(*f).links.is_empty()).collect();
        let expected = [
            InstallFailure::NotFound,
            InstallFailure::MethodNotAllowed,
            InstallFailure::Prefetched,
            InstallFailure::Misconfigured,
        ];
        assert_eq!(without, expected);
    }
}
