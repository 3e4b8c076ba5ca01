//! A share of a resource: so many requests in any 10 s that one owner may send of it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::queue::WaiterQueue;
use super::{Limiter, LimiterError, Permit};
use crate::domain::clock::{Clock, Millis};
use crate::domain::resource::Resource;

/// The interval of every share, whatever the interval of the resource's limit.
pub(crate) const SHARE_INTERVAL: Duration = Duration::from_secs(10);

/// The owner of a share. Each kind has keys of its own, so that no caller's id can be that of another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareOwner<'a> {
    /// A caller, by its id.
    Caller(&'a str),
    /// The minter, for locations that only a caller has named: a caller that asks for locations which do not exist must
    /// not use up the limit of their company.
    Minter,
}

impl ShareOwner<'_> {
    /// The key of its share of `resource`.
    pub(crate) fn key(self, resource: &Resource) -> String {
        let (kind, id) = (resource.kind().as_str(), resource.id());
        match self {
            Self::Caller(caller) => format!("caller-quota#{caller}#{kind}#{id}"),
            Self::Minter => format!("minter-quota#{kind}#{id}"),
        }
    }
}

/// A part of a share on which nothing was sent yet. It is given back, also where its holder goes away while it waits
/// for the resource's permit.
pub(super) struct Part<'a> {
    quota: &'a Limiter,
    share: &'a Arc<WaiterQueue>,
    permit: Option<Permit>,
}

impl<'a> Part<'a> {
    pub(super) fn new(quota: &'a Limiter, share: &'a Arc<WaiterQueue>, permit: Permit) -> Self {
        Self { quota, share, permit: Some(permit) }
    }

    /// A request will be sent on it, by the instant that is the answer.
    pub(super) async fn spend(mut self, clock: &Clock) -> Result<Millis, LimiterError> {
        let Some(part) = self.permit.take() else { return Ok(Millis(0)) };
        if clock.now() <= part.send_by {
            return Ok(part.send_by);
        }
        // A holder that goes away meanwhile loses the part for 10 s: nobody knows whether the write was applied.
        let renewed = Box::pin(self.share.renew(&self.quota.0.table, clock, &part)).await;
        if let Err(LimiterError::Refused(_)) = &renewed {
            self.permit = Some(part);
            self.give_back().await;
        }
        Ok(renewed?.send_by)
    }

    pub(super) async fn give_back(mut self) {
        if let Some(giving) = self.giving() {
            giving.await;
        }
    }

    fn giving(&mut self) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let permit = self.permit.take()?;
        let (quota, share) = (self.quota.clone(), Arc::clone(self.share));
        Some(Box::pin(async move {
            if let Err(error) = share.give_back(&quota.0.table, &quota.0.clock, &permit).await {
                tracing::warn!(share = share.key(), %error, "a part of a share is lost for 10 s");
            }
        }))
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        if let (Some(giving), Ok(runtime)) = (self.giving(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(giving);
        }
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
        for caller in ["(supposed)", "", "#", "minter", "minter-quota#company#C1", "../minter-quota"] {
            let key = ShareOwner::Caller(caller).key(&resource);
            assert!(key.starts_with("caller-quota#") && key != minter, "{key}");
        }
    }
}
