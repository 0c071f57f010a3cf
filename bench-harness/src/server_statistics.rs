//! What a server's own counters did between two moments.

use std::collections::BTreeMap;

/// What `stats lightswap` tells of the present, beside what rises for ever. All else that is a number is a counter, so that new ones are recorded, too.
const GAUGES: [&str; 11] = [
    "pinned_pages",
    "backend_away",
    "vectored_removal",
    "swap_out_failing",
    "chunks_set_aside",
    "nbd_connections_down",
    "compressed_pages",
    "compressed_same_filled_pages",
    "compressed_incompressible_pages",
    "tier_fast_pages",
    "tier_slow_pages",
];
/// Sizes, and percentiles and means of latencies.
const GAUGE_ENDS: [&str; 2] = ["_bytes", "_ns"];

fn is_counter(name: &str) -> bool {
    !GAUGES.contains(&name) && !GAUGE_ENDS.iter().any(|end| name.ends_with(end))
}

/// How much each counter rose from the first answer to the second. What is no number, or fell, is no counter.
pub fn counted(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> BTreeMap<String, u64> {
    let number = |statistics: &BTreeMap<String, String>, name: &str| statistics.get(name)?.parse::<u64>().ok();
    let rise = |name: &String| Some((name.clone(), number(after, name)?.checked_sub(number(before, name)?)?));
    after.keys().filter(|name| is_counter(name)).filter_map(rise).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn only_counters_that_both_answers_have_are_subtracted() {
        let before =
            statistics(&[("faults", "7"), ("swap_ins", "100"), ("resident_bytes", "1"), ("swap_in_p50_ns", "5"), ("lightswap", "on"), ("odd", "9")]);
        let after = statistics(&[
            ("faults", "7"),
            ("swap_ins", "350"),
            ("resident_bytes", "4"),
            ("swap_in_p50_ns", "6"),
            ("lightswap", "on"),
            ("odd", "8"),
            ("pinned_pages", "3"),
            ("newcomer", "3"),
        ]);
        let expected = BTreeMap::from([("faults".to_owned(), 0), ("swap_ins".to_owned(), 250)]);
        assert_eq!(counted(&before, &after), expected);
        assert!(counted(&BTreeMap::new(), &after).is_empty());
    }

    /// The names between two texts of a source, each the first word of a line, or the first string of a tuple.
    fn names<'s>(source: &'s str, from: &str, to: &str, of_line: fn(&'s str) -> Option<&'s str>) -> Vec<&'s str> {
        let (_, rest) = source.split_once(from).expect(from);
        rest.split_once(to).expect(to).0.lines().map(str::trim).filter_map(of_line).collect()
    }

    #[test]
    fn what_the_library_declares_is_told_apart() {
        let declared = names(include_str!("../../lightswap/src/stats.rs"), "\ncounters! {\n", "\n}", |line| line.strip_suffix(','));
        assert!(declared.contains(&"faults") && declared.contains(&"dirty_evictions") && declared.len() > 20, "{declared:?}");
        assert_eq!(declared.iter().filter(|name| !is_counter(name)).count(), 0, "{declared:?}");
        let of_tuple = |line: &'static str| Some(line.strip_prefix("(\"")?.split_once('"')?.0);
        let gauges = names(include_str!("../../lightswap/src/instance.rs"), "let mut stats = vec![", "];", of_tuple);
        assert!(gauges.contains(&"resident_bytes") && gauges.len() > 5, "{gauges:?}");
        assert_eq!(gauges.iter().filter(|name| is_counter(name)).count(), 0, "{gauges:?}");
    }
}
