//! The next step of a reader of a token, decided from the stored installation. Pure code.

use super::TokenError;
use super::outcome::Why;
use super::schedule::{self, Freshness, freshness};
use crate::domain::clock::Millis;
use crate::domain::installation::{Installation, Schedule, SealedAccess};
use crate::domain::status::{Status, TokenVersion};

/// A token that the platform has refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct RefusedToken {
    pub(super) version: TokenVersion,
    /// The kind of refusal: [`Why::Forced`] or [`Why::Doubted`].
    pub(super) why: Why,
}

/// The next step of a reader, decided from the item.
pub(super) enum Next<'a> {
    Use(&'a SealedAccess),
    /// The token must be renewed. If the renewal fails, this token may be used, since it still works.
    Renew(Option<&'a SealedAccess>),
    Fail(TokenError),
}

/// Decides the next step of a reader from the item. `refused` is a token that the platform has refused.
pub(super) fn next(stored: &Installation, refused: Option<RefusedToken>, now: Millis) -> Next<'_> {
    let access = stored.access().filter(|_| refused.is_none_or(|token| stored.version > token.version));
    let freshness_of = |access: &SealedAccess| freshness(access.issued_at, access.expires_at, now);
    if let Some(access) = access
        && freshness_of(access) == Freshness::Fresh
        && schedule::unanswered_until(stored, now).is_none()
    {
        return Next::Use(access);
    }
    let usable = access.filter(|access| freshness_of(access) != Freshness::Expired);
    let Schedule { tried_at, retry_at, failures, .. } = stored.schedule();
    let tried = tried_at.unwrap_or(Millis(0));
    let later = tried + schedule::RETRY_ON_DEMAND;
    let instead = match stored.status() {
        Status::Active if refused.is_some_and(|token| is_in_vain(stored, token, now)) => TokenError::RecentlyForced,
        Status::Active | Status::Uncertain => {
            let retry_at = schedule::on_demand(tried, failures).max(retry_at.unwrap_or(tried));
            if retry_at <= now {
                return Next::Renew(usable);
            }
            TokenError::InProgress { retry_at }
        }
        Status::Refreshing => return Next::Renew(usable),
        Status::Suspended | Status::Blocked if later <= now => return Next::Renew(usable),
        Status::Suspended => TokenError::Suspended { retry_at: later },
        Status::Blocked => TokenError::InProgress { retry_at: later },
        Status::NeedsReauthorization => TokenError::ReauthorizationRequired { reinstall_url: stored.reinstall_url() },
        Status::Revoked => TokenError::Revoked,
    };
    usable.map_or(Next::Fail(instead), Next::Use)
}

/// Returns the end of the lease if another attempt holds the lease. A caller that waits for that end needs no time for
/// a lease of its own.
pub(super) fn held(stored: &Installation, now: Millis) -> Option<Millis> {
    stored.lease().map(|lease| lease.ends_at).filter(|end| *end > now)
}

/// Returns true if, by the item, a renewal of a refused token would not help.
fn is_in_vain(stored: &Installation, refused: RefusedToken, now: Millis) -> bool {
    let forced_apart = refused.why.forced_apart().unwrap_or_default();
    let forced_recently = stored.schedule().forced_at.is_some_and(|at| now.since(at) < forced_apart);
    stored.version == refused.version
        && (forced_recently || (refused.why == Why::Doubted && stored.findings.is_doubted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::installation::{
        AppDetails, CompanySearch, Findings, Installed, Lease, Life, SealedPair, Source, State,
    };
    use crate::domain::resource::Resource;
    use crate::domain::status::LeaseOwner;

    fn leased(ends_at: Millis) -> State {
        State::Refreshing(Lease { owner: LeaseOwner::new(), ends_at, claimed_from: Status::Active })
    }

    fn stored(status: Status, expires: i64) -> Installation {
        let installed = |state| {
            let access = SealedAccess { token: Vec::new(), issued_at: Millis(0), expires_at: Millis(expires) };
            let pair = Some(SealedPair { access, refresh: None });
            let source = Source::Own { pair, standby: Vec::new() };
            Life::Installed(Installed { state, source, schedule: Schedule::default() })
        };
        let life = match status {
            Status::Active => installed(State::Active),
            Status::Refreshing => installed(leased(NOW)),
            Status::Uncertain => installed(State::Uncertain),
            Status::Suspended => installed(State::Suspended),
            Status::Blocked => installed(State::Blocked),
            Status::NeedsReauthorization => installed(State::NeedsReauthorization),
            Status::Revoked => Life::Revoked { at: Millis(0) },
        };
        Installation {
            resource: Resource::location("L1").expect("an id"),
            version: TokenVersion { epoch: 1, generation: 7 },
            life,
            granted_from: 6,
            committed_by: None,
            imported_sha256: None,
            findings: Findings::default(),
            search: CompanySearch::default(),
            installed_at: Millis(0),
            company: None,
            scope: None,
            home: None,
            details: AppDetails::default(),
            published: None,
            outbox: Vec::new(),
        }
    }

    /// The state and the schedule of an installed app, to be changed.
    fn installed(stored: &mut Installation) -> &mut Installed {
        match &mut stored.life {
            Life::Installed(installed) => installed,
            Life::Revoked { .. } => panic!("the app is installed"),
        }
    }

    const NOW: Millis = Millis(80_000_000);
    const FRESH: i64 = 86_400_000;
    const STALE: i64 = NOW.0 + 30_000;
    const EXPIRED: i64 = NOW.0 - 1;

    fn decision(stored: &Installation, refused: Option<RefusedToken>) -> &'static str {
        match next(stored, refused, NOW) {
            Next::Use(_) => "use",
            Next::Renew(Some(_)) => "renew or use",
            Next::Renew(None) => "renew",
            Next::Fail(TokenError::Revoked) => "revoked",
            Next::Fail(TokenError::ReauthorizationRequired { .. }) => "reauthorize",
            Next::Fail(TokenError::Suspended { .. }) => "suspended",
            Next::Fail(TokenError::RecentlyForced) => "pass on",
            Next::Fail(_) => "later",
        }
    }

    #[test]
    fn none_but_revoked_stops_a_reader_from_a_token_that_works() {
        use Status::*;
        for (status, fresh, stale, expired) in [
            (Active, "use", "renew or use", "renew"),
            (Refreshing, "use", "renew or use", "renew"),
            (Uncertain, "use", "renew or use", "renew"),
            (Suspended, "use", "renew or use", "renew"),
            (Blocked, "use", "renew or use", "renew"),
            (NeedsReauthorization, "use", "use", "reauthorize"),
            (Revoked, "revoked", "revoked", "revoked"),
        ] {
            for (expires, expected) in [(FRESH, fresh), (STALE, stale), (EXPIRED, expired)] {
                assert_eq!(decision(&stored(status, expires), None), expected, "{status} until {expires}");
            }
        }
    }

    #[test]
    fn a_refused_token_is_renewed_unless_a_newer_one_is_stored_or_it_was_forced_a_moment_ago() {
        let mut item = stored(Status::Active, FRESH);
        let at = |generation| Some(RefusedToken { version: TokenVersion { epoch: 1, generation }, why: Why::Forced });
        assert_eq!(decision(&item, at(6)), "use");
        assert_eq!(decision(&item, at(7)), "renew");
        installed(&mut item).schedule.forced_at = Some(Millis(NOW.0 - 59_000));
        assert_eq!(decision(&item, at(7)), "pass on");
        installed(&mut item).schedule.forced_at = Some(Millis(NOW.0 - 60_000));
        assert_eq!(decision(&item, at(7)), "renew");
    }

    #[test]
    fn a_token_in_doubt_is_renewed_once_in_an_hour_and_not_if_it_came_of_such_a_renewal() {
        let mut item = stored(Status::Active, FRESH);
        let doubted = Some(RefusedToken { version: item.version, why: Why::Doubted });
        assert_eq!(decision(&item, doubted), "renew");
        installed(&mut item).schedule.forced_at = Some(Millis(NOW.0 - 3_599_000));
        assert_eq!(decision(&item, doubted), "pass on");
        installed(&mut item).schedule.forced_at = Some(Millis(NOW.0 - 3_600_000));
        assert_eq!(decision(&item, doubted), "renew");
        for (is_doubted, expected) in [(true, "pass on"), (false, "renew")] {
            item.findings.is_doubted = is_doubted;
            assert_eq!(decision(&item, doubted), expected, "{is_doubted}");
            let forced = doubted.map(|token| RefusedToken { why: Why::Forced, ..token });
            assert_eq!(decision(&item, forced), "renew", "a text that is known counts all the same");
        }
    }

    #[test]
    fn a_missing_answer_is_asked_for_while_the_platform_gives_it_again() {
        let ago = |ms| Some(Millis(NOW.0 - ms));
        let mut item = stored(Status::Uncertain, FRESH);
        installed(&mut item).schedule.failures = 1;
        for (tried, expected) in
            [(ago(999), "use"), (ago(1_000), "renew or use"), (ago(29_999), "renew or use"), (ago(30_000), "use")]
        {
            installed(&mut item).schedule.tried_at = tried;
            assert_eq!(decision(&item, None), expected, "{tried:?}");
        }
        (installed(&mut item).schedule.tried_at, installed(&mut item).state) = (ago(14_999), leased(Millis(NOW.0 + 1)));
        assert_eq!(decision(&item, None), "use", "its holder may live");
        (installed(&mut item).schedule.tried_at, installed(&mut item).state) = (ago(15_000), leased(NOW));
        assert_eq!(decision(&item, None), "renew or use");
    }

    #[test]
    fn what_the_platform_asked_for_is_waited_for() {
        let mut item = stored(Status::Active, EXPIRED);
        let schedule = &mut installed(&mut item).schedule;
        (schedule.failures, schedule.tried_at) = (1, Some(Millis(NOW.0 - 5_000)));
        schedule.retry_at = Some(Millis(NOW.0 + 1));
        assert_eq!(decision(&item, None), "later");
        installed(&mut item).schedule.retry_at = Some(NOW);
        assert_eq!(decision(&item, None), "renew");
    }

    #[test]
    fn callers_do_not_hammer_what_has_just_failed() {
        let mut item = stored(Status::Suspended, EXPIRED);
        installed(&mut item).schedule.tried_at = Some(Millis(NOW.0 - 1_000));
        assert_eq!(decision(&item, None), "suspended");
        installed(&mut item).state = State::Uncertain;
        installed(&mut item).schedule.failures = 3;
        assert_eq!(decision(&item, None), "later");
        installed(&mut item).schedule.tried_at = Some(Millis(NOW.0 - 4_000));
        assert_eq!(decision(&item, None), "renew");
    }
}
