//! Sizes and numbers as people write and read them.

pub const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;

/// `512`, `64k`, `8GiB`, `1.5g` to bytes. Units are binary.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let explain = |why: &str| format!("{text:?} is no size ({why}); write for example 4096, 64KiB, 512m or 8GiB");
    let lower = text.trim().to_ascii_lowercase();
    let digits_end = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits_end);
    let factor = match unit.trim() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => KIB,
        "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => 1024 * MIB,
        "t" | "tb" | "tib" => 1024 * 1024 * MIB,
        _ => return Err(explain("unknown unit")),
    };
    let bytes = match number.parse::<u64>() {
        Ok(number) => number.checked_mul(factor),
        Err(_) => match number.parse::<f64>() {
            Ok(number) => Some((number * factor as f64) as u64),
            Err(_) => return Err(explain("no number")),
        },
    };
    bytes.filter(|&bytes| bytes <= i64::MAX as u64).ok_or_else(|| explain("too large"))
}

/// `155 MiB`, `1.50 GiB`.
pub fn format_size(bytes: u64) -> String {
    if bytes >= 1024 * MIB {
        format!("{:.2} GiB", bytes as f64 / (1024 * MIB) as f64)
    } else if bytes >= MIB {
        format!("{} MiB", bytes.div_ceil(MIB))
    } else {
        format!("{} KiB", bytes.div_ceil(KIB))
    }
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
    fn sizes_parse() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("64k", 64 * KIB), ("8GiB", 8192 * MIB), (" 1.5 g ", 1536 * MIB), ("512MB", 512 * MIB)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "x", "-1", "1.2.3", "1q", "99999999999999999999", "9999999999g"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(format_count(1_234_567.4), "1,234,567");
        assert_eq!(format_count(-123_456.0), "-123,456");
        assert_eq!(format_count(999.0), "999");
        assert_eq!(format_size(155 * MIB), "155 MiB");
        assert_eq!(format_ms(5_230.0), "5.23");
    }
}
