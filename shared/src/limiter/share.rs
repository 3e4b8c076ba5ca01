//! Hierarchical limits: a share of a resource is a limit of its own within the resource's limit. One owner may send so
//! many requests of the share in any 10 s.

use std::sync::Arc;
use std::time::Duration;

use super::Limiter;
use super::class::Class;
use super::counters::LimitKind;
use super::permit::{LimiterError, Permit};
use super::queue::{PermitRequest, PermitResult, WaiterQueue};
use crate::domain::clock::Millis;
use crate::domain::limits::{Endpoint, LimitPolicy, Limits};
use crate::domain::resource::Resource;

/// The interval of every share, for every interval of the resource's limit.
pub(super) const SHARE_INTERVAL: Duration = Duration::from_secs(10);

/// The owner of a share. The keys of each kind begin differently, so the share of one kind never is that of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareOwner<'a> {
    /// A caller, by its id.
    Caller(&'a str),
    /// The minter, for locations that only a caller has named. A caller that asks for locations which do not exist must
    /// not use up the limit of their company.
    Minter,
}

impl ShareOwner<'_> {
    /// The key of its share of `resource`.
    fn key(self, resource: &Resource) -> String {
        let (kind, id) = (resource.kind().as_str(), resource.id());
        match self {
            Self::Caller(caller) => format!("caller-quota#{caller}#{kind}#{id}"),
            Self::Minter => format!("minter-quota#{kind}#{id}"),
        }
    }
}

impl Limiter {
    /// Takes a permit like [`Limiter::take`], within the share of `owner` in the resource: `burst` requests in any 10
    /// s, without a daily limit. The permit's `send_by` is the earlier one of the share's permit and the resource's.
    ///
    /// The share's permit is taken first, so an owner that has used up its share takes nothing from the others. If the
    /// resource refuses, the share's permit is given back. If the resource's permit comes after the `send_by` of the
    /// share's permit, the latter is exchanged for one of the present; if the share has no place, the resource's permit
    /// goes to the next waiter of this process. If both refuse, the error is the refusal that ends later.
    ///
    /// # Errors
    /// [`LimiterError`]. A refusal by the share is [`LimitKind::Caller`], with the share's usage.
    pub async fn take_within_share<'a>(
        &self,
        owner: ShareOwner<'_>,
        to: impl Into<Endpoint<'a>>,
        burst: u32,
        wait_until: Option<Millis>,
    ) -> Result<Permit, LimiterError> {
        let Endpoint { resource, name } = to.into();
        let share = self.share_of(owner, resource, burst);
        let whole = self.queue_of(resource);
        let request = PermitRequest { endpoint: name, wait_until, class: Class::Caller };
        loop {
            let answer = take_both(&share, &whole, request).await;
            if !self.must_ask_again(&answer, wait_until).await {
                return answer;
            }
        }
    }

    /// The waiter queue of a share of `burst` requests.
    pub(super) fn share_of(&self, owner: ShareOwner<'_>, resource: &Resource, burst: u32) -> Arc<WaiterQueue> {
        let policy = LimitPolicy::from(Limits { burst, interval: SHARE_INTERVAL, daily: u32::MAX });
        let share = self.queue(owner.key(resource), LimitKind::Caller, policy);
        share.adopt(policy);
        share
    }
}

/// Takes a permit of the share and one of the whole resource. A share serves all classes in order of arrival.
pub(super) async fn take_both(
    share: &Arc<WaiterQueue>,
    whole: &Arc<WaiterQueue>,
    request: PermitRequest<'_>,
) -> PermitResult {
    let of_share = PermitRequest { endpoint: None, class: Class::Caller, ..request };
    if let Some(refusal) = whole.local_refusal(request) {
        return Err(LimiterError::Refused(refusal).or_later(share.local_refusal(of_share)));
    }
    let share_permit = match share.take(of_share).await {
        Ok(permit) => SharePermit { share, permit, is_unused: true },
        Err(error) => return Err(error.or_later(whole.local_refusal(request))),
    };
    let permit = match whole.take(request).await {
        Ok(permit) => permit,
        Err(error) => {
            share_permit.give_back().await;
            return Err(error.or_later(share.local_refusal(of_share)));
        }
    };
    match share_permit.spend().await {
        Ok(send_by) => Ok(Permit { send_by: send_by.min(permit.send_by), ..permit }),
        Err(error) => {
            whole.hand_on(permit);
            Err(error)
        }
    }
}

/// A permit of a share. If its holder goes away before it is spent, it is given back.
struct SharePermit<'a> {
    share: &'a Arc<WaiterQueue>,
    permit: Permit,
    is_unused: bool,
}

impl SharePermit<'_> {
    /// Spends the permit on a request, or an exchanged one if it is too late. Returns the `send_by`.
    async fn spend(mut self) -> Result<Millis, LimiterError> {
        self.is_unused = false;
        // If the holder goes away during an exchange, the permit is lost for 10 s: nobody learns the result of the
        // write.
        let spent = Box::pin(self.share.exchange_if_late(self.permit)).await;
        if let Err(LimiterError::Refused(_)) = &spent {
            self.give_back().await;
        }
        Ok(spent?.send_by)
    }

    async fn give_back(mut self) {
        self.is_unused = false;
        give_back(Arc::clone(self.share), self.permit).await;
    }
}

impl Drop for SharePermit<'_> {
    fn drop(&mut self) {
        if self.is_unused
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(give_back(Arc::clone(self.share), self.permit));
        }
    }
}

async fn give_back(share: Arc<WaiterQueue>, permit: Permit) {
    if let Err(error) = share.give_back(&permit).await {
        tracing::warn!(share = share.key(), %error, "a permit of a share was not given back; it is lost for 10 s");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_caller_has_the_key_of_the_minters_share() {
        let resource = Resource::company("C1").expect("an id");
        let minter = ShareOwner::Minter.key(&resource);
        assert_eq!(minter, "minter-quota#company#C1");
        for caller in ["(minter)", "", "#", "minter", "minter-quota#company#C1", "../minter-quota"] {
            let key = ShareOwner::Caller(caller).key(&resource);
            assert!(key.starts_with("caller-quota#") && key != minter, "{key}");
        }
    }
}
