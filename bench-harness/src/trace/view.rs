//! What was traced, for people.

use std::fmt::Write;

use lightswap::tracer::{CELL_BYTES, Kinds};

use super::NUM_TOP;
use super::code::Code;
use super::heat_map::{fold, row};
use super::interval::{Interval, RegionHeat};
use crate::units::{format_count, format_us};

const WIDTH: usize = 100;
const WIDTH_MIN: usize = 40;
const HEIGHT: usize = 40;
/// Lines beside heat maps and histogram.
const OTHER_LINES: usize = 14 + 2 * NUM_TOP;
const HISTOGRAM_LINES: usize = 14;
/// Before a bar.
const LABEL_WIDTH: usize = 24;

#[derive(Debug, Clone, Copy)]
pub struct Shown<'s> {
    pub pid: u32,
    pub interval: &'s Interval,
    pub takes_part: bool,
    pub code: &'s Code,
}

/// What is drawn on.
#[derive(Debug, Clone, Copy)]
pub struct Canvas {
    pub width: usize,
    pub height: usize,
    pub coloured: bool,
}

impl Canvas {
    /// A file or a pipe.
    pub fn plain() -> Self {
        Self { width: WIDTH, height: HEIGHT, coloured: false }
    }

    /// The terminal that standard output is, as large as it is now.
    pub fn terminal() -> Self {
        // SAFETY: all-zero is valid, and it is valid for writing.
        let size = unsafe {
            let mut size: libc::winsize = std::mem::zeroed();
            if libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) == 0 { Some(size) } else { None }
        };
        let of = |number: u16, usual: usize| if number == 0 { usual } else { usize::from(number) };
        Self {
            width: size.map_or(WIDTH, |size| of(size.ws_col, WIDTH)).max(WIDTH_MIN),
            height: size.map_or(HEIGHT, |size| of(size.ws_row, HEIGHT)),
            coloured: std::env::var_os("NO_COLOR").is_none(),
        }
    }
}

/// In place of the last picture. It is not cleared before, which would flicker, but each line's rest is, and what was below.
pub fn draw(picture: &str, is_first: bool) {
    let clear = if is_first { "\x1b[2J" } else { "" };
    say!("{clear}\x1b[H{}\x1b[K\x1b[J", picture.trim_end().replace('\n', "\x1b[K\n"));
}

/// An interval as a line, for logs.
pub fn line(interval: &Interval, takes_part: bool) -> String {
    let rate = |count| format_count(interval.per_second(count));
    let mut line = format!("{} faults/s", rate(interval.faults));
    if takes_part {
        let quantile = |q| format_us(interval.latencies.quantile_ns(q) / 1_000.0);
        let _ = write!(line, ", {} of the handler, {} of the kernel", rate(interval.handled.sum()), rate(interval.by_kernel.sum()));
        if interval.latencies.num() > 0 {
            let _ = write!(line, "; notification p50 {}, p99 {}", quantile(0.5), quantile(0.99));
        }
    }
    line
}

/// All of it.
pub fn picture(shown: &Shown<'_>, canvas: Canvas) -> String {
    let Shown { pid, interval, takes_part, code } = shown;
    let bytes: u64 = interval.heat.iter().map(|region| region.end - region.start).sum();
    let num = interval.heat.len();
    let mut text = format!(
        "page faults of process {pid} in {num} region{} of {} over {:.1} s\n",
        if num == 1 { "" } else { "s" },
        lightswap::format_size(bytes),
        interval.seconds
    );
    write_counts(&mut text, interval, *takes_part);
    if *takes_part && interval.latencies.num() > 0 {
        write_latencies(&mut text, interval, canvas);
    }
    write_heat(&mut text, interval, canvas);
    write_top(&mut text, interval, code);
    if !canvas.coloured {
        return text;
    }
    // Colours have no width, so only lines without them can be cut by counting.
    let cut = |line: &str| if line.contains('\x1b') { line.to_owned() } else { line.chars().take(canvas.width).collect() };
    text.lines().map(cut).collect::<Vec<_>>().join("\n") + "\n"
}

fn write_counts(text: &mut String, interval: &Interval, takes_part: bool) {
    let _ = writeln!(text, "{:>12}/s   {:>12} in all", format_count(interval.per_second(interval.faults)), format_count(interval.faults as f64));
    if !takes_part {
        *text +=
            "the process notes nothing of its faults (a monitor thread pages, or none has come yet): whose they were, and latencies, are not known\n";
        return;
    }
    let mut line = |label: &str, kinds: &Kinds, details: [(&str, u64); 4]| {
        let all = kinds.sum();
        let parts = details.iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{} {name}", format_count(*count as f64)));
        let parts = parts.collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "{:>12}/s   {label}{}{parts}", format_count(interval.per_second(all)), if parts.is_empty() { "" } else { ": " });
    };
    let Kinds { reads, writes, reads_of_present, writes_to_present } = interval.handled;
    let details = [
        ("reads", reads),
        ("writes", writes),
        ("writes to protected pages", writes_to_present),
        ("reads of pages that had come meanwhile", reads_of_present),
    ];
    line("of Lightswap's handler", &interval.handled, details);
    let Kinds { reads, writes, reads_of_present, writes_to_present } = interval.by_kernel;
    let details = [
        ("first reads", reads),
        ("first writes", writes),
        ("writes to pages that were there (copy-on-write)", writes_to_present),
        ("reads of pages that had come meanwhile", reads_of_present),
    ];
    line("of the kernel alone", &interval.by_kernel, details);
    if interval.open > 0 {
        let _ = writeln!(text, "{:>12}     not known yet", format_count(interval.open as f64));
    }
}

fn write_latencies(text: &mut String, interval: &Interval, canvas: Canvas) {
    let quantile = |q| format_us(interval.latencies.quantile_ns(q) / 1_000.0);
    let (p50, p90, p99, p999) = (quantile(0.5), quantile(0.9), quantile(0.99), quantile(0.999));
    let _ = writeln!(text, "\nnotification, kernel entry to handler: p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p999}");
    let mut bars = interval.latencies.bars(4);
    // The tail in one bar, so that one late fault does not push all else off the screen.
    if bars.len() > HISTOGRAM_LINES {
        let rest: u64 = bars[HISTOGRAM_LINES - 1..].iter().map(|bar| bar.1).sum();
        bars.truncate(HISTOGRAM_LINES);
        bars[HISTOGRAM_LINES - 1].1 = rest;
    }
    let most = bars.iter().map(|bar| bar.1).max().unwrap_or(1);
    let last = bars.len() - 1;
    for (index, (ns, count)) in bars.iter().enumerate() {
        let len = (*count as f64 / most as f64 * (canvas.width - LABEL_WIDTH) as f64).round() as usize;
        let sign = if index == last && last + 1 == HISTOGRAM_LINES { "≥ " } else { "" };
        let label = format!("{sign}{}", format_us(*ns as f64 / 1_000.0));
        let bar = if *count > 0 { "█".repeat(len.max(1)) } else { String::new() };
        let _ = writeln!(text, "{label:>11} {:>11} {bar}", format_count(*count as f64));
    }
}

fn write_heat(text: &mut String, interval: &Interval, canvas: Canvas) {
    let shown: Vec<(usize, &RegionHeat)> =
        interval.heat.iter().enumerate().filter(|(_, region)| region.faults.iter().any(|faults| *faults > 0)).collect();
    if shown.is_empty() {
        return;
    }
    let height = (canvas.height.saturating_sub(OTHER_LINES + HISTOGRAM_LINES) / shown.len()).clamp(2, 12);
    for (number, region) in shown {
        let map = fold(&region.faults, canvas.width, height);
        let hottest = map.rows.iter().flatten().copied().max().unwrap_or(0);
        let each = lightswap::format_size(map.areas_per_character as u64 * CELL_BYTES);
        let _ = writeln!(
            text,
            "\nregion {number} at {:#x}, {}: a character is {each}, at most {}/s",
            region.start,
            lightswap::format_size(region.end - region.start),
            format_count(interval.per_second(hottest))
        );
        for faults in &map.rows {
            let _ = writeln!(text, "{}", row(faults, hottest, canvas.coloured));
        }
    }
}

fn write_top(text: &mut String, interval: &Interval, code: &Code) {
    let areas = interval.top(NUM_TOP);
    if !areas.is_empty() {
        *text += "\nhottest 2 MiB\n";
        for area in areas {
            let rate = format_count(interval.per_second(area.faults));
            let _ = writeln!(text, "{rate:>12}/s   region {} + {}", area.region, lightswap::format_size(area.offset_bytes));
        }
    }
    let places = code.top(NUM_TOP);
    if !places.is_empty() {
        *text += "\ncode that faults (sampled, since the start)\n";
        for (place, share) in places {
            let _ = writeln!(text, "{:>12.1} %   {place}", share * 100.0);
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use lightswap::tracer::Latencies;

    pub fn interval(heat: Vec<RegionHeat>) -> Interval {
        Interval {
            seconds: 2.0,
            faults: 100,
            handled: Kinds { reads: 80, writes_to_present: 10, ..Kinds::default() },
            by_kernel: Kinds { writes: 7, ..Kinds::default() },
            open: 3,
            latencies: Latencies::default(),
            lost_samples: 0,
            heat,
        }
    }

    fn picture_of(canvas: Canvas, takes_part: bool) -> String {
        let mut faults = vec![0; 1000];
        faults[17] = 40;
        let heat = vec![RegionHeat { start: 1 << 30, end: (1 << 30) + 1000 * CELL_BYTES, faults }];
        let mut interval = interval(heat);
        interval.latencies = Latencies::of(&[600, 610, 620, 900, 50_000]);
        picture(&Shown { pid: 77, interval: &interval, takes_part, code: &Code::new(u32::MAX) }, canvas)
    }

    #[test]
    fn it_says_what_was_counted_and_fits_its_canvas() {
        let text = picture_of(Canvas::plain(), true);
        for part in [
            "50/s",
            "100 in all",
            "80 reads",
            "10 writes to protected pages",
            "7 first writes",
            "3     not known yet",
            "region 0 + 34 MiB",
            "p50 0.6",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        assert!(!text.contains('\x1b') && text.lines().count() <= HEIGHT, "{text}");
        let heat: Vec<&str> = text.lines().filter(|line| line.contains('@')).collect();
        assert_eq!(heat.len(), 1);
        for width in [WIDTH_MIN, 63, 200] {
            let coloured = picture_of(Canvas { width, height: 24, coloured: true }, true);
            assert!(coloured.lines().all(|line| line.contains('\x1b') || line.chars().count() <= width), "{coloured}");
        }
    }

    #[test]
    fn who_takes_no_part_has_no_latencies() {
        let text = picture_of(Canvas::plain(), false);
        assert!(text.contains("notes nothing") && !text.contains("p50") && !text.contains("of the kernel alone"), "{text}");
    }

    #[test]
    fn a_line_has_the_rates() {
        assert_eq!(line(&interval(Vec::new()), true), "50 faults/s, 45 of the handler, 4 of the kernel");
        assert_eq!(line(&interval(Vec::new()), false), "50 faults/s");
    }
}
