//! The buttons of the console. Each answers with a sentence about its action. The results of the action are shown as
//! events.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::json;
use shared::domain::{installation::Installation, status::Status};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::Desk;
use crate::{
    events::Event,
    marketplace::{
        faults::{Endpoint, Fault},
        grants::Resource,
    },
    process::Signal,
    whole::{APP_SECRET, CALLBACK_PATH, CALLER, refresh_invocation},
};

/// The action of a button.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub(super) enum Action {
    /// Install the app, as from the marketplace.
    Install { resource: Resource },
    /// Uninstall the app.
    Uninstall { resource: Resource },
    /// Call the platform through the relay, `times` times at once.
    Call { resource: Resource, times: usize },
    /// Put `times` calls on the queue of calls.
    Queue { resource: Resource, times: usize },
    /// End the access tokens at the platform.
    Expire { resource: Resource },
    /// Refresh the token, as an operator does.
    Refresh { resource: Resource },
    /// Refresh the token, and kill the process once the platform has spent the token.
    Kill { resource: Resource },
    /// The platform sends `times` webhooks of the location at once.
    Webhooks { resource: Resource, times: usize },
    /// Pause a location at the platform, or resume it.
    Pause { resource: Resource, paused: bool },
    /// The platform's next two answers to token requests are lost.
    LoseAnswers,
    /// The platform answers everything with 503.
    FailAll,
    /// The client secret is changed in the marketplace, but not in Secrets Manager.
    ChangeSecret,
    /// Remove all faults.
    Mend,
}

/// The most calls at once.
const MOST_CALLS: usize = 500;
/// The most calls that a button queues.
const MOST_QUEUED: usize = 1_000;
/// Delay of the platform's answer, during which its receiver is killed.
const ON_ITS_WAY: Duration = Duration::from_secs(4);
/// Longest wait for the platform to spend the token.
const SPENT_WITHIN: Duration = Duration::from_secs(10);
/// Interval and number of the calls that are sent after a kill.
const CALL_AGAIN: Duration = Duration::from_secs(2);
const CALLS_AFTER_KILL: u32 = 22;

type Said = Result<String, String>;

impl Action {
    fn resource(&self) -> Option<&Resource> {
        match self {
            Self::Install { resource }
            | Self::Uninstall { resource }
            | Self::Call { resource, .. }
            | Self::Queue { resource, .. }
            | Self::Expire { resource }
            | Self::Refresh { resource }
            | Self::Kill { resource }
            | Self::Webhooks { resource, .. }
            | Self::Pause { resource, .. } => Some(resource),
            Self::LoseAnswers | Self::FailAll | Self::ChangeSecret | Self::Mend => None,
        }
    }
}

impl Desk {
    /// Performs an action and returns a sentence about it.
    ///
    /// # Errors
    /// A sentence that says why the action cannot be performed.
    pub(super) async fn act(desk: &Arc<Self>, action: Action) -> Said {
        let platform = &desk.controls.platform;
        if action.resource().is_some_and(|resource| !platform.options().has(resource)) {
            return Err("The agency has no such location.".to_owned());
        }
        match action {
            Action::Install { resource } => desk.install(&resource).await,
            Action::Uninstall { resource } => {
                let is_stored = desk.installed(&resource).await?.is_some();
                if !is_stored && platform.live_refresh_tokens(&resource).is_empty() {
                    return Err("The app is not installed there.".to_owned());
                }
                platform.uninstall(&resource);
                Ok("Uninstalled. The platform sends the webhook now.".to_owned())
            }
            Action::Call { resource, times } if (1..=MOST_CALLS).contains(&times) => desk.call(&resource, times).await,
            Action::Call { .. } => Err(format!("Send 1 to {MOST_CALLS} calls at once.")),
            Action::Queue { resource, times } if (1..=MOST_QUEUED).contains(&times) => {
                (0..times).for_each(|number| desk.queue(&resource, number));
                Ok(format!(
                    "{times} calls are on the queue. They leave at the pace of the limit, and single calls get through. Where the app is not installed, they are refused."
                ))
            }
            Action::Queue { .. } => Err(format!("Queue 1 to {MOST_QUEUED} calls.")),
            Action::Expire { resource } => {
                if desk.stored(&resource).await?.is_none_or(|stored| stored.access().is_none()) {
                    return Err("There is no access token. Install the app, or send one call.".to_owned());
                }
                platform.expire_access_tokens_of(&resource);
                Ok("The platform no longer accepts the access token. The next call renews it.".to_owned())
            }
            Action::Refresh { resource } => desk.refresh(&resource).await,
            Action::Kill { resource } => Self::kill(desk, &resource).await,
            Action::Webhooks { resource, times } if (1..=MOST_CALLS).contains(&times) => {
                platform.send_events(&resource, times);
                Ok(format!("The platform sends {times} webhooks. Each is on the bus once it was answered 200."))
            }
            Action::Webhooks { .. } => Err(format!("Send 1 to {MOST_CALLS} webhooks at once.")),
            Action::Pause { resource, paused } => {
                platform.set_active(resource, !paused);
                Ok(if paused {
                    "Paused at the platform. If the app is installed there, the next refresh notices."
                } else {
                    "Active again at the platform."
                }
                .to_owned())
            }
            Action::LoseAnswers => {
                platform.fault(Endpoint::Token, Fault::answer_lost(), Some(2));
                Ok("The next two answers to token requests will be lost, after the token is spent.".to_owned())
            }
            Action::FailAll => {
                for at in [Endpoint::Token, Endpoint::Mint, Endpoint::Api] {
                    platform.fault(at, Fault::refusal(503, "Service Unavailable"), None);
                }
                Ok("The platform answers every request with 503 until you press Mend everything.".to_owned())
            }
            Action::ChangeSecret => {
                platform.change(|options| {
                    options.client_secret = format!("sandbox-secret-{}", shared::domain::random::hex::<12>());
                });
                desk.control("the client secret was changed in the marketplace");
                Ok("The app's secret in Secrets Manager is wrong now. The next refresh fails.".to_owned())
            }
            Action::Mend => {
                platform.clear_faults();
                platform.set_all_active();
                let options = platform.options();
                let app = json!({ "client_id": options.client_id, "client_secret": options.client_secret });
                desk.controls.secrets.put(APP_SECRET, app.to_string());
                desk.control("all faults are removed, nothing is paused, and the app's secret is correct");
                Ok("All faults are removed, nothing is paused, and the app's secret is correct. The functions read a changed secret within a minute."
                    .to_owned())
            }
        }
    }

    fn control(&self, what: impl Into<String>) {
        self.controls.bus.publish(Event::Control { what: what.into() });
    }

    async fn install(&self, resource: &Resource) -> Said {
        let code = self.controls.platform.install(resource);
        let url = format!("{}{CALLBACK_PATH}?code={code}", self.controls.gateway_url);
        let answer = self.client.get(url).send().await.map_err(|error| error.to_string())?;
        match answer.status().as_u16() {
            200 => Ok("Installed: the code is exchanged, the tokens are sealed and stored.".to_owned()),
            status => Err(format!("The callback answered {status}.")),
        }
    }

    /// Calls one of two endpoints in turn: a raised limit holds after answers of two endpoints have stated it.
    async fn one_call(&self, resource: &Resource, number: usize) -> Outcome {
        let path = match resource {
            Resource::Location(id) if number % 2 == 1 => format!("/relay/locations/{id}/locations/{id}"),
            Resource::Location(id) => format!("/relay/locations/{id}/contacts/?limit=1"),
            Resource::Company(id) => format!("/relay/companies/{id}/companies/{id}"),
        };
        let url = format!("{}{path}", self.controls.gateway_url);
        let Ok(answer) = self.client.get(url).bearer_auth(&self.controls.caller_key).send().await else {
            return Outcome::default();
        };
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (source, retry) = (header("relay-source"), header("relay-retry-after-ms"));
        let status = answer.status().as_u16();
        let code = match (source.as_deref(), status) {
            (Some("relay"), 400..) => code_of(&answer.bytes().await.unwrap_or_default()),
            _ => None,
        };
        Outcome { status, source, code, retry_ms: retry.and_then(|text| text.parse().ok()) }
    }

    /// Puts a call on the queue.
    fn queue(&self, resource: &Resource, number: usize) {
        let path = match resource {
            Resource::Location(_) => "/contacts/".to_owned(),
            Resource::Company(id) => format!("/companies/{id}"),
        };
        let message = json!({
            "caller": CALLER, "reference": format!("console-{number}"), "resource": resource, "method": "GET", "path": path,
        });
        self.controls.calls.send_in_group(message.to_string(), &resource.to_string());
    }

    async fn call(&self, resource: &Resource, times: usize) -> Said {
        let began = Instant::now();
        let outcomes = join_all((0..times).map(|number| self.one_call(resource, number))).await;
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for outcome in &outcomes {
            *counts.entry(outcome.in_words()).or_default() += 1;
        }
        let counts: Vec<String> = counts.into_iter().map(|(what, count)| format!("{count} {what}")).collect();
        let again = outcomes.iter().filter_map(|outcome| outcome.retry_ms).min();
        let again = again.map_or_else(String::new, |ms| format!(" Try again in {} s.", ms.div_ceil(1000)));
        Ok(format!("{} in {} ms.{again}", counts.join(", "), began.elapsed().as_millis()))
    }

    /// The stored installation, if the app is installed and not only named by a call.
    async fn installed(&self, resource: &Resource) -> Result<Option<Installation>, String> {
        let stored = self.stored(resource).await?;
        Ok(stored.filter(|stored| stored.status().is_installed() && !stored.is_placeholder()))
    }

    async fn refresh(&self, resource: &Resource) -> Said {
        let event = json!({ "resource": resource, "force": true });
        let answer = self.controls.runtime.invoke_json("refresh", &event, refresh_invocation()).await;
        let summary = answer.map_err(|error| error.to_string())?;
        let count = |name: &str| summary[name].as_u64().unwrap_or_default();
        match (count("refreshed"), count("minted"), count("deferred"), count("failed")) {
            (1, ..) => Ok("Refreshed: a new pair is stored.".to_owned()),
            (_, 1, ..) => Ok("Minted: a new token from the agency's is stored.".to_owned()),
            (_, _, 1, _) => Ok("Deferred: the schedule tries again.".to_owned()),
            _ => {
                let stored = self.stored(resource).await?;
                let now = stored.map_or("not installed".to_owned(), |stored| stored.status().to_string());
                Ok(format!("Not refreshed. The installation is {now}. The events show the reason."))
            }
        }
    }

    /// Lets `refresh` present the token, waits until the platform has spent it, and kills the process while the answer
    /// with the only copy of the new pair is on its way.
    async fn kill(desk: &Arc<Self>, resource: &Resource) -> Said {
        let stored = desk.installed(resource).await?;
        let stored = stored.ok_or("There is no token to renew. Install the app, or send one call.")?;
        let holder = desk.controls.workers.iter().find(|worker| worker.function() == "refresh");
        let holder = holder.ok_or("The sandbox has no refresh process of its own.")?;
        let at = if stored.minted().is_some() { Endpoint::Mint } else { Endpoint::Refresh };
        let platform = &desk.controls.platform;
        let late = Fault::Late { millis: u64::try_from(ON_ITS_WAY.as_millis()).unwrap_or(u64::MAX) };
        platform.fault(at, late.clone(), Some(1));
        let events = desk.controls.bus.subscribe();
        let mut refreshing = tokio::spawn({
            let (desk, resource) = (Arc::clone(desk), resource.clone());
            async move { desk.refresh(&resource).await }
        });
        let spent = tokio::time::timeout(SPENT_WITHIN, token_granted(events, resource));
        let ended = tokio::select! {
            biased;
            Ok(()) = spent => None,
            ended = &mut refreshing => Some(ended),
        };
        if let Some(ended) = ended {
            platform.forget_fault(at, &late);
            return Err(match ended {
                Ok(Ok(said) | Err(said)) => format!("The platform granted no token. {said}"),
                Err(_) => "The platform granted no token.".to_owned(),
            });
        }
        if !holder.signal(Signal::Kill).await {
            return Err("The process had already ended.".to_owned());
        }
        let name = holder.name();
        desk.control(format!(
            "{name} was killed (SIGKILL) after the platform had spent the token and before its answer arrived"
        ));
        tokio::spawn({
            let (desk, resource) = (Arc::clone(desk), resource.clone());
            async move { desk.go_on_calling(&resource, stored.version.generation).await }
        });
        Ok(format!(
            "{name} is dead, and the platform's answer is lost. Callers continue to call. Watch the lease expire and the installation recover."
        ))
    }

    /// Calls like a team's functions, which continue to call after a failed refresh.
    async fn go_on_calling(&self, resource: &Resource, generation: u64) {
        for _ in 0..CALLS_AFTER_KILL {
            tokio::time::sleep(CALL_AGAIN).await;
            let _seen_in_the_events = self.one_call(resource, 0).await;
            match self.stored(resource).await {
                Ok(Some(now)) if now.version.generation > generation => {
                    let how = match now.minted() {
                        None => "the same refresh token was presented again, and the new pair is stored",
                        Some(_) => "its token was minted again",
                    };
                    self.control(format!("{resource} has recovered: {how}"));
                    return;
                }
                Ok(Some(now)) if matches!(now.status(), Status::NeedsReauthorization | Status::Revoked) => {
                    self.control(format!("{resource} did not recover: it is {}", now.status()));
                    return;
                }
                _ => {}
            }
        }
    }
}

/// Waits until the platform has granted a token for a resource.
async fn token_granted(mut events: Receiver<Event>, resource: &Resource) {
    let wanted = resource.to_string();
    loop {
        match events.recv().await {
            Ok(Event::Token { grant, resource: Some(resource), outcome, .. })
                if resource == wanted && outcome == "granted" && grant != "authorization_code" =>
            {
                return;
            }
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// The answer to a call. Status 0 means that there was no answer.
#[derive(Debug, Default)]
struct Outcome {
    status: u16,
    source: Option<String>,
    code: Option<String>,
    retry_ms: Option<u64>,
}

impl Outcome {
    fn in_words(&self) -> String {
        match (self.status, self.source.as_deref(), self.code.as_deref()) {
            (0, ..) => "without an answer".to_owned(),
            (429, Some("relay"), _) => "refused by the relay (429)".to_owned(),
            (status, Some("platform"), _) => format!("answered by the platform ({status})"),
            (status, _, Some(code)) => format!("refused by the relay ({status} {code})"),
            (status, ..) => format!("answered {status}"),
        }
    }
}

fn code_of(body: &[u8]) -> Option<String> {
    let problem: serde_json::Value = serde_json::from_slice(body).ok()?;
    problem["code"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buttons_speak_json() {
        let read = |text: &str| serde_json::from_str::<Action>(text).ok();
        let resource = Resource::Location("L1".into());
        assert_eq!(
            read(r#"{"action":"call","resource":{"location":"L1"},"times":150}"#),
            Some(Action::Call { resource: resource.clone(), times: 150 })
        );
        assert_eq!(read(r#"{"action":"kill","resource":{"location":"L1"}}"#), Some(Action::Kill { resource }));
        assert_eq!(read(r#"{"action":"lose_answers"}"#), Some(Action::LoseAnswers));
        let webhooks = r#"{"action":"webhooks","resource":{"location":"L1"},"times":200}"#;
        assert!(matches!(read(webhooks), Some(Action::Webhooks { times: 200, .. })));
        let queue = r#"{"action":"queue","resource":{"location":"L1"},"times":1000}"#;
        assert!(matches!(read(queue), Some(Action::Queue { times: 1_000, .. })));
        for odd in [r#"{"action":"kill"}"#, r#"{"action":"rm"}"#, "{}", "[]"] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }
}
