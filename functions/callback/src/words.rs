//! What the pages say: to an agency's admin, in ten seconds, without the words of OAuth.

use shared::domain::resource::Kind;

use crate::authorize::Entrance;
use crate::done::Done;
use crate::failure::Failure;

/// How a page looks before it is read. The colour is never the only sign: each has a shape and words of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// It worked.
    Good,
    /// The admin is asked something.
    Question,
    /// Nothing happened; the admin can go on.
    Notice,
    /// Nothing happened; someone has something to repair.
    Bad,
}

/// Where a link leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To the same page once more.
    Here,
    /// To the marketplace.
    Marketplace,
    /// To the start of an installation, by this entrance; where none is named, by the one that was taken before.
    Install(Option<Entrance>),
}

/// A button of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Where it leads.
    pub to: Destination,
    /// What stands on it.
    pub text: &'static str,
}

/// The text of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    /// Its kind.
    pub tone: Tone,
    /// Title and heading.
    pub title: &'static str,
    /// What happened.
    pub happened: &'static str,
    /// What to do now; empty where the buttons say it.
    pub next: &'static str,
    /// Its buttons.
    pub links: &'static [Link],
}

const fn install(text: &'static str) -> Link {
    Link { to: Destination::Install(None), text }
}

const START_AGAIN: &[Link] = &[install("Start again")];
const TRY_AGAIN: &[Link] = &[install("Try again")];
const FROM_HERE: &[Link] = &[install("Install the app")];
const LOOK_AGAIN: &[Link] = &[Link { to: Destination::Here, text: "Look again" }];
const TRY_HERE: &[Link] = &[Link { to: Destination::Here, text: "Try again" }];
const TO_THE_MARKETPLACE: &[Link] = &[Link { to: Destination::Marketplace, text: "Back to the marketplace" }];
const EITHER: &[Link] = &[
    Link { to: Destination::Install(Some(Entrance::Standard)), text: "At the marketplace" },
    Link { to: Destination::Install(Some(Entrance::WhiteLabel)), text: "At my agency’s own address" },
];

/// The words of the question by which way to go.
#[must_use]
pub fn choice() -> Words {
    let happened = "You will be asked to sign in and to approve the app. Choose the way you usually sign in: agencies \
                    that use the platform under a name of their own take their own address.";
    Words { tone: Tone::Question, title: "Where do you sign in?", happened, next: "", links: EITHER }
}

/// The words of a finished installation.
#[must_use]
pub fn done(done: Done) -> Words {
    let (title, happened) = match done.kind {
        Some(Kind::Location) => ("The app is connected", "It can now work with the account you chose."),
        Some(Kind::Company) => (
            "The app is connected to your agency",
            "The accounts you chose are being connected in the background. With many of them, this can take some \
             minutes.",
        ),
        None => ("The app is connected", "It can now work with what you chose."),
    };
    let next = "There is nothing left to do here. You can close this page.";
    Words { tone: Tone::Good, title, happened, next, links: TO_THE_MARKETPLACE }
}

/// The words of a failure.
#[must_use]
#[expect(clippy::too_many_lines, reason = "one list of texts, which reads best in one piece")]
pub fn failure(failure: Failure) -> Words {
    const NOTHING: &[Link] = &[];
    let (tone, title, happened, next, links) = match failure {
        Failure::NotFound => (
            Tone::Notice,
            "There is no such page",
            "The address may be incomplete or mistyped.",
            "If you followed a link to install the app, please ask whoever gave it to you for a new one.",
            NOTHING,
        ),
        Failure::MethodNotAllowed => (
            Tone::Notice,
            "This page can only be opened",
            "Something was sent to it, which it does not take. Nothing was installed.",
            "Open the address in your browser, or follow the link to install the app once more.",
            NOTHING,
        ),
        Failure::Prefetched => (
            Tone::Notice,
            "Please open this page yourself",
            "Your browser tried to load it ahead of time, which this page does not allow.",
            "Reload the page to go on.",
            NOTHING,
        ),
        Failure::Malformed => (
            Tone::Notice,
            "This link is not complete",
            "Something that is needed to connect the app is missing from the address, so nothing was installed.",
            "Please start the installation again. It takes a few seconds.",
            START_AGAIN,
        ),
        Failure::NotApproved => (
            Tone::Notice,
            "The app was not installed",
            "The request was not approved, so the app has no access to anything.",
            "If that was not what you wanted, start again and approve the request. Some apps can only be approved by \
             an admin of the agency.",
            START_AGAIN,
        ),
        Failure::BrowserUnknown => (
            Tone::Notice,
            "Please finish in the browser you began with",
            "This installation was started in another browser, or this one does not keep cookies. For your safety, \
             nothing was installed.",
            "Start again here and stay in this browser. If you get back to this page, allow cookies for this site.",
            START_AGAIN,
        ),
        Failure::StateForeign => (
            Tone::Notice,
            "Please start the installation again",
            "We could not make sure that this installation was started by you in this browser. For your safety, \
             nothing was installed.",
            "If someone else sent you this link, do not use it. Start again with the button below.",
            START_AGAIN,
        ),
        Failure::StateExpired => (
            Tone::Notice,
            "This took a little too long",
            "An installation has to be finished within half an hour. This one was not, so nothing was installed.",
            "Please start again.",
            START_AGAIN,
        ),
        Failure::StateRequired => (
            Tone::Notice,
            "Please start the installation from here",
            "This app cannot be installed straight from the marketplace, so it is not connected yet.",
            "Start again with the button below.",
            FROM_HERE,
        ),
        Failure::StateUsed => (
            Tone::Notice,
            "This link was already used",
            "Each start of an installation connects the app once. This one was used for another approval before, so \
             nothing was installed now.",
            "To connect the app to one more account, please start again.",
            START_AGAIN,
        ),
        Failure::CodeRefused => (
            Tone::Notice,
            "This link was already used, or is too old",
            "Each link connects the app once, and only for a few minutes.",
            "If you have just seen that the app is connected, all is well and you can close this page. If not, please \
             start again.",
            START_AGAIN,
        ),
        Failure::InProgress => (
            Tone::Notice,
            "The app is still being connected",
            "This takes longer than usual. It goes on by itself, and you do not have to approve anything again.",
            "Please look again in a few seconds.",
            LOOK_AGAIN,
        ),
        Failure::Busy => (
            Tone::Notice,
            "Too many installations at the same time",
            "Your approval is kept, but the app is not connected yet.",
            "Please stay on this page and try again in a minute.",
            TRY_HERE,
        ),
        Failure::Suspended => (
            Tone::Notice,
            "This account is paused",
            "The app cannot be connected to an account that is not active.",
            "Once the agency has made the account active again, start the installation again.",
            START_AGAIN,
        ),
        Failure::Misconfigured => (
            Tone::Bad,
            "The app is not set up correctly",
            "You did nothing wrong, and nothing was installed. Trying again will not help until this is repaired.",
            "Please tell the maker of the app: “Your app’s credentials or redirect address are not accepted.”",
            NOTHING,
        ),
        Failure::PlatformUnavailable => (
            Tone::Bad,
            "The marketplace does not answer",
            "We could not finish the installation because the marketplace cannot be reached at the moment.",
            "Please start again in some minutes.",
            TRY_AGAIN,
        ),
        Failure::Unavailable => (
            Tone::Bad,
            "We could not finish the installation",
            "Something on our side does not answer at the moment. You did nothing wrong.",
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
    fn every_failure_says_what_to_do_in_words_of_its_own() {
        for one in Failure::ALL {
            let text = failure(one);
            assert!(text.next.len() > 15 && text.happened.len() > 15, "{one:?}");
            let jargon = ["OAuth", "token", " code", "state ", "HTTP", "error", "exception"];
            for word in jargon {
                assert!(!format!("{} {} {}", text.title, text.happened, text.next).contains(word), "{one:?}: {word}");
            }
        }
    }

    #[test]
    fn whoever_can_help_himself_is_given_a_button_and_no_one_else() {
        let without: Vec<_> = Failure::ALL.into_iter().filter(|f| failure(*f).links.is_empty()).collect();
        let expected = [Failure::NotFound, Failure::MethodNotAllowed, Failure::Prefetched, Failure::Misconfigured];
        assert_eq!(without, expected);
    }
}
