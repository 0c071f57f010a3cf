//! Lines and points over two axes.

use std::fmt::Write;

use super::escape;
use super::scale::{Axis, Scale};
use crate::summary::Spread;

#[derive(Debug, Clone)]
pub struct Point {
    pub x: f64,
    /// Drawn with an error bar when the ends differ.
    pub y: Spread,
    /// What a tooltip says.
    pub note: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    Solid,
    Dashed,
    /// Points alone.
    None,
}

#[derive(Debug, Clone)]
pub struct Series {
    pub label: String,
    /// A CSS class that gives the colour.
    pub class: String,
    pub line: Line,
    pub markers: bool,
    pub points: Vec<Point>,
}

/// A value that all others are to be seen against: a line across the plot.
#[derive(Debug, Clone)]
pub struct Reference {
    pub label: String,
    pub class: String,
    pub y: f64,
}

/// A moment that something happened at: a line from bottom to top.
#[derive(Debug, Clone)]
pub struct Mark {
    pub label: String,
    pub class: String,
    pub x: f64,
}

#[derive(Debug, Clone)]
pub struct Plot {
    pub title: String,
    pub note: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
    pub references: Vec<Reference>,
    pub marks: Vec<Mark>,
    /// The axis reaches this far in any case: for plots that are looked at together.
    pub y_at_least: f64,
    /// Less high and without a legend: one of several.
    pub small: bool,
}

/// Marker shapes, so that colour is not all that tells series apart.
const MARKERS: [&str; 5] =
    ["M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M-3.6-3.6h7.2v7.2h-7.2z", "M0-4.8L4.6 3.4H-4.6z", "M0-5L5 0L0 5L-5 0z", "M0 4.8L4.6-3.4H-4.6z"];

/// That fit below a plot, with what keeps labels apart.
const LETTERS_ON_A_PHONE: usize = 34;

impl Plot {
    pub fn new(title: impl Into<String>, note: impl Into<String>, x: Axis, y: Axis) -> Self {
        let (series, references, marks) = (Vec::new(), Vec::new(), Vec::new());
        Self { title: title.into(), note: note.into(), x, y, series, references, marks, y_at_least: f64::NAN, small: false }
    }

    /// Nothing when there is nothing to show.
    pub fn html(&self) -> String {
        let series: Vec<&Series> = self.series.iter().filter(|series| !series.points.is_empty()).collect();
        if series.is_empty() {
            return String::new();
        }
        let points = || series.iter().flat_map(|series| &series.points);
        let x = self.x.scale(points().map(|point| point.x).chain(self.marks.iter().map(|mark| mark.x)));
        let spreads = points().flat_map(|point| [point.y.min, point.y.median, point.y.max]);
        let y = self.y.scale(spreads.chain(self.references.iter().map(|reference| reference.y)).chain([self.y_at_least]));

        let mut html = format!("<figure class=\"chart{}\">", if self.small { " small" } else { "" });
        let _ = write!(html, "<figcaption><b>{}</b> <span>{}</span></figcaption>", escape(&self.title), escape(&self.note));
        if !self.small && series.len() + self.references.len() + self.marks.len() > 1 {
            self.write_legend(&mut html, &series);
        }
        let names = series.iter().map(|series| series.label.as_str()).collect::<Vec<_>>().join(", ");
        let of = if self.title.is_empty() { &self.note } else { &self.title };
        let label = format!("{of}: {} against {}, for {names}", self.y.title, self.x.title);
        let y_labels: Vec<String> = y.ticks.iter().map(|tick| (self.y.format)(*tick)).collect();
        let y_width = y_labels.iter().map(|label| label.chars().count()).max().unwrap_or(1);
        if !self.y.title.is_empty() {
            let _ = write!(html, "<div class=\"y-title\">{}</div>", escape(&self.y.title));
        }
        let _ = write!(html, "<div class=\"plot\" style=\"--y-width:{y_width}ch\">");
        html += "<div class=\"y-axis\">";
        for (tick, text) in y.ticks.iter().zip(&y_labels) {
            let _ = write!(html, "<span style=\"bottom:{:.2}%\">{}</span>", y.percent(*tick), escape(text));
        }
        let _ = write!(html, "</div><svg class=\"area\" role=\"img\" aria-label=\"{}\">", escape(&label));
        write_grid(&mut html, &x, &y);
        for reference in &self.references {
            let at = 100.0 - y.percent(reference.y);
            let _ = write!(
                html,
                "<line class=\"reference {}\" x1=\"0\" x2=\"100%\" y1=\"{at:.2}%\" y2=\"{at:.2}%\"><title>{}: {}</title></line>",
                escape(&reference.class),
                escape(&reference.label),
                escape(&(self.y.format)(reference.y))
            );
        }
        for mark in &self.marks {
            let at = x.percent(mark.x);
            let _ = write!(
                html,
                "<line class=\"reference {}\" x1=\"{at:.2}%\" x2=\"{at:.2}%\" y1=\"0\" y2=\"100%\"><title>{}</title></line>",
                escape(&mark.class),
                escape(&mark.label)
            );
        }
        for (index, series) in series.iter().enumerate() {
            write_series(&mut html, series, MARKERS[index % MARKERS.len()], &x, &y);
        }
        html += "</svg><div class=\"x-axis\">";
        let x_labels: Vec<String> = x.ticks.iter().map(|tick| (self.x.format)(*tick)).collect();
        // On a phone there is room for some of many labels; the last one stays.
        let mut end = f64::INFINITY;
        let mut is_spare = vec![false; x_labels.len()];
        for (index, (tick, text)) in x.ticks.iter().zip(&x_labels).enumerate().rev() {
            let half = (text.chars().count() + 2) as f64 / 2.0 / LETTERS_ON_A_PHONE as f64 * 100.0;
            let middle = x.percent(*tick);
            is_spare[index] = middle + half > end;
            end = if is_spare[index] { end } else { middle - half };
        }
        for ((tick, text), is_spare) in x.ticks.iter().zip(&x_labels).zip(is_spare) {
            let spare = if is_spare { " class=\"spare\"" } else { "" };
            let _ = write!(html, "<span{spare} style=\"left:{:.2}%\">{}</span>", x.percent(*tick), escape(text));
        }
        let _ = writeln!(html, "</div><div class=\"x-title\">{}</div></div></figure>", escape(&self.x.title));
        html
    }

    fn write_legend(&self, html: &mut String, series: &[&Series]) {
        *html += "<ul class=\"legend\">";
        for (index, series) in series.iter().enumerate() {
            let _ = write!(html, "<li class=\"{}\"><svg class=\"key\" viewBox=\"-13 -6 26 12\" aria-hidden=\"true\">", escape(&series.class));
            let dash = match series.line {
                Line::Solid => Some("line"),
                Line::Dashed => Some("line dashed"),
                Line::None => None,
            };
            if let Some(class) = dash {
                let _ = write!(html, "<path class=\"{class}\" d=\"M-13 0H13\"/>");
            }
            if series.markers {
                let _ = write!(html, "<path class=\"marker\" d=\"{}\"/>", MARKERS[index % MARKERS.len()]);
            }
            let _ = write!(html, "</svg>{}</li>", escape(&series.label));
        }
        let across = self.references.iter().map(|reference| (&reference.label, &reference.class, "M-13 0H13"));
        let upright = self.marks.iter().map(|mark| (&mark.label, &mark.class, "M0 -6V6"));
        for (label, class, path) in across.chain(upright) {
            let _ = write!(
                html,
                "<li class=\"{}\"><svg class=\"key\" viewBox=\"-13 -6 26 12\" aria-hidden=\"true\"><path class=\"reference\" d=\"{path}\"/></svg>{}</li>",
                escape(class),
                escape(label)
            );
        }
        *html += "</ul>";
    }
}

fn write_grid(html: &mut String, x: &Scale, y: &Scale) {
    for tick in &y.ticks {
        let at = 100.0 - y.percent(*tick);
        let _ = write!(html, "<line class=\"grid\" x1=\"0\" x2=\"100%\" y1=\"{at:.2}%\" y2=\"{at:.2}%\"/>");
    }
    for tick in &x.ticks {
        let at = x.percent(*tick);
        let _ = write!(html, "<line class=\"tick\" x1=\"{at:.2}%\" x2=\"{at:.2}%\" y1=\"0\" y2=\"100%\"/>");
    }
}

/// Coordinates are in percent, so that one drawing fits every width while strokes, markers and letters keep their size. Paths know no percent: the line
/// lies in a stretched view box, with strokes that do not stretch.
fn write_series(html: &mut String, series: &Series, marker: &str, x: &Scale, y: &Scale) {
    let _ = write!(html, "<g class=\"{}\">", escape(&series.class));
    if series.line != Line::None && series.points.len() > 1 {
        *html += "<svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" width=\"100%\" height=\"100%\"><path class=\"line";
        *html += if series.line == Line::Dashed { " dashed\" d=\"" } else { "\" d=\"" };
        for (index, point) in series.points.iter().enumerate() {
            let letter = if index == 0 { 'M' } else { 'L' };
            let _ = write!(html, "{letter}{:.0} {:.0}", x.percent(point.x) * 10.0, 1000.0 - y.percent(point.y.median) * 10.0);
        }
        *html += "\"/></svg>";
    }
    if series.markers {
        for point in &series.points {
            let (left, top) = (x.percent(point.x), 100.0 - y.percent(point.y.median));
            if point.y.max > point.y.min {
                let (high, low) = (100.0 - y.percent(point.y.max), 100.0 - y.percent(point.y.min));
                let _ = write!(html, "<line class=\"error\" x1=\"{left:.2}%\" x2=\"{left:.2}%\" y1=\"{high:.2}%\" y2=\"{low:.2}%\"/>");
                for end in [high, low] {
                    let _ = write!(html, "<svg class=\"at\" x=\"{left:.2}%\" y=\"{end:.2}%\"><path class=\"error\" d=\"M-4 0H4\"/></svg>");
                }
            }
            let _ = write!(
                html,
                "<svg class=\"at\" x=\"{left:.2}%\" y=\"{top:.2}%\"><path class=\"marker\" d=\"{marker}\"><title>{}</title></path></svg>",
                escape(&point.note)
            );
        }
    }
    *html += "</g>";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::format_count;

    fn plot(points: Vec<Point>) -> Plot {
        let mut plot = Plot::new("a < b", "note", Axis::log("LWTs", format_count), Axis::linear("operations a second", format_count));
        plot.series.push(Series { label: "x & y".into(), class: "dram".into(), line: Line::Solid, markers: true, points });
        plot
    }

    #[test]
    fn points_have_lines_error_bars_and_tooltips() {
        let spread = |median: f64| Spread { median, min: median - 5.0, max: median + 5.0 };
        let point = |x, median| Point { x, y: spread(median), note: format!("at {x}") };
        let html = plot(vec![point(1.0, 50.0), point(100.0, 95.0)]).html();
        assert!(html.contains("a &lt; b") && html.contains("x &amp; y"));
        assert!(html.contains("d=\"M0 500L1000 50\""), "{html}");
        assert_eq!(html.matches("<line class=\"error\"").count(), 2);
        assert!(html.contains("<title>at 100</title>"));
        assert!(html.contains("LWTs") && html.contains("operations a second"));
    }

    #[test]
    fn marks_stand_upright_and_are_in_the_legend() {
        let mut plot = plot(vec![Point { x: 1.0, y: Spread::one(1.0), note: String::new() }]);
        plot.marks.push(Mark { label: "killed <1>".into(), class: "c-x".into(), x: 100.0 });
        let html = plot.html();
        assert_eq!(html.matches("killed &lt;1&gt;").count(), 2);
        // The axis reaches it, though no point lies there.
        let at = html.split("class=\"reference c-x\" x1=\"").nth(1).and_then(|rest| rest.split('%').next()).unwrap();
        assert!((90.0..=100.0).contains(&at.parse::<f64>().unwrap()), "{html}");
    }

    #[test]
    fn without_points_there_is_no_chart() {
        assert_eq!(plot(Vec::new()).html(), "");
    }
}
