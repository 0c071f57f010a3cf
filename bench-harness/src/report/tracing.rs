//! Targets of the tracer of page faults: that what it says is so, and what it costs.

use super::evidence::Evidence;
use super::verdict::{Claim, Verdict, times};
use crate::results::Micro;
use crate::units::format_us;

/// How far the tracer may be from what the code that faults sees.
const AGREEMENT: f64 = 0.10;
const COST_US: f64 = 0.3;
/// Up to so many LWTs, and from one on.
const MOST_LWTS: u32 = 512;

/// One number of LWTs, one worker.
#[derive(Debug, Clone, Copy)]
struct Point {
    lwts: u32,
    agreement: f64,
    traced_us: f64,
    in_process_us: f64,
    entry_us: f64,
    cost_us: f64,
}

fn points(evidence: &Evidence<'_>) -> Vec<Point> {
    let of = |record: &Micro| match *record {
        Micro::NotifyTrace { lwts, workers: 1, agreement, traced_p50_us: traced_us, in_process_p50_us: in_process_us, entry_us, cost_us }
            if lwts <= MOST_LWTS =>
        {
            Some(Point { lwts, agreement, traced_us, in_process_us, entry_us, cost_us })
        }
        _ => None,
    };
    let mut points: Vec<Point> = evidence.micro().filter_map(of).collect();
    points.sort_by_key(|point| point.lwts);
    points
}

pub fn targets(evidence: &Evidence<'_>) -> Vec<Claim> {
    vec![agreement(evidence), cost(evidence)]
}

fn command(evidence: &Evidence<'_>) -> String {
    evidence.command_of_micro(|record| matches!(record, Micro::NotifyTrace { .. }))
}

fn agreement(evidence: &Evidence<'_>) -> Claim {
    let claim =
        Claim::new(format!("The tracer's notification latency agrees with what the faulting code measures, 1 to {MOST_LWTS} LWTs"), "within 10 %");
    let points = points(evidence);
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return claim.missing("missing: series traced (lightswap-bench micro notify as root)");
    };
    let distance = |point: &Point| (point.agreement - 1.0).abs();
    let worst = points.iter().copied().max_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(*first);
    let claim = Claim {
        ours: format!(
            "{} + {} before the kernel's entry, against {}, at {} LWT{}, where they differ most",
            format_us(worst.traced_us),
            format_us(worst.entry_us),
            format_us(worst.in_process_us),
            worst.lwts,
            if worst.lwts == 1 { "" } else { "s" }
        ),
        ratio: times(worst.agreement, &[1.0 - AGREEMENT, 1.0 + AGREEMENT]),
        command: command(evidence),
        ..claim
    };
    if (first.lwts, last.lwts) != (1, MOST_LWTS) {
        return claim.missing(format!("missing: series traced from 1 to {MOST_LWTS} LWTs; there is {} to {}", first.lwts, last.lwts));
    }
    Claim {
        // A number that is none agrees with nothing.
        verdict: Verdict::met_if(points.iter().all(|point| distance(point) <= AGREEMENT)),
        remark: "medians of the same faults. The tracer sees a fault from the kernel's entry on; the way there, and the reading of the clock before the access, are measured by \
                 first touches of other memory"
            .into(),
        ..claim
    }
}

fn cost(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new("Tracing a fault costs little, and not tracing nothing", "≤ 0.3 µs a fault");
    let points = points(evidence);
    let Some(worst) = points.iter().max_by(|a, b| a.cost_us.total_cmp(&b.cost_us)) else {
        return claim.missing("missing: series traced (lightswap-bench micro notify as root)");
    };
    Claim {
        ours: format!("{} more, at {} LWT{}, where it is most", format_us(worst.cost_us), worst.lwts, if worst.lwts == 1 { "" } else { "s" }),
        ratio: times(worst.cost_us / COST_US, &[1.0]),
        verdict: Verdict::met_if(points.iter().all(|point| point.cost_us <= COST_US)),
        remark: "median notification latency of traced faults less that of faults that are not, in turn; all that the tracer does happens before the handler begins".into(),
        command: command(evidence),
        ..claim
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Results;

    fn verdicts(points: &[(u32, f64, f64)]) -> [Verdict; 2] {
        let record = |&(lwts, agreement, cost_us): &(u32, f64, f64)| Micro::NotifyTrace {
            lwts,
            workers: 1,
            agreement,
            traced_p50_us: 0.6,
            in_process_p50_us: 0.8,
            entry_us: 0.2,
            cost_us,
        };
        let results = [Results { micro: points.iter().map(record).collect(), ..Results::default() }];
        let claims = targets(&Evidence::new(&results));
        [claims[0].verdict, claims[1].verdict]
    }

    #[test]
    fn agreement_is_judged_at_every_number_of_lwts_from_1_to_512() {
        assert_eq!(verdicts(&[]), [Verdict::NotMeasured; 2]);
        assert_eq!(verdicts(&[(1, 1.0, 0.1), (128, 1.0, 0.1)]), [Verdict::NotMeasured, Verdict::Met]);
        assert_eq!(verdicts(&[(1, 0.901, 0.1), (128, 1.099, 0.1), (512, 1.0, 0.3)]), [Verdict::Met; 2]);
        assert_eq!(verdicts(&[(1, 1.0, 0.1), (128, 0.899, 0.31), (512, 1.0, 0.1)]), [Verdict::NotMet; 2]);
        // Beyond is not part of the claim.
        assert_eq!(verdicts(&[(1, 1.0, 0.1), (512, 1.0, 0.1), (1024, 1.5, 0.9)]), [Verdict::Met; 2]);
        assert_eq!(verdicts(&[(1, f64::NAN, 0.1), (512, 1.0, 0.1)])[0], Verdict::NotMet);
    }
}
