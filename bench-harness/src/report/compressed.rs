//! Compressed memory and kernel swap on zram with the same contents: memcached with values that compress, and faults alone.

use super::class_of;
use super::evidence::{Evidence, PRIMARY_PERCENT, PRIMARY_WORKLOADS};
use crate::chart::{Bar, Group, bars};
use crate::results::{AS_MUCH_IN_ALL, Micro};
use crate::summary::{Spread, Summary};
use crate::units::{MIB, format_count};

pub fn charts(evidence: &Evidence<'_>) -> String {
    let of_text = |workload: &&str| of_text(evidence, workload);
    PRIMARY_WORKLOADS.iter().map(of_text).collect::<String>() + &micro(evidence)
}

/// Throughput and memory with values of text.
fn of_text(evidence: &Evidence<'_>, workload: &str) -> String {
    let cells = evidence.text_cells(workload);
    let chart = |title: &str, note: &str, value: &dyn Fn(&Summary) -> Option<Spread>, format: fn(f64) -> String| {
        let bar = |cell: &&Summary| Some(Bar { label: cell.configuration.clone(), class: class_of(&cell.configuration), value: value(cell)? });
        let found: Vec<Bar> = cells.iter().filter_map(bar).collect();
        if found.is_empty() { String::new() } else { bars(title, note, &[Group { title: String::new(), bars: found }], format) }
    };
    let memory = |cell: &Summary| {
        let bytes = |run: &&crate::results::Run| run.details.backend_memory_bytes.map(|bytes| bytes as f64 / MIB as f64);
        Spread::of(evidence.runs_of(cell).iter().filter_map(bytes).collect())
    };
    let place = format!("{}, values of text, {PRIMARY_PERCENT} % local memory", super::shown(workload));
    chart(&place, "operations a second; longer is better", &|cell| Some(cell.operations_per_second), format_count)
        + &chart(
            &format!("{place}: memory beside the limit"),
            "MiB for swapped-out pages at the end, of memory servers, too; shorter is better",
            &memory,
            format_count,
        )
}

fn micro(evidence: &Evidence<'_>) -> String {
    let bar = |pager: &str, wanted: &str, number: fn(f64, f64) -> f64| {
        let value = evidence.spread(|record| match record {
            Micro::CompressedMemory { pager: name, contract, cpu_us_per_fault, bytes_per_page, .. } if name == pager && contract == wanted => {
                Some(number(*cpu_us_per_fault, *bytes_per_page))
            }
            _ => None,
        })?;
        let (label, class) = if pager == "kernel" {
            ("kernel swap on zram".into(), "kernel-swap-zram")
        } else {
            (format!("lightswap, {wanted}"), "lightswap-compressed")
        };
        Some(Bar { label, class: class_of(class), value })
    };
    let all = [("lightswap", "transparent"), ("lightswap", AS_MUCH_IN_ALL), ("lightswap", "cooperative"), ("kernel", "")];
    let chart = |title: &str, note: &str, number: fn(f64, f64) -> f64| {
        let found: Vec<Bar> = all.iter().filter_map(|(pager, contract)| bar(pager, contract, number)).collect();
        if found.is_empty() { String::new() } else { bars(title, note, &[Group { title: String::new(), bars: found }], format_count) }
    };
    chart("Compressed memory: faults a second of CPU", "random reads, everything included; longer is better", |cpu_us, _| 1e6 / cpu_us)
        + &chart("Compressed memory: bytes for a page of 4 KiB", "bookkeeping included; shorter is better", |_, bytes| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Results, Run};
    use crate::summary::tests::run;

    #[test]
    fn only_values_of_text_are_compared_here() {
        let text = |configuration: &str, speed: f64, mib: u64| {
            let mut run = run(configuration, 0.25, speed);
            run.details.value_kind = "text".into();
            run.details.backend_memory_bytes = Some(mib * MIB);
            run
        };
        let random: Vec<Run> = [1_000.0, 1_001.0, 1_002.0].map(|speed| run("kernel-swap-zram", 0.25, speed)).into();
        let none = [Results { runs: random.clone(), ..Results::default() }];
        assert_eq!(charts(&Evidence::new(&none)), "");
        let runs = [random, vec![text("kernel-swap-zram", 2_000.0, 321), text("lightswap-compressed", 5_000.0, 123)]].concat();
        let html = charts(&Evidence::new(&[Results { runs, ..Results::default() }]));
        assert_eq!(html.matches("<figure").count(), 2);
        for part in ["5,000", "2,000", "321", "123", "YCSB-C, values of text", "memory beside the limit"] {
            assert!(html.contains(part), "{part}: {html}");
        }
        assert!(!html.contains("1,001"));
    }
}
