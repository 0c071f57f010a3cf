//! Charts for the report: HTML and inline SVG, no script.
//!
//! Own code, as the libraries do not fit a page that must work on a phone, in two themes and on paper: `plotters` bakes colours, letters and one width
//! into its SVG (two drawings for each chart, no tooltips); the ones that draw in the browser put a megabyte of script into each report.

mod bars;
mod plot;
mod scale;

pub use bars::{Bar, Group, Segment, Stack, bars, stacks};
pub use plot::{Line, Mark, Plot, Point, Reference, Series};
pub use scale::Axis;

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
