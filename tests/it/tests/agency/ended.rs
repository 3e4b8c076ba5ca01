//! Locations of an agency whose installation has ended.

use std::time::Duration;

use it::proxy::Call;
use it::world::{Process, World, grantee, location};
use sandbox::marketplace::Location;
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::json;
use shared::domain::access::Access;
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::token::TokenError;
use shared::token::outcome::Why;

use crate::search::{agency, asked, many};
use crate::{access, works};

it::stories!(
    a_location_that_moved_from_an_agency_that_has_ended_is_found_at_the_first_call,
    a_location_that_moved_from_an_agency_that_has_ended_is_found_among_many_by_the_schedule,
    a_location_of_an_agency_that_has_ended_keeps_the_answer_of_its_agency,
    an_agency_that_recovers_has_its_locations_back_at_once,
);

/// The way in which an agency's installation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Uninstalled,
    /// The platform refuses the agency's refresh token.
    Refused,
}

impl End {
    async fn come(self, world: &World, process: &Process, company: &Resource) {
        match self {
            Self::Uninstalled => {
                world.market.uninstall(&grantee(company));
                process.installations.uninstall(company, world.clock.now()).await.expect("a table");
                assert_eq!(world.status(company).await, Status::Revoked);
            }
            Self::Refused => {
                let refusal = Fault::refusal(400, "Invalid grant: refresh token is invalid");
                world.market.fault(Endpoint::Refresh, refusal, Some(1));
                let version = world.stored(company).await.version;
                process.refresher.refresh(company, version, Why::Due, world.deadline()).await;
                assert_eq!(world.status(company).await, Status::NeedsReauthorization);
            }
        }
        world.expire();
    }

    fn assert_told(self, found: &Result<Access, TokenError>) {
        match self {
            Self::Uninstalled => assert!(matches!(found, Err(TokenError::Revoked)), "{found:?}"),
            Self::Refused => {
                assert!(matches!(found, Err(TokenError::ReauthorizationRequired { .. })), "{found:?}");
            }
        }
    }
}

/// Moves the location M1 to this agency only, or to no agency.
fn move_m1(world: &World, company: Option<&str>) {
    world.market.change(|options| {
        options.agencies.values_mut().for_each(|locations| locations.retain(|location| location.id != "M1"));
        if let Some(company) = company {
            let locations = options.agencies.entry(company.to_owned()).or_default();
            locations.push(Location { id: "M1".into(), name: "Moved".into() });
        }
    });
}

async fn a_location_that_moved_from_an_agency_that_has_ended_is_found_at_the_first_call(world: World) {
    let process = world.process().await;
    for (end, from, to) in [(End::Uninstalled, 1, 2), (End::Refused, 2, 3)] {
        many(&world, &process, 4).await;
        move_m1(&world, Some(agency(from).id()));
        let moved = location("M1");
        world.expire();
        works(&world, &process, &moved).await;
        assert_eq!(world.stored(&moved).await.company.as_deref(), Some(agency(from).id()), "{end:?}");
        move_m1(&world, Some(agency(to).id()));
        end.come(&world, &process, &agency(from)).await;
        works(&world, &process, &moved).await;
        assert_eq!(world.stored(&moved).await.company.as_deref(), Some(agency(to).id()), "{end:?}");
        works(&world, &world.process().await, &moved).await;
    }
}

async fn a_location_that_moved_from_an_agency_that_has_ended_is_found_among_many_by_the_schedule(world: World) {
    let process = world.process().await;
    let moved = location("M1");
    for end in [End::Refused, End::Uninstalled] {
        many(&world, &process, 8).await;
        world.expire();
        assert!(matches!(access(&world, &process, &moved).await, Err(TokenError::InProgress { .. })), "{end:?}");
        process.tokens.search(world.deadline()).await;
        works(&world, &process, &moved).await;
        assert_eq!(world.stored(&moved).await.company.as_deref(), Some("C1"), "{end:?}");
        // The location does not belong to any of the five agencies with the latest install notices.
        move_m1(&world, Some("C2"));
        end.come(&world, &process, &agency(1)).await;
        end.assert_told(&access(&world, &process, &moved).await);
        process.tokens.search(world.deadline()).await;
        works(&world, &process, &moved).await;
        assert_eq!(world.stored(&moved).await.company.as_deref(), Some("C2"), "{end:?}");
        assert_eq!(world.table.searches().await.expect("a table"), []);
    }
}

async fn a_location_of_an_agency_that_has_ended_keeps_the_answer_of_its_agency(world: World) {
    let (one, other) = (world.process().await, world.process().await);
    let left = location("M1");
    for (end, count) in [(End::Refused, 3), (End::Uninstalled, 3), (End::Refused, 8), (End::Uninstalled, 8)] {
        many(&world, &one, count).await;
        world.expire();
        works(&world, &one, &left).await;
        move_m1(&world, None);
        end.come(&world, &one, &agency(1)).await;
        let reserved = || one.proxy.calls(Call::Reserve) + other.proxy.calls(Call::Reserve);
        let (pair, before, marks) = (world.stored(&left).await.access().cloned(), asked(&world, &left), reserved());
        for _ in 0..3 {
            for process in [&one, &other] {
                end.assert_told(&access(&world, process, &left).await);
            }
            one.tokens.search(world.deadline()).await;
            world.advance(Duration::from_secs(10));
        }
        let others = if count > 6 { 5 + count - 1 } else { count - 1 };
        assert_eq!(asked(&world, &left) - before, others, "each other agency is asked, and not for every call");
        let stored = world.stored(&left).await;
        assert_eq!((stored.status(), stored.access()), (Status::Active, pair.as_ref()), "nothing is erased");
        let known = stored.search;
        assert_eq!((known.absent_until, known.search_since), (None, None), "nothing is concluded");
        assert_eq!(reserved(), marks, "no place of the budget of marks is asked for");
        assert_eq!(world.table.searches().await.expect("a table"), []);
        // One agency cannot be asked. The answer stays the same.
        world.advance(Duration::from_hours(2));
        world.market.fault(Endpoint::Mint, Fault::refusal(400, "Location is not active"), None);
        end.assert_told(&access(&world, &one, &left).await);
        end.assert_told(&access(&world, &other, &left).await);
        world.market.clear_faults();
        assert_eq!(world.status(&left).await, Status::Active);
    }
}

async fn an_agency_that_recovers_has_its_locations_back_at_once(world: World) {
    let process = world.process().await;
    let l1 = location("M1");
    for count in [3, 8] {
        many(&world, &process, count).await;
        world.expire();
        works(&world, &process, &l1).await;
        End::Refused.come(&world, &process, &agency(1)).await;
        End::Refused.assert_told(&access(&world, &process, &l1).await);
        if count == 8 {
            assert!(world.stored(&l1).await.search.search_since.is_some());
            process.tokens.search(world.deadline()).await;
        }
        // This refresh is not an install, so the list of agencies stays as it is.
        world.refresh(&process, json!({ "resource": agency(1), "force": true })).await;
        world.advance(Duration::from_secs(9));
        works(&world, &process, &l1).await;
    }
    world.end().await;
}
