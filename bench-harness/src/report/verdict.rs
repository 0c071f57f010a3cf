//! A claim with what was measured of it and the verdict.

use super::evidence::REPRODUCE;
use crate::summary::{Spread, Summary};
use crate::units::{format_count, format_ratio};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Met,
    NotMet,
    NotMeasured,
    /// A test's statement, of which the results hold nothing.
    ByTest,
}

impl Verdict {
    pub fn words(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NotMet => "not met",
            Self::NotMeasured => "not measured",
            Self::ByTest => "by test",
        }
    }

    pub fn class(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NotMet => "not-met",
            Self::NotMeasured => "not-measured",
            Self::ByTest => "by-test",
        }
    }

    pub fn met_if(condition: bool) -> Self {
        if condition { Self::Met } else { Self::NotMet }
    }
}

#[derive(Debug, Clone)]
pub struct Claim {
    pub claim: String,
    /// The paper's figure, or the target.
    pub expected: String,
    pub ours: String,
    pub ratio: String,
    pub verdict: Verdict,
    /// What is missing, or how far the numbers go.
    pub remark: String,
    pub command: String,
}

impl Claim {
    pub fn new(claim: impl Into<String>, expected: &str) -> Self {
        Self {
            claim: claim.into(),
            expected: expected.into(),
            ours: String::new(),
            ratio: String::new(),
            verdict: Verdict::NotMeasured,
            remark: String::new(),
            command: REPRODUCE.into(),
        }
    }

    /// What the test of this name decides.
    pub fn by_test(claim: &str, expected: &str, test: &str) -> Self {
        Self {
            verdict: Verdict::ByTest,
            remark: format!("the statement of a test, {test}, and not of this run"),
            command: "scripts/test".into(),
            ..Self::new(claim, expected)
        }
    }

    pub fn missing(mut self, remark: impl Into<String>) -> Self {
        self.remark = remark.into();
        self
    }
}

/// `1.78`, or `12` where more digits would be noise. More where it takes them to see on which side of a threshold the ratio lies: verdicts are by the
/// unrounded number.
pub fn digits(ratio: f64, thresholds: &[f64]) -> String {
    if !ratio.is_finite() {
        return format_ratio(ratio);
    }
    let shows_the_side = |text: &String| {
        let rounded: f64 = text.parse().unwrap_or(f64::NAN);
        thresholds.iter().all(|threshold| rounded.partial_cmp(threshold) == ratio.partial_cmp(threshold))
    };
    let fewest = if ratio >= 9.95 { 0 } else { 2 };
    let text = (fewest..=6).map(|count| format!("{ratio:.count$}")).find(shows_the_side);
    text.unwrap_or_else(|| ratio.to_string())
}

/// `1.78 ×`, see `digits`.
pub fn times(ratio: f64, thresholds: &[f64]) -> String {
    format!("{} ×", digits(ratio, thresholds))
}

pub fn throughput_ratio(own: &Summary, other: &Summary) -> f64 {
    own.operations_per_second.median / other.operations_per_second.median
}

/// `61,000 (57,000-63,000)`; one number when all are the same.
pub fn with_spread(spread: Spread, format: fn(f64) -> String) -> String {
    if spread.max > spread.min { format!("{} ({}-{})", format(spread.median), format(spread.min), format(spread.max)) } else { format(spread.median) }
}

pub fn throughput(cell: &Summary) -> String {
    format!("{}/s", with_spread(cell.operations_per_second, format_count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_shows_on_which_side_of_the_threshold_it_lies() {
        assert_eq!(digits(1.784, &[1.4]), "1.78");
        assert_eq!(digits(0.9453, &[0.95]), "0.945");
        assert_eq!(digits(0.94999, &[0.95]), "0.94999");
        assert_eq!(digits(0.95, &[0.95]), "0.95");
        assert_eq!(digits(12.3, &[]), "12");
        assert_eq!(digits(f64::NAN, &[1.0]), "-");
        assert_eq!(times(1.000_000_01, &[1.0]), "1.00000001 ×");
    }
}
