//! Horizontal bars, in plain HTML so that labels wrap and fit any screen.

use std::fmt::Write;

use super::escape;
use crate::summary::Spread;

#[derive(Debug)]
pub struct Bar {
    pub label: String,
    /// A CSS class that gives the colour.
    pub class: String,
    /// Drawn with an error bar from the smallest to the largest when these differ.
    pub value: Spread,
}

#[derive(Debug)]
pub struct Group {
    pub title: String,
    pub bars: Vec<Bar>,
}

fn figure(title: &str, note: &str) -> String {
    format!("<figure class=\"bars\"><figcaption><b>{}</b> <span>{}</span></figcaption>", escape(title), escape(note))
}

fn percent_of(largest: f64) -> impl Fn(f64) -> f64 {
    move |value| if largest > 0.0 && value.is_finite() { (value / largest * 100.0).clamp(0.0, 100.0) } else { 0.0 }
}

/// Horizontal bars from zero, all groups on one scale.
pub fn bars(title: &str, note: &str, groups: &[Group], format: fn(f64) -> String) -> String {
    let largest = groups.iter().flat_map(|group| &group.bars).map(|bar| bar.value.max).filter(|value| value.is_finite()).fold(0.0, f64::max);
    let percent = percent_of(largest);
    let mut html = figure(title, note);
    for group in groups {
        if !group.title.is_empty() {
            let _ = write!(html, "<h4>{}</h4>", escape(&group.title));
        }
        for bar in &group.bars {
            let Spread { median, min, max } = bar.value;
            let _ = write!(
                html,
                "<div class=\"row\" title=\"{}: {} ({} to {})\"><span class=\"label\">{}</span><span class=\"track\"><span class=\"bar {}\" \
                 style=\"width:{:.2}%\"></span>",
                escape(&bar.label),
                format(median),
                format(min),
                format(max),
                escape(&bar.label),
                escape(&bar.class),
                percent(median)
            );
            if max > min {
                let (low, high) = (percent(min), percent(max));
                let _ = write!(html, "<span class=\"spread\" style=\"left:{low:.2}%;width:{:.2}%\"></span>", high - low);
            }
            let _ = write!(html, "</span><span class=\"value\">{}</span></div>", format(median));
        }
    }
    html + "</figure>\n"
}

#[derive(Debug)]
pub struct Segment {
    pub label: String,
    pub class: String,
    pub value: f64,
}

/// One bar made of segments; the total is measured by itself and may differ from their sum.
#[derive(Debug)]
pub struct Stack {
    pub label: String,
    pub segments: Vec<Segment>,
    pub total: String,
}

/// Stacked horizontal bars on one scale, with a legend of all segments in the order in which they first occur.
pub fn stacks(title: &str, note: &str, stacks: &[Stack], format: fn(f64) -> String) -> String {
    let largest = stacks.iter().map(|stack| stack.segments.iter().map(|segment| segment.value).sum()).fold(0.0, f64::max);
    let percent = percent_of(largest);
    let mut html = figure(title, note);
    let mut seen: Vec<&str> = Vec::new();
    html += "<ul class=\"legend\">";
    for segment in stacks.iter().flat_map(|stack| &stack.segments) {
        if !seen.contains(&segment.label.as_str()) {
            seen.push(&segment.label);
            let _ = write!(html, "<li><span class=\"swatch {}\"></span>{}</li>", escape(&segment.class), escape(&segment.label));
        }
    }
    html += "</ul>";
    for stack in stacks {
        let parts: Vec<String> = stack.segments.iter().map(|segment| format!("{} {}", segment.label, format(segment.value))).collect();
        let _ = write!(
            html,
            "<div class=\"row stack\" title=\"{}\"><span class=\"label\">{}</span><span class=\"track\" role=\"img\" aria-label=\"{}\">",
            escape(&parts.join(", ")),
            escape(&stack.label),
            escape(&parts.join(", "))
        );
        for segment in &stack.segments {
            let _ = write!(html, "<span class=\"part {}\" style=\"width:{:.2}%\"></span>", escape(&segment.class), percent(segment.value));
        }
        let _ = write!(html, "</span><span class=\"value\">{}</span></div>", escape(&stack.total));
        if stack.segments.len() > 1 {
            let _ = write!(html, "<p class=\"parts\">{}</p>", escape(&parts.join(" · ")));
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
        let groups = [Group { title: "a < b".into(), bars: vec![Bar { label: "x & y".into(), class: "dram".into(), value: spread(45.0) }] }];
        let html = bars("t", "", &groups, |value| format!("{value}"));
        assert!(html.contains("a &lt; b") && html.contains("x &amp; y"));
        assert!(html.contains("width:90.00%") && html.contains("left:80.00%;width:20.00%"));
        let nothing = bars("t", "", &[], |value| format!("{value}"));
        assert!(nothing.contains("<figure"));
    }

    #[test]
    fn stacks_share_a_scale_and_a_legend() {
        let segment = |label: &str, value| Segment { label: label.into(), class: label.into(), value };
        let stack = |label: &str, segments| Stack { label: label.into(), segments, total: "9 µs".into() };
        let all = [stack("one", vec![segment("notify", 2.0), segment("io", 6.0)]), stack("two", vec![segment("io", 4.0)])];
        let html = stacks("t", "", &all, |value| format!("{value}"));
        assert_eq!(html.matches("<li>").count(), 2);
        assert!(html.contains("width:25.00%") && html.contains("width:75.00%") && html.contains("width:50.00%"));
    }
}
