//! The command that shows limits: those of one installation, or of all that have other limits than the default.

use std::time::Duration;

use serde_json::{Value, json};
use shared::domain::limits::Limits;
use shared::domain::resource::Resource;
use shared::limiter::Meter;

use crate::error::CommandError;
use crate::installations::find;
use crate::print::{Out, members, note};
use crate::progress;
use crate::stack::Stack;

/// Shows the limits of a known installation and their use.
pub(crate) async fn show(stack: &Stack, out: Out, resource: &Resource) -> Result<(), CommandError> {
    find(stack, resource).await?;
    let (usage, default) = (stack.app.limiter.usage(resource).await?, stack.app.config.limits.default);
    let value = |meter: Meter, default: u32| json!({ "limit": meter.limit, "default": default, "remaining": meter.remaining, "resets_at": meter.resets_at.rfc3339() });
    let text = |meter: Meter, default: u32| {
        let other = if meter.limit == default { String::new() } else { format!(" (default {default})") };
        format!("{} of {}{other} left, reset at {}", meter.remaining, meter.limit, meter.resets_at.rfc3339())
    };
    let burst = format!("{}, in {} ms", text(usage.burst, default.burst), milliseconds(usage.interval));
    out.value(
        &json!({
            "resource": resource,
            "burst": value(usage.burst, default.burst),
            "interval_ms": milliseconds(usage.interval),
            "daily": value(usage.daily, default.daily),
        }),
        &members(&[("resource", resource.to_string()), ("burst", burst), ("daily", text(usage.daily, default.daily))]),
    );
    Ok(())
}

/// Lists the locations and companies for which the platform has stated other limits than the default.
pub(crate) async fn list(stack: &Stack, out: Out) -> Result<(), CommandError> {
    let bar = progress::bar("read", None);
    let (mut found, mut unreadable, mut from) = (Vec::new(), 0_u64, None);
    loop {
        let part = stack.app.limiter.other_limits(from).await?;
        for item in part.items {
            bar.inc(1);
            match item {
                Ok(one) => found.push(one),
                Err(error) => {
                    unreadable += 1;
                    bar.suspend(|| note(&error.to_string()));
                }
            }
        }
        match part.next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    bar.finish_and_clear();
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    let value = |(resource, limits): &(Resource, Limits)| json!({ "resource": resource, "burst": limits.burst, "interval_ms": milliseconds(limits.interval), "daily": limits.daily });
    let values: Vec<Value> = found.iter().map(value).collect();
    let row = |(resource, limits): &(Resource, Limits)| {
        let numbers = [limits.burst.to_string(), milliseconds(limits.interval).to_string(), limits.daily.to_string()];
        std::iter::once(resource.to_string()).chain(numbers).collect()
    };
    out.list("limits", &values, &["resource", "burst", "interval ms", "daily"], found.iter().map(row).collect());
    if unreadable > 0 {
        return Err(CommandError::NotDone(format!("{unreadable} items cannot be read")));
    }
    Ok(())
}

fn milliseconds(interval: Duration) -> u64 {
    u64::try_from(interval.as_millis()).unwrap_or(u64::MAX)
}
