//! Sizes and numbers as people write and read them.

pub const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;

/// A size as the library reads it, with an error as the command line wants it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    lightswap::parse_size(text).map_err(|error| error.to_string())
}

/// `57,251`.
pub fn format_count(number: f64) -> String {
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
    if ms >= 100.0 {
        format!("{ms:.0}")
    } else if ms >= 10.0 {
        format!("{ms:.1}")
    } else {
        format!("{ms:.2}")
    }
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
    }
}
