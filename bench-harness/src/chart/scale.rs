//! Axes: which values are where, and which of them are labelled.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// From zero.
    Linear,
    Log,
}

#[derive(Debug, Clone)]
pub struct Axis {
    pub title: String,
    pub kind: Kind,
    /// Large values first.
    pub reversed: bool,
    /// Values to label; empty: round ones.
    pub ticks: Vec<f64>,
    pub format: fn(f64) -> String,
}

impl Axis {
    pub fn linear(title: &str, format: fn(f64) -> String) -> Self {
        Self { title: title.into(), kind: Kind::Linear, reversed: false, ticks: Vec::new(), format }
    }

    pub fn log(title: &str, format: fn(f64) -> String) -> Self {
        Self { kind: Kind::Log, ..Self::linear(title, format) }
    }

    /// Labels at these values only, such as those that were measured.
    pub fn ticks_at(mut self, values: impl IntoIterator<Item = f64>) -> Self {
        self.ticks = values.into_iter().collect();
        self.ticks.sort_by(f64::total_cmp);
        self.ticks.dedup();
        self
    }

    pub fn reversed(mut self) -> Self {
        self.reversed = true;
        self
    }

    /// The axis laid out for these values.
    pub fn scale(&self, values: impl IntoIterator<Item = f64>) -> Scale {
        let usable = |value: &f64| value.is_finite() && (self.kind == Kind::Linear || *value > 0.0);
        let values: Vec<f64> = values.into_iter().chain(self.ticks.iter().copied()).filter(usable).collect();
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = if low.is_finite() { (low, high) } else { (1.0, 10.0) };
        let (low, high, round) = match self.kind {
            Kind::Linear => linear(high, self.ticks.is_empty()),
            Kind::Log => logarithmic(low, high, self.ticks.is_empty()),
        };
        let ticks = if self.ticks.is_empty() { round } else { self.ticks.clone() };
        Scale { kind: self.kind, reversed: self.reversed, low, high, ticks }
    }
}

/// An axis with its ends.
#[derive(Debug, Clone)]
pub struct Scale {
    kind: Kind,
    reversed: bool,
    low: f64,
    high: f64,
    pub ticks: Vec<f64>,
}

impl Scale {
    /// Where the value is, in percent of the axis; values beyond its ends are at the ends.
    pub fn percent(&self, value: f64) -> f64 {
        let share = match self.kind {
            Kind::Linear => (value - self.low) / (self.high - self.low),
            Kind::Log => (value.max(f64::MIN_POSITIVE) / self.low).ln() / (self.high / self.low).ln(),
        };
        let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
        (if self.reversed { 1.0 - share } else { share }) * 100.0
    }
}

/// The smallest of 1, 2, 2.5, 5 times a power of ten that is at least this large.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * power).into_iter().find(|step| *step >= value * (1.0 - 1e-9)).unwrap_or(value)
}

fn linear(high: f64, rounded: bool) -> (f64, f64, Vec<f64>) {
    let high = if high > 0.0 { high } else { 1.0 };
    let step = round_up(high / 5.0);
    let num_steps = (high / step * (1.0 - 1e-9)).ceil();
    let ticks = (0..=num_steps as u32).map(|index| f64::from(index) * step).collect();
    // Air above the highest value, so that its marker is whole.
    (0.0, if rounded { num_steps * step } else { high * 1.04 }, ticks)
}

fn logarithmic(low: f64, high: f64, rounded: bool) -> (f64, f64, Vec<f64>) {
    if !rounded {
        // The outer values keep off the frame.
        let air = (high / low).powf(0.04).max(1.05);
        return (low / air, high * air, Vec::new());
    }
    let steps = |factors: &[f64]| -> Vec<f64> {
        let first = low.log10().floor() as i32 - 1;
        let last = high.log10().ceil() as i32 + 1;
        let all: Vec<f64> = (first..=last).flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power))).collect();
        let from = all.iter().rposition(|value| *value <= low * (1.0 + 1e-9)).unwrap_or(0);
        let to = all.iter().position(|value| *value >= high * (1.0 - 1e-9)).unwrap_or(all.len() - 1).max(from + 1);
        all[from..=to].to_vec()
    };
    let fine = steps(&[1.0, 2.0, 5.0]);
    // Values that are near each other need finer steps, or the axis has two labels.
    let fine = if fine.len() < 4 { steps(&[1.0, 2.0, 3.0, 4.0, 5.0, 7.0]) } else { fine };
    let ticks = if fine.len() <= 7 { fine.clone() } else { steps(&[1.0]) };
    // The ends are those of the fine steps, so that little room is empty, and the labels are those within.
    let (low, high) = (fine[0], fine[fine.len() - 1]);
    let ticks = ticks.into_iter().filter(|tick| (low * (1.0 - 1e-9)..=high * (1.0 + 1e-9)).contains(tick)).collect();
    (low, high, ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(value: f64) -> String {
        value.to_string()
    }

    #[test]
    fn linear_axes_start_at_zero_and_end_at_a_round_value() {
        let scale = Axis::linear("", plain).scale([3.0, 91_000.0]);
        assert_eq!(scale.ticks, [0.0, 20_000.0, 40_000.0, 60_000.0, 80_000.0, 100_000.0]);
        assert!((scale.percent(50_000.0) - 50.0).abs() < 1e-9);
        assert!((scale.percent(f64::NAN) - 0.0).abs() < 1e-9);
        let reversed = Axis::linear("", plain).reversed().ticks_at([1.0, 0.1]).scale([0.5]);
        assert!(reversed.percent(1.0) < reversed.percent(0.1));
        assert_eq!(reversed.ticks, [0.1, 1.0]);
    }

    #[test]
    fn log_axes_have_round_ends_and_few_labels() {
        let close = Axis::log("", plain).scale([2.5, 60.0]);
        assert_eq!(close.ticks, [2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert!((close.percent(2.0) - 0.0).abs() < 1e-9 && (close.percent(100.0) - 100.0).abs() < 1e-9);
        let wide = Axis::log("", plain).scale([1.0, 90_000.0]);
        assert_eq!(wide.ticks.len(), 6);
        assert_eq!(Axis::log("", plain).scale([2.2, 3.3]).ticks, [2.0, 3.0, 4.0]);
        // Nothing positive to show is no reason to fail.
        assert!(!Axis::log("", plain).scale([0.0, -1.0]).ticks.is_empty());
        let one = Axis::log("", plain).scale([10.0]);
        assert!(one.percent(10.0).is_finite() && one.ticks.len() >= 2);
    }
}
