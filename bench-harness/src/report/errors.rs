//! What the server did when its backend failed on purpose.

use std::fmt::Write;

use super::evidence::Evidence;
use super::section;
use super::verdict::{Claim, Verdict};
use crate::chart::escape;
use crate::torture_record::TortureRecord;
use crate::units::format_count;

/// Errors that one run must have met.
const ERRORS: u64 = 10_000;

fn count(number: u64) -> String {
    format_count(number as f64)
}

/// `flips 30, read errors 64`; what the schedule has but did not happen, too.
fn kinds(record: &TortureRecord) -> String {
    let kinds = record.injected.iter().map(|(kind, number)| format!("{} {}", kind.replace('_', " "), count(*number)));
    kinds.collect::<Vec<_>>().join(", ")
}

pub fn survivable(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new("Errors of swapping in are survivable: a try-catch framework", "try-catch");
    let records: Vec<&TortureRecord> = evidence.torture().collect();
    let defect = records.iter().find(|record| record.defect().is_some());
    // One defect decides, whatever other runs say; else the run with the most errors does.
    let Some(record) = defect.or_else(|| records.iter().max_by_key(|record| record.num_errors())) else {
        return claim.missing("missing: a run of lightswap-bench torture --out FILE");
    };
    let claim = Claim {
        ours: format!(
            "{} errors injected, {} wrong of {} values checked, {}",
            count(record.num_errors()),
            count(record.wrong_values),
            count(record.values_checked),
            if record.crashed {
                "a crash"
            } else if record.hung {
                "a hang"
            } else if record.failure.is_some() {
                "a failure"
            } else {
                "no crash, no hang"
            }
        ),
        command: evidence.command_of_torture(record),
        ..claim
    };
    if let Some(defect) = record.defect() {
        return Claim { verdict: Verdict::NotMet, remark: defect, ..claim };
    }
    if record.num_errors() < ERRORS {
        return claim.missing(format!("missing: a run with at least {} errors", count(ERRORS)));
    }
    if record.values_checked == 0 {
        return claim.missing("missing: values that were checked");
    }
    Claim {
        verdict: Verdict::Met,
        remark: format!(
            "met: at least {} errors, 0 wrong values, no crash, no hang; delays do not count as errors; a request that met one got a miss or an error: {} \
             items were lost; by kind: {}",
            count(ERRORS),
            count(record.lost_items),
            kinds(record)
        ),
        ..claim
    }
}

/// Names and values of a record.
pub fn lines(record: &TortureRecord, command: &str) -> Vec<(&'static str, String)> {
    let yes_no = |is: bool| if is { "1" } else { "0" }.to_owned();
    let mut lines = vec![
        ("injected errors", count(record.num_errors())),
        ("injected delays", count(record.num_delays())),
        ("injected by kind", kinds(record)),
        ("requests", count(record.requests)),
        ("values checked", count(record.values_checked)),
        ("misses", format!("{}, of which unexplained {}", count(record.misses), count(record.unexplained_misses))),
        ("errors answered", format!("{}, connections closed {}", count(record.errors), count(record.connections_closed))),
        ("lost items", count(record.lost_items)),
        ("wrong values", count(record.wrong_values)),
        ("crashes", yes_no(record.crashed)),
        ("hangs", yes_no(record.hung)),
        ("seed", record.seed.to_string()),
        ("time", format!("{:.0} s", record.seconds)),
        ("schedule", record.schedule.clone()),
        ("command", command.to_owned()),
    ];
    lines.extend(record.defect().map(|defect| ("defect", defect)));
    lines
}

pub fn write_errors(html: &mut String, evidence: &Evidence<'_>) {
    let mut records = evidence.torture().peekable();
    if records.peek().is_none() {
        return;
    }
    let note = "A patched memcached on a backend that fails on purpose, and clients that check every answer. Misses and errors are in order; a wrong value, a \
                crash or a hang is not.";
    section(html, "errors", "Errors on purpose", note);
    for record in records {
        *html += "<table class=\"facts\"><tbody>\n";
        for (name, value) in lines(record, &evidence.command_of_torture(record)) {
            let _ = writeln!(html, "<tr><th>{name}</th><td>{}</td></tr>", escape(&value));
        }
        *html += "</tbody></table>\n";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Results;
    use crate::torture_record::tests::record;

    fn judged(records: &[TortureRecord]) -> Claim {
        let files: Vec<Results> = records.iter().map(|record| Results { torture: vec![record.clone()], ..Results::default() }).collect();
        survivable(&Evidence::new(&files))
    }

    #[test]
    fn enough_errors_and_no_defect_in_any_run() {
        assert_eq!(judged(&[]).verdict, Verdict::NotMeasured);
        let few = judged(&[record(9_999)]);
        assert_eq!(few.verdict, Verdict::NotMeasured);
        assert!(few.remark.contains("at least 10,000"), "{}", few.remark);
        let enough = judged(&[record(3), record(10_000)]);
        assert_eq!(enough.verdict, Verdict::Met);
        assert!(enough.ours.contains("10,000 errors injected, 0 wrong of 800,000"), "{}", enough.ours);
        assert_eq!(enough.command, "lightswap-bench torture --seconds 60 --out results/torture.json");
        let changes: [fn(&mut TortureRecord); 4] = [
            |record| record.wrong_values = 1,
            |record| record.crashed = true,
            |record| record.hung = true,
            |record| record.failure = Some("a client gave up".into()),
        ];
        for change in changes {
            let mut bad = record(5);
            change(&mut bad);
            assert_eq!(judged(&[record(10_000), bad.clone()]).verdict, Verdict::NotMet, "{bad:?}");
        }
        assert_eq!(judged(&[TortureRecord { values_checked: 0, ..record(10_000) }]).verdict, Verdict::NotMeasured);
    }

    #[test]
    fn the_section_shows_what_happened() {
        let mut html = String::new();
        write_errors(&mut html, &Evidence::new(&[]));
        assert_eq!(html, "");
        let bad = TortureRecord { crashed: true, failure: Some("<dead>".into()), ..record(10_000) };
        write_errors(&mut html, &Evidence::new(&[Results { torture: vec![bad], ..Results::default() }]));
        for part in
            ["<th>crashes</th><td>1<", "read errors 10,000", "<th>seed</th><td>7<", "&lt;flip&gt;", "&lt;dead&gt;", "<td>lightswap-bench torture"]
        {
            assert!(html.contains(part), "{part}: {html}");
        }
    }
}
