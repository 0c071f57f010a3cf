//! Sizes and numbers as people write and read them.

pub const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;

/// A size as the library reads it, with an error as the command line wants it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    lightswap::parse_size(text).map_err(|error| error.to_string())
}

/// Where there is no number to show, as where nothing is divided by nothing.
const NOTHING: &str = "-";

/// `1.78`.
pub fn format_ratio(ratio: f64) -> String {
    if ratio.is_finite() { format!("{ratio:.2}") } else { NOTHING.into() }
}

/// `57,251`.
pub fn format_count(number: f64) -> String {
    if !number.is_finite() {
        return NOTHING.into();
    }
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Microseconds as milliseconds with a sensible number of digits.
pub fn format_ms(us: f64) -> String {
    let ms = us / 1_000.0;
    if !ms.is_finite() {
        NOTHING.into()
    } else if ms >= 100.0 {
        format!("{ms:.0}")
    } else if ms >= 10.0 {
        format!("{ms:.1}")
    } else {
        format!("{ms:.2}")
    }
}

/// Microseconds with their unit: `2.59 µs`, `85 µs`, `1.3 ms`.
pub fn format_us(us: f64) -> String {
    if !us.is_finite() {
        NOTHING.into()
    } else if us >= 999_500.0 {
        format!("{:.1} s", us / 1e6)
    } else if us >= 9_950.0 {
        format!("{:.0} ms", us / 1e3)
    } else if us >= 999.5 {
        format!("{:.1} ms", us / 1e3)
    } else if us >= 99.95 {
        format!("{us:.0} µs")
    } else if us >= 9.995 {
        format!("{us:.1} µs")
    } else {
        format!("{us:.2} µs")
    }
}

/// Microseconds at the tick of an axis: without digits that are nought.
pub fn format_us_tick(us: f64) -> String {
    let (number, unit) = if us >= 999_999.0 {
        (us / 1e6, "s")
    } else if us >= 999.9 {
        (us / 1e3, "ms")
    } else {
        (us, "µs")
    };
    format!("{} {unit}", (number * 1e3).round() / 1e3)
}

/// A number at the tick of an axis: `20k`, `1.5M`.
pub fn format_tick(number: f64) -> String {
    let (number, unit) = if number >= 1e6 {
        (number / 1e6, "M")
    } else if number >= 1e3 {
        (number / 1e3, "k")
    } else {
        (number, "")
    };
    format!("{}{unit}", (number * 1e3).round() / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(format_count(1_234_567.4), "1,234,567");
        assert_eq!(format_count(-123_456.0), "-123,456");
        assert_eq!(format_count(999.0), "999");
        assert_eq!(format_ms(5_230.0), "5.23");
        assert_eq!([format_count, format_ms, format_us, format_ratio].map(|format| format(f64::NAN)), ["-"; 4]);
        assert_eq!([2.594, 41.2, 1_269.0, 45_000.0].map(format_us), ["2.59 µs", "41.2 µs", "1.3 ms", "45 ms"]);
        assert_eq!([0.5, 200.0, 2_000.0, 1e6].map(format_us_tick), ["0.5 µs", "200 µs", "2 ms", "1 s"]);
        assert_eq!([0.0, 2_500.0, 100_000.0, 1e6].map(format_tick), ["0", "2.5k", "100k", "1M"]);
    }
}
