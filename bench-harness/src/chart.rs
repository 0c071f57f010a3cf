//! Bar charts for the report, in plain HTML so that they fit any screen.

use std::fmt::Write;

use crate::summary::Spread;

#[derive(Debug)]
pub struct Bar {
    pub label: String,
    /// A CSS class that gives the colour.
    pub class: String,
    pub value: Spread,
    /// Whether the value is one of several, with an error bar from the smallest to the largest.
    pub has_spread: bool,
}

#[derive(Debug)]
pub struct Group {
    pub title: String,
    pub bars: Vec<Bar>,
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Horizontal bars from zero, all groups on one scale.
pub fn bars(title: &str, note: &str, groups: &[Group], format: fn(f64) -> String) -> String {
    let largest = groups.iter().flat_map(|group| &group.bars).map(|bar| bar.value.max).filter(|value| value.is_finite()).fold(0.0, f64::max);
    let percent = |value: f64| {
        if largest > 0.0 && value.is_finite() { (value / largest * 100.0).clamp(0.0, 100.0) } else { 0.0 }
    };
    let mut html = format!("<figure><figcaption><b>{}</b> <span>{}</span></figcaption>", escape(title), escape(note));
    for group in groups {
        let _ = write!(html, "<h4>{}</h4>", escape(&group.title));
        for bar in &group.bars {
            let _ = write!(
                html,
                "<div class=\"row\"><span class=\"label\">{}</span><span class=\"track\"><span class=\"bar {}\" style=\"width:{:.2}%\"></span>",
                escape(&bar.label),
                escape(&bar.class),
                percent(bar.value.median)
            );
            if bar.has_spread {
                let (low, high) = (percent(bar.value.min), percent(bar.value.max));
                let _ = write!(
                    html,
                    "<span class=\"spread\" style=\"left:{low:.2}%;width:{:.2}%\" title=\"{} to {}\"></span>",
                    high - low,
                    format(bar.value.min),
                    format(bar.value.max)
                );
            }
            let _ = write!(html, "</span><span class=\"value\">{}</span></div>", format(bar.value.median));
        }
    }
    html + "</figure>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_scaled_and_text_is_escaped() {
        let spread = |median| Spread { median, min: median - 5.0, max: median + 5.0 };
        let groups =
            [Group { title: "a < b".into(), bars: vec![Bar { label: "x & y".into(), class: "dram".into(), value: spread(45.0), has_spread: true }] }];
        let html = bars("t", "", &groups, |value| format!("{value}"));
        assert!(html.contains("a &lt; b") && html.contains("x &amp; y"));
        assert!(html.contains("width:90.00%") && html.contains("left:80.00%;width:20.00%"));
        let nothing = bars("t", "", &[], |value| format!("{value}"));
        assert!(nothing.contains("<figure>"));
    }
}
