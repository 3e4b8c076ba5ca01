//! A message in the door: its call, and what becomes of it.

use shared::caller::{Authorized, Callers};
use shared::domain::clock::Millis;
use shared::domain::resource::Resource;
use shared::relay::queued::End;
use shared::relay::refused::Refused;
use shared::request::Request;

use super::message::{Call, Message};

/// The fate of a message after its delivery.
pub(super) enum Fate {
    /// Its call has ended. The result is sent, and then the message is deleted.
    End(Box<End>),
    /// It is no call.
    Poison(Refused),
    /// It takes a new turn, not before this instant.
    NewTurn(Millis),
    /// It has this turn, and is delivered again shortly before.
    Turn(Millis),
    /// It is delivered again at this instant.
    Again(Millis),
    /// It is delivered again after a pause that grows, and not before this instant.
    Later(Millis),
    /// It was tried, and is delivered again at this instant.
    Retry { at: Millis, attempts: u32 },
}

/// A message in the door.
pub(super) struct Delivery {
    pub(super) message: Message,
    pub(super) reference: Option<String>,
    pub(super) resource: Option<Resource>,
    /// `None` until it is decided.
    pub(super) fate: Option<Fate>,
    /// `None` if the message is no call.
    pub(super) call: Option<Admission>,
    /// True if the daily limit makes it wait.
    pub(super) is_parked: bool,
}

/// A call, and the caller's right to make it.
pub(super) enum Admission {
    Authorized(Authorized),
    Refused(Call, Refused),
}

impl Admission {
    /// The caller's id and the request.
    pub(super) fn parts(&self) -> (&str, &Request) {
        match self {
            Self::Authorized(authorized) => (authorized.caller().id(), authorized.request()),
            Self::Refused(call, _) => (&call.caller, &call.request),
        }
    }
}

impl Delivery {
    pub(super) fn of(message: Message, callers: &Callers) -> Self {
        let (reference, call) = message.call();
        let (mut resource, mut admission, mut fate) = (None, None, None);
        match call {
            Err(refused) => fate = Some(Fate::Poison(refused)),
            Ok(call) => {
                resource = Some(call.request.resource.clone());
                let caller = callers.of_queue(&call.caller).map_err(Refused::from);
                admission = Some(match caller.and_then(|caller| Ok(caller.authorize(call.request.clone())?)) {
                    Ok(authorized) => Admission::Authorized(authorized),
                    Err(refused) => Admission::Refused(call, refused),
                });
            }
        }
        Self { message, reference, resource, fate, call: admission, is_parked: false }
    }

    /// The schedule in which the call takes its turns: that of its resource, or that of its caller's share of it.
    pub(super) fn schedule(&self) -> Option<Schedule> {
        match (&self.resource, &self.call) {
            (Some(resource), Some(Admission::Authorized(call))) => {
                let share = call.caller().requests_per_10s().map(|most| (call.caller().id().to_owned(), most));
                Some(Schedule { resource: resource.clone(), share })
            }
            _ => None,
        }
    }
}

/// Identifies a schedule of turns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Schedule {
    pub(super) resource: Resource,
    /// A caller with a share of its own, and the size of that share.
    pub(super) share: Option<(String, u32)>,
}
