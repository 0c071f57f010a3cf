//! How large the value of each record is: all alike, or a mix whose shares hold exactly over every hundred keys.

use std::fmt;
use std::str::FromStr;

use crate::units::parse_size;
use crate::values::{VALUE_SIZE_MAX, VALUE_SIZE_MIN};

pub const MIX_PARTS_MAX: usize = 8;

/// A size and how many of a hundred records have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub size: usize,
    pub percent: u8,
}

const UNUSED: Part = Part { size: 0, percent: 0 };

/// The size of a record's value is a fixed function of its key number, so that whoever reads it knows what to expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueSizes {
    parts: [Part; MIX_PARTS_MAX],
    num_parts: usize,
}

/// Neighbouring keys get different sizes: 61 has no divisor in common with 100, so the keys of any hundred in a row take each place once.
const PLACE_STEP: u64 = 61;

impl ValueSizes {
    pub fn fixed(size: usize) -> Self {
        let mut parts = [UNUSED; MIX_PARTS_MAX];
        parts[0] = Part { size, percent: 100 };
        Self { parts, num_parts: 1 }
    }

    /// Size of the value of `key`, whatever its version.
    #[inline]
    pub fn of(&self, key: u64) -> usize {
        if self.num_parts == 1 {
            return self.parts[0].size;
        }
        let mut place = (key % 100 * PLACE_STEP % 100) as u8;
        for part in self.parts() {
            if place < part.percent {
                return part.size;
            }
            place -= part.percent;
        }
        self.parts[0].size
    }

    pub fn parts(&self) -> &[Part] {
        &self.parts[..self.num_parts]
    }

    pub fn largest(&self) -> usize {
        self.parts().iter().map(|part| part.size).max().unwrap_or(VALUE_SIZE_MIN)
    }

    /// Rounded to whole bytes.
    pub fn mean(&self) -> usize {
        let sum: usize = self.parts().iter().map(|part| part.size * usize::from(part.percent)).sum();
        (sum + 50) / 100
    }

    /// As results name it: empty when all values have one size.
    pub fn mix(&self) -> String {
        if self.num_parts == 1 { String::new() } else { self.to_string() }
    }
}

impl fmt::Display for ValueSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.parts().iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}:{}", part.size, part.percent)?;
        }
        Ok(())
    }
}

impl FromStr for ValueSizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut sizes = Self { parts: [UNUSED; MIX_PARTS_MAX], num_parts: 0 };
        let mut position = 1;
        for word in text.split(',') {
            let bad = |problem: &str| format!("{problem} in {word:?} at character {position}; write SIZE:PERCENT,... such as 100:40,1000:40,4096:20");
            let (size, percent) = word.split_once(':').ok_or_else(|| bad("no colon"))?;
            let size = parse_value_size(size).map_err(|problem| bad(&problem))?;
            let percent = percent.parse().ok().filter(|percent| (1..=100).contains(percent)).ok_or_else(|| bad("no share from 1 to 100 percent"))?;
            if sizes.parts().iter().any(|part| part.size == size) {
                return Err(bad("a size that was there before"));
            }
            let part = sizes.parts.get_mut(sizes.num_parts).ok_or_else(|| bad(&format!("more than {MIX_PARTS_MAX} sizes")))?;
            *part = Part { size, percent };
            sizes.num_parts += 1;
            position += word.chars().count() + 1;
        }
        match sizes.parts().iter().map(|part| u32::from(part.percent)).sum() {
            100 => Ok(sizes),
            sum => Err(format!("the shares add up to {sum} percent and not to 100")),
        }
    }
}

pub fn parse_value_size(text: &str) -> Result<usize, String> {
    match usize::try_from(parse_size(text)?) {
        Ok(size) if (VALUE_SIZE_MIN..=VALUE_SIZE_MAX).contains(&size) => Ok(size),
        _ => Err(format!("a size outside {VALUE_SIZE_MIN} to {VALUE_SIZE_MAX} bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_hold_over_every_hundred_keys() {
        let text = "100:25,1000:25,4096:25,16384:25";
        let sizes: ValueSizes = text.parse().unwrap();
        for first in [0, 7, 1_000_001] {
            for part in sizes.parts() {
                let count = (first..first + 100).filter(|&key| sizes.of(key) == part.size).count();
                assert_eq!(count, 25, "{part:?} from {first}");
            }
        }
        assert_eq!((sizes.mean(), sizes.largest()), (5_395, 16_384));
        assert_eq!((sizes.mix().as_str(), sizes.to_string().as_str()), (text, text));
        // A size by itself would come in runs of keys that live near each other.
        assert!((0..99).filter(|&key| sizes.of(key) == sizes.of(key + 1)).count() < 30);
    }

    #[test]
    fn one_size_is_no_mix() {
        let sizes = ValueSizes::fixed(1_000);
        assert_eq!((sizes.of(0), sizes.of(u64::MAX), sizes.mean(), sizes.mix().as_str()), (1_000, 1_000, 1_000, ""));
        assert_eq!("1000:100".parse(), Ok(sizes));
    }

    #[test]
    fn bad_mixes_are_refused_with_their_place() {
        for (text, part) in [
            ("", "no colon in \"\" at character 1"),
            ("100:50,1000", "no colon in \"1000\" at character 8"),
            ("100:50,8:50", "a size outside 32 to 524288 bytes in \"8:50\" at character 8"),
            ("100:50,x:50", "at character 8"),
            ("100:50,1m:50", "a size outside"),
            ("100:0,200:100", "no share from 1 to 100 percent in \"100:0\" at character 1"),
            ("100:-5,200:105", "no share"),
            ("100:50,200:300", "no share from 1 to 100 percent in \"200:300\" at character 8"),
            ("100:50,100:50", "was there before in \"100:50\" at character 8"),
            ("100:50,200:49", "add up to 99 percent"),
            ("100:50,,200:50", "no colon in \"\" at character 8"),
            ("40:10,41:10,42:10,43:10,44:10,45:10,46:10,47:10,48:20", "more than 8 sizes"),
        ] {
            let error = text.parse::<ValueSizes>().expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
