//! Bytes and pages: the one place where they are converted into each other, and human sizes.

use crate::error::{Error, ErrorKind, Result};

/// Bytes in a page. Lightswap pages in units of the base page of x86-64, never huge pages.
pub const PAGE_SIZE: usize = 4096;
const PAGE_SHIFT: u32 = PAGE_SIZE.trailing_zeros();

/// Number of whole pages in `num_bytes` (rounded down).
pub(crate) const fn pages_in(num_bytes: usize) -> usize {
    num_bytes >> PAGE_SHIFT
}

/// Number of bytes in `num_pages` pages.
pub(crate) const fn bytes_of(num_pages: usize) -> usize {
    num_pages << PAGE_SHIFT
}

/// `num_bytes` rounded up to a multiple of `align`, a power of two. `None` on overflow.
pub(crate) fn round_up(num_bytes: usize, align: usize) -> Option<usize> {
    Some(num_bytes.checked_add(align - 1)? & !(align - 1))
}

/// Parses a size such as `4096`, `64k`, `512MiB`, `8GiB`, `1.5g` into bytes. Units are binary; case does not matter.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] with the text and the accepted forms.
pub fn parse_size(text: &str) -> Result<u64> {
    let bad = || {
        let message = format!("\"{text}\" is not a size: write bytes or a number with a unit, such as 512MiB or 8GiB");
        Error::new(ErrorKind::InvalidArgument, message)
    };
    let trimmed = text.trim();
    let unit_at = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(unit_at);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(bad);
    }
    let fraction: f64 = number.parse().map_err(|_| bad())?;
    let bytes = fraction * (1u64 << shift) as f64;
    if shift == 0 || !(0.0..9.0e18).contains(&bytes) {
        return Err(bad());
    }
    Ok(bytes as u64)
}

/// Formats bytes for people: `512 MiB`, `1.5 GiB`.
pub fn format_size(num_bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = num_bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(value.fract() != 0.0);
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse() {
        for (text, bytes) in [("4096", 4096), ("64k", 65536), ("512MiB", 512 << 20), ("8GiB", 8 << 30), ("1.5g", 3 << 29), (" 1 tb ", 1 << 40)] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "x", "-1", "8GiBs", "1.5", "1e3", "99999999999999t", "..g", "GiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_print() {
        assert_eq!(format_size(512 << 20), "512 MiB");
        assert_eq!(format_size(3 << 29), "1.5 GiB");
        assert_eq!(format_size(17), "17 B");
    }
}
