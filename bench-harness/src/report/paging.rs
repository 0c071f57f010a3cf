//! Targets on what the server's own counters did while reads alone were measured: with little memory, a GET takes no hardware fault, reads what it needs
//! and writes nothing.

use super::evidence::{Evidence, PRIMARY_PERCENT};
use super::verdict::{Claim, Verdict, digits, times, with_spread};
use crate::results::Run;
use crate::summary::Spread;
use crate::units::format_count;

const WORKLOAD: &str = "ycsb-c";
const CONFIGURATION: &str = "lightswap";
/// Hardware faults a GET.
const FAULTS: f64 = 0.02;
/// Pages read, of those that were missing when a request asked for them.
const READS: f64 = 1.02;

/// What a run counted while it was measured. Absent in older files.
#[derive(Debug, Clone, Copy)]
struct Counted<'a>(&'a Run);

impl Counted<'_> {
    fn number(self, name: &str) -> Option<f64> {
        self.0.details.statistics_while_measured.get(name).map(|count| *count as f64)
    }

    /// Of C, every operation is a GET.
    fn gets(self) -> f64 {
        self.0.details.operations as f64
    }

    fn reads(self) -> Option<f64> {
        // Reads that failed and were begun again cost the device as much.
        Some(self.number("swap_ins")? + self.number("swap_in_retries").unwrap_or(0.0))
    }

    /// How many pages were missing when a request asked for them: at least, and at most. Servers that count `missing_pages` know it. Of the others, a page
    /// that is read ahead for its request counts in `prefetches`, and in `touch_misses` only if it is still not there when its turn comes. Fresh pages
    /// are asked for, too, but have nothing to be read.
    fn asked_for(self) -> Option<(f64, f64)> {
        let fresh = self.number("zero_fills")?;
        if let Some(missing) = self.number("missing_pages") {
            return Some((missing - fresh, missing - fresh));
        }
        let (waited_for, read_ahead) = (self.number("touch_misses")? - fresh, self.number("prefetches")?);
        Some((waited_for.max(read_ahead), waited_for + read_ahead))
    }
}

pub fn targets(evidence: &Evidence<'_>) -> Vec<Claim> {
    let at = format!("{}, {PRIMARY_PERCENT} %", WORKLOAD.to_uppercase());
    let claims = [
        Claim::new(format!("Requests ask for their pages before they use them: hardware faults a GET, {at}"), "≤ 0.02"),
        Claim::new(format!("Nothing is read but what a GET asks for: pages read, of its missing pages, {at}"), "≤ 1.02 ×"),
        Claim::new(format!("GETs alone write nothing back: pages written, {at}"), "0"),
    ];
    let Some(cell) = evidence.cell(WORKLOAD, PRIMARY_PERCENT, CONFIGURATION) else {
        return claims.map(|claim| claim.missing(format!("missing: {CONFIGURATION} on {WORKLOAD} at {PRIMARY_PERCENT} %"))).into();
    };
    let runs: Vec<Counted<'_>> =
        evidence.runs_of(cell).into_iter().map(Counted).filter(|run| run.number("swap_ins").is_some() && run.gets() > 0.0).collect();
    if runs.is_empty() {
        let remark = "missing: what the server's counters did while it was measured; older files only have them with loading and warm-up";
        return claims.map(|claim| claim.missing(remark)).into();
    }
    let command = evidence.command_of_cell(WORKLOAD, CONFIGURATION);
    let [faults, reads, writes] = claims;
    [hardware_faults(faults, &runs), pages_read(reads, &runs), written_back(writes, &runs)]
        .map(|claim| Claim { command: command.clone(), ..claim })
        .into()
}

/// Absent where one of the runs has no such number.
fn spread<'a>(runs: &[Counted<'a>], number: impl Fn(Counted<'a>) -> Option<f64>) -> Option<Spread> {
    Spread::of(runs.iter().map(|run| number(*run)).collect::<Option<Vec<f64>>>()?)
}

fn a_get(count: f64) -> String {
    digits(count, &[FAULTS])
}

fn hardware_faults(claim: Claim, runs: &[Counted<'_>]) -> Claim {
    let Some(faults) = spread(runs, |run| Some(run.number("faults")? / run.gets())) else {
        return claim.missing("missing: the server's counter of faults");
    };
    let touches = spread(runs, |run| Some(run.number("touch_misses")? / run.gets()));
    Claim {
        ours: format!("{} a GET", with_spread(faults, a_get)),
        verdict: Verdict::met_if(faults.median <= FAULTS),
        remark: "counted: signals for pages that were not mapped (faults)".to_owned()
            + &touches.map_or_else(String::new, |touches| {
                format!("; missing pages that were asked for before their use (touch_misses): {} a GET", a_get(touches.median))
            }),
        ..claim
    }
}

fn pages_read(claim: Claim, runs: &[Counted<'_>]) -> Claim {
    let at_least = spread(runs, |run| Some(run.asked_for()?.0 / run.gets()));
    let at_most = spread(runs, |run| Some(run.asked_for()?.1 / run.gets()));
    let (Some(at_least), Some(at_most), Some(read)) = (at_least, at_most, spread(runs, |run| Some(run.reads()? / run.gets()))) else {
        return claim.missing("missing: the server's counters of pages asked for, fresh, or read ahead");
    };
    if at_least.median <= 0.0 {
        return claim.missing("no page was missing while it was measured");
    }
    let ratio =
        |asked: fn((f64, f64)) -> f64| spread(runs, |run| Some(run.reads()? / asked(run.asked_for()?))).map_or(f64::NAN, |ratio| ratio.median);
    let (highest, lowest) = (ratio(|asked| asked.0), ratio(|asked| asked.1));
    let is_exact = runs.iter().all(|run| run.number("missing_pages").is_some());
    let range = |low: String, high: String| if is_exact { high } else { format!("{low} to {high}") };
    let claim = Claim {
        ours: format!("{} read a GET, {} missing", a_get(read.median), range(a_get(at_least.median), a_get(at_most.median))),
        ratio: range(digits(lowest, &[READS]), times(highest, &[READS])),
        ..claim
    };
    let counted = if is_exact {
        "counted: pages read back, read-ahead and retries included (swap_ins, swap_in_retries), of pages that were not there when a request first looked \
         (missing_pages without zero_fills); hardware faults do not count as asked for"
    } else {
        "counted: pages read back, read-ahead and retries included (swap_ins, swap_in_retries); how many were missing lies between the larger of \
         touch_misses without zero_fills and prefetches, and their sum: pages read ahead for a request are in the latter, and in the former only if they are \
         not there in time"
    };
    if highest <= READS || lowest > READS || is_exact {
        return Claim { verdict: Verdict::met_if(highest <= READS), remark: counted.into(), ..claim };
    }
    claim.missing(format!("missing: a server that counts missing_pages; without it the ratio is only known within limits. {counted}"))
}

fn written_back(claim: Claim, runs: &[Counted<'_>]) -> Claim {
    let Some(written) = spread(runs, |run| run.number("dirty_evictions")) else {
        return claim.missing("missing: the server's counter of pages written");
    };
    let evicted = spread(runs, |run| run.number("clean_evictions"));
    Claim {
        ours: format!("{} page(s) in the worst of {} run(s)", format_count(written.max), runs.len()),
        verdict: Verdict::met_if(written.max == 0.0),
        remark:
            "counted: pages written and removed (dirty_evictions); pages that have not left memory since they were loaded count, too, when they do"
                .to_owned()
                + &evicted.map_or_else(String::new, |evicted| {
                    format!("; removed without a write (clean_evictions): {} a run", format_count(evicted.median))
                }),
        ..claim
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Results;
    use crate::summary::tests::run;

    /// 1,000 GETs with these counts.
    fn counting(counts: &[(&str, u64)]) -> Run {
        let mut run = run(CONFIGURATION, 0.25, 100.0);
        run.details.operations = 1_000;
        run.details.statistics_while_measured = counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        run
    }

    fn judged(runs: Vec<Run>) -> Vec<Claim> {
        targets(&Evidence::new(&[Results { runs, ..Results::default() }]))
    }

    fn verdicts(runs: Vec<Run>) -> Vec<Verdict> {
        judged(runs).iter().map(|claim| claim.verdict).collect()
    }

    fn counts(faults: u64, touch_misses: u64, swap_ins: u64, dirty_evictions: u64) -> Run {
        let zero_fills = 100;
        counting(&[
            ("prefetches", 0),
            ("faults", faults),
            ("touch_misses", touch_misses + zero_fills),
            ("zero_fills", zero_fills),
            ("swap_ins", swap_ins),
            ("dirty_evictions", dirty_evictions),
            ("clean_evictions", 7),
        ])
    }

    #[test]
    fn each_target_is_judged_by_its_counters() {
        use Verdict::{Met, NotMet};
        assert_eq!(verdicts(vec![counts(20, 500, 510, 0)]), [Met, Met, Met]);
        assert_eq!(verdicts(vec![counts(21, 500, 510, 0)]), [NotMet, Met, Met]);
        assert_eq!(verdicts(vec![counts(0, 500, 511, 0)]), [Met, NotMet, Met]);
        assert_eq!(verdicts(vec![counts(0, 500, 500, 1)]), [Met, Met, NotMet]);
        // What was begun again was read twice.
        let mut retrying = counts(0, 500, 510, 0);
        retrying.details.statistics_while_measured.insert("swap_in_retries".into(), 1);
        assert_eq!(verdicts(vec![retrying]), [Met, NotMet, Met]);
    }

    #[test]
    fn reads_are_judged_where_the_counters_tell_how_many_were_missing() {
        let verdict = |changes: &[(&str, u64)]| {
            let mut run = counts(0, 500, 550, 0);
            run.details.statistics_while_measured.extend(changes.iter().map(|(name, count)| ((*name).to_owned(), *count)));
            judged(vec![run]).swap_remove(1)
        };
        // 50 pages were there before their turn, or were read for nothing.
        let unknown = verdict(&[("prefetches", 80)]);
        assert_eq!(unknown.verdict, Verdict::NotMeasured);
        assert_eq!((unknown.ours.as_str(), unknown.ratio.as_str()), ("0.55 read a GET, 0.50 to 0.58 missing", "0.95 to 1.10 ×"));
        assert!(unknown.remark.contains("missing_pages"));
        assert_eq!(verdict(&[("prefetches", 30)]).verdict, Verdict::NotMet);
        assert_eq!(verdict(&[("prefetches", 545)]).verdict, Verdict::Met);
        // Counted, they are known, fresh pages with them.
        assert_eq!(verdict(&[("prefetches", 80), ("missing_pages", 640)]).verdict, Verdict::Met);
        let too_many = verdict(&[("prefetches", 80), ("missing_pages", 630)]);
        assert_eq!((too_many.verdict, too_many.ratio.as_str()), (Verdict::NotMet, "1.04 ×"));
    }

    #[test]
    fn the_median_decides_but_one_written_page_is_one_too_many() {
        use Verdict::{Met, NotMet};
        let runs = vec![counts(20, 500, 500, 0), counts(90, 500, 900, 1), counts(10, 500, 505, 0)];
        let claims = judged(runs);
        assert_eq!(claims.iter().map(|claim| claim.verdict).collect::<Vec<_>>(), [Met, Met, NotMet]);
        assert_eq!(claims[2].ours, "1 page(s) in the worst of 3 run(s)");
        assert!(claims[0].remark.contains("0.60 a GET"), "{}", claims[0].remark);
    }

    #[test]
    fn without_the_numbers_nothing_is_judged() {
        let reason = |runs: Vec<Run>| {
            let claims = judged(runs);
            assert!(claims.iter().all(|claim| claim.verdict == Verdict::NotMeasured), "{claims:?}");
            claims[1].remark.clone()
        };
        assert!(reason(Vec::new()).contains("lightswap on ycsb-c at 25 %"));
        // Older files have the counters since the start only.
        let mut old = counting(&[]);
        old.details.server_statistics.insert("faults".into(), "5".into());
        assert!(reason(vec![old]).contains("older files"));
        // Other configurations, and other loads, are not asked.
        let other = Run { configuration: "fastswap-style".into(), ..counts(0, 1, 1, 0) };
        let mut open = counts(0, 1, 1, 0);
        open.details.due_per_second = Some(10.0);
        assert!(reason(vec![counting(&[]), other, open]).contains("older files"));
        assert_eq!(verdicts(vec![counts(0, 0, 0, 0)]), [Verdict::Met, Verdict::NotMeasured, Verdict::Met]);
    }
}
