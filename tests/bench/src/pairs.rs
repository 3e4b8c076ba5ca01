//! Measures A and B in turns. On a machine with other load, only figures that were measured side by side can be
//! compared.
//!
//! Small batches of the raw baseline and of the system alternate (A B, then B A). Each pair of batches gives a ratio;
//! the median of the ratios is the result, and their quartiles are reported with it.

use std::time::{Duration, Instant};

/// The ratios of system to raw baseline, by pairs of batches.
#[derive(Clone, Debug)]
pub(crate) struct Ratio {
    /// Median of the pairs' ratios.
    pub(crate) median: f64,
    /// First and third quartile of the pairs' ratios.
    pub(crate) quartiles: (f64, f64),
    /// Median of the raw batches.
    pub(crate) raw: f64,
    /// Median of the system's batches.
    pub(crate) system: f64,
    /// Pairs of batches.
    pub(crate) pairs: usize,
}

impl Ratio {
    /// The result of measured pairs (raw, system).
    pub(crate) fn of(pairs: &[(f64, f64)]) -> Self {
        let ratios: Vec<f64> = pairs.iter().map(|(raw, system)| system / raw).collect();
        Self {
            median: quantile(&ratios, 0.5),
            quartiles: (quantile(&ratios, 0.25), quantile(&ratios, 0.75)),
            raw: quantile(&pairs.iter().map(|(raw, _)| *raw).collect::<Vec<_>>(), 0.5),
            system: quantile(&pairs.iter().map(|(_, system)| *system).collect::<Vec<_>>(), 0.5),
            pairs: pairs.len(),
        }
    }
}

/// Measures `pairs` pairs. Each side returns the figure of one batch.
pub(crate) async fn alternate(
    pairs: usize,
    mut raw: impl AsyncFnMut() -> f64,
    mut system: impl AsyncFnMut() -> f64,
) -> Ratio {
    let mut measured = Vec::with_capacity(pairs);
    for pair in 0..pairs {
        let (of_raw, of_system) = if pair % 2 == 0 {
            let of_raw = raw().await;
            (of_raw, system().await)
        } else {
            let of_system = system().await;
            (raw().await, of_system)
        };
        measured.push((of_raw, of_system));
    }
    Ratio::of(&measured)
}

/// The median time of `calls` calls one after the other, in microseconds.
pub(crate) async fn p50(calls: usize, call: impl AsyncFnMut()) -> f64 {
    p50_after(calls, async || {}, call).await
}

/// The median time of `calls` calls, each after a preparation that is not measured.
pub(crate) async fn p50_after(calls: usize, before: impl AsyncFnMut(), call: impl AsyncFnMut()) -> f64 {
    quantile(&times_after(calls, before, call).await, 0.5)
}

/// The times of `calls` calls one after the other, in microseconds.
pub(crate) async fn times(calls: usize, call: impl AsyncFnMut()) -> Vec<f64> {
    times_after(calls, async || {}, call).await
}

async fn times_after(calls: usize, mut before: impl AsyncFnMut(), mut call: impl AsyncFnMut()) -> Vec<f64> {
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        before().await;
        let began = Instant::now();
        call().await;
        times.push(micros(began.elapsed()));
    }
    times
}

/// The rate per second.
pub(crate) fn rate(count: usize, took: Duration) -> f64 {
    float(count) / took.as_secs_f64()
}

/// The time in microseconds.
pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A count as a figure. Exact below 2^53, which no count here reaches.
#[expect(clippy::cast_precision_loss, reason = "exact below 2^53, which no count here reaches")]
pub(crate) fn float(count: usize) -> f64 {
    count as f64
}

/// The value below which this fraction of `values` lies.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a part of a length, which is neither negative nor beyond it"
)]
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (float(sorted.len().saturating_sub(1)) * part).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_ratio_of_pairs_sees_through_a_machine_that_slows_down() {
        let (mut raw, mut system) = (0.0, 0.0);
        let ratio = alternate(
            21,
            async || {
                raw += 1.0;
                raw
            },
            async || {
                system += 2.0;
                system
            },
        );
        let ratio = ratio.await;
        let text = format!("{} {:?} {} {} {}", ratio.median, ratio.quartiles, ratio.raw, ratio.system, ratio.pairs);
        assert_eq!(text, "2 (2.0, 2.0) 11 22 21");
    }

    #[test]
    fn quantiles_are_values_of_the_list() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        let found = [0.0, 0.25, 0.5, 1.0].map(|part| format!("{}", quantile(&values, part)));
        assert_eq!(found, ["1", "2", "3", "5"]);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
