//! Formats events as lines for the terminal, and prints the sandbox's first screen with links and commands.

use std::{fmt::Write as _, io::IsTerminal as _};

use serde_json::Value;

use crate::{events::Event, marketplace::grants::Resource, whole::Sandbox};

/// Use of colours in lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colours {
    /// Colours, for a terminal.
    On,
    /// No colours: not a terminal, or `NO_COLOR` is set.
    Off,
}

impl Colours {
    /// Returns [`Self::On`] if standard output shows colours.
    pub fn of_stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        if wanted && std::io::stdout().is_terminal() { Self::On } else { Self::Off }
    }

    fn paint(self, colour: u8, text: &str) -> String {
        match self {
            Self::On => format!("\x1b[{colour}m{text}\x1b[0m"),
            Self::Off => text.to_owned(),
        }
    }
}

const RED: u8 = 31;
const GREEN: u8 = 32;
const YELLOW: u8 = 33;
const BLUE: u8 = 34;
const MAGENTA: u8 = 35;
const GREY: u8 = 90;

/// The line of an event. `None` if the event is of no interest to a reader.
pub fn line(event: &Event, verbose: bool, colours: Colours) -> Option<String> {
    let status = |status: Option<u16>| match status {
        None => colours.paint(RED, "hung up"),
        Some(ok @ 200..=399) => colours.paint(GREEN, &ok.to_string()),
        Some(slow @ 429) => colours.paint(YELLOW, &slow.to_string()),
        Some(bad) => colours.paint(RED, &bad.to_string()),
    };
    let what = |colour, name: &str| colours.paint(colour, &format!("{name:<10}"));
    let text = match event {
        Event::Gateway { method, path, status: answered, source, millis } => {
            let source = source.as_ref().map(|source| format!(" from the {source}")).unwrap_or_default();
            format!("{}{method} {path} → {}{source}, {millis} ms", what(BLUE, "request"), status(Some(*answered)))
        }
        Event::Invoked { function, outcome, millis, answer } => {
            if !verbose && answer.as_deref().is_some_and(nothing_was_due) {
                return None;
            }
            let answer = one_line(answer.as_deref().unwrap_or_default());
            format!("{}{function}: {} {answer} {millis} ms", what(MAGENTA, "invoked"), one_line(outcome))
        }
        Event::Token { grant, resource, outcome, status: answered } => {
            let whose = resource.as_deref().unwrap_or("nobody");
            let (grant, whose, outcome) = (one_line(grant), one_line(whose), one_line(outcome));
            format!("{}{grant} for {whose}: {outcome} → {}", what(MAGENTA, "token"), status(*answered))
        }
        Event::Platform { resource, method, path, status: answered, in_window } => {
            let whose = resource.as_deref().unwrap_or("nobody");
            let counted = colours.paint(GREY, &format!("{whose}, {in_window} in the window"));
            format!("{}{method} {path} → {} {counted}", what(GREY, "platform"), status(*answered))
        }
        Event::Webhook { kind, resource, status: answered } => {
            format!("{}{kind} of {resource} → {}", what(MAGENTA, "webhook"), status(*answered))
        }
        Event::Log { worker, line, .. } => {
            let line = one_line(&log_line(line, verbose)?);
            format!("{}{} {line}", what(GREY, "log"), colours.paint(GREY, worker))
        }
        Event::Worker { worker, what: happened, .. } => {
            format!("{}{worker} {}", what(YELLOW, "process"), one_line(happened))
        }
        Event::Lifecycle { name, detail } => {
            format!("{}{}", what(MAGENTA, "lifecycle"), one_line(&format!("{name} {detail}")))
        }
        Event::Published { name, resources } => {
            format!(
                "{}{}",
                what(MAGENTA, "event"),
                one_line(&format!("{name} of {} is on the bus", resources.join(", ")))
            )
        }
        Event::Control { what: done } => format!("{}{}", what(YELLOW, "sandbox"), one_line(done)),
    };
    Some(text)
}

/// Removes control characters from text that a client sent, such as the grant of a token request. The text then stays
/// on its line and cannot send commands to the terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

pub(crate) fn nothing_was_due(answer: &str) -> bool {
    serde_json::from_str::<Value>(answer).is_ok_and(|summary| summary["due"] == 0)
}

/// A function's line, if it is a warning, an error, or not JSON. Members that are metrics are left out.
pub(crate) fn log_line(line: &str, verbose: bool) -> Option<String> {
    if verbose {
        return Some(line.to_owned());
    }
    let Ok(Value::Object(fields)) = serde_json::from_str(line) else { return Some(line.to_owned()) };
    let level = fields.get("level").and_then(Value::as_str).unwrap_or("INFO");
    if !matches!(level, "WARN" | "ERROR") {
        return None;
    }
    let details = fields.get("fields").and_then(Value::as_object).unwrap_or(&fields);
    let message = details.get("message").and_then(Value::as_str).unwrap_or_default();
    let is_told = |name: &str| {
        let is_metric = name.starts_with(|first: char| first.is_ascii_uppercase());
        !is_metric && !["message", "level", "timestamp", "target", "span", "spans", "_aws"].contains(&name)
    };
    let others = details.iter().filter(|(name, _)| is_told(name));
    Some(others.fold(format!("{level} {message}"), |mut text, (name, value)| {
        let _infallible = write!(text, " {name}={value}");
        text
    }))
}

/// Returns links and commands to try. The commands use the variables that the first of them set.
pub fn welcome(sandbox: &Sandbox, colours: Colours) -> String {
    let (gateway, platform) = (sandbox.gateway.url(), sandbox.marketplace.url());
    let options = sandbox.marketplace.options();
    let location = options.locations.first().map_or("LOCATION", |location| location.id.as_str());
    let heading = |text: &str| colours.paint(BLUE, text);
    let alive = if sandbox.marketplace.live_refresh_tokens(&Resource::Location(location.to_owned())).is_empty() {
        ""
    } else {
        "   (one location is already installed)"
    };
    format!(
        "\
{watch}
{prepare}
{exports}

{install}{alive}
  our link, with a state      {gateway}/oauth/install
  from the marketplace        {platform}/install
  without a browser:
  curl -sLo /dev/null -w '%{{http_code}}\\n' -d '{{\"resource\":{{\"location\":\"{location}\"}}}}' {platform}/_sandbox/install

{call}
  curl -H \"Authorization: Bearer $RELAY_KEY\" \"$RELAY_URL/locations/$LOCATION_ID/contacts/?limit=20\"
  curl -H \"Authorization: Bearer $RELAY_KEY\" \"$RELAY_URL/locations/$LOCATION_ID\"        # state and limits
  curl -d '{{\"resource\":{{\"location\":\"{location}\"}},\"method\":\"GET\",\"path\":\"/contacts/\"}}' \\
    \"$AWS_ENDPOINT_URL_LAMBDA/2015-03-31/functions/$RELAY_FUNCTION:billing/invocations\"   # as a function invokes it

{limit}
  for i in $(seq {over}); do for path in contacts/ locations/$LOCATION_ID; do
    curl -so /dev/null -w '%{{http_code}} ' -H \"Authorization: Bearer $RELAY_KEY\" \"$RELAY_URL/locations/$LOCATION_ID/$path\"
  done; done

{renew}
  curl -X POST {platform}/_sandbox/expire-access-tokens        # then call again
  curl -d '{{\"at\":\"refresh\",\"fault\":{{\"kind\":\"hang_up\",\"processed\":true}},\"times\":1}}' \\
    {platform}/_sandbox/faults                                  # the next answer is lost
  curl {platform}/_sandbox/state

{receive}
  curl -d '{{\"resource\":{{\"location\":\"{location}\"}},\"times\":200}}' {platform}/_sandbox/webhooks   # each is a line \"event\"

{operate}
  cargo run -p ops -- --sandbox={platform} doctor

Ctrl-C ends everything.
",
        watch = sandbox.console.as_ref().map_or_else(String::new, |console| {
            format!("{}\n  the console, with buttons   {}\n", heading("Watch it"), console.url())
        }),
        prepare = heading("Prepare a second terminal, for these commands and for the examples of the documents"),
        exports = sandbox.exports(),
        install = heading("Install"),
        call = heading("Call the API through the relay"),
        limit =
            heading(&format!("Hit the limit ({} in {} s)", options.limits.burst, options.limits.interval_ms / 1000)),
        over = options.limits.burst / 2 + 5,
        renew = heading("Renew a token"),
        receive = heading("Receive the platform's events"),
        operate = heading("Operate it"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_with_control_characters_is_one_line() {
        let hostile = "x\n\x1b[2Jy\u{9b}31m";
        let (text, other) = (|| hostile.to_owned(), || "relay".to_owned());
        for event in [
            Event::Token { grant: text(), resource: Some(text()), outcome: text(), status: None },
            Event::Invoked { function: other(), outcome: text(), millis: 1, answer: Some(text()) },
            Event::Log { function: other(), worker: other(), line: text() },
            Event::Worker { function: other(), worker: other(), what: text() },
            Event::Control { what: text() },
        ] {
            let plain = line(&event, true, Colours::Off).expect("a line");
            assert!(!plain.contains(char::is_control), "{plain:?}");
            let painted = line(&event, true, Colours::On).expect("a line");
            assert!(painted.contains("\x1b[") && !painted.contains("\x1b[2J"), "{painted:?}");
        }
    }

    fn log(text: &str) -> Option<String> {
        log_line(text, false)
    }

    #[test]
    fn only_lines_that_matter_are_shown() {
        assert_eq!(log(r#"{"_aws":{},"Admitted":1}"#), None);
        assert_eq!(log(r#"{"level":"INFO","fields":{"message":"relayed"}}"#), None);
        let warning = r#"{"timestamp":"t","level":"WARN","fields":{"message":"uncertain","epoch":1},"target":"x"}"#;
        assert_eq!(log(warning).as_deref(), Some("WARN uncertain epoch=1"));
        let alarm = r#"{"level":"ERROR","message":"refused","alarm":"wrong_client","Alarm":1,"_aws":{"Timestamp":1}}"#;
        assert_eq!(log(alarm).as_deref(), Some("ERROR refused alarm=\"wrong_client\""));
        assert_eq!(log("thread 'main' panicked").as_deref(), Some("thread 'main' panicked"));
    }
}
