//! Pictures of a run over its time, as SVG.

use std::fmt::Write as _;

const WIDTH: f64 = 1_000.0;
const HEIGHT: f64 = 120.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 60.0;
/// From one chart to the next.
const STEP: f64 = 160.0;
/// Below one another, so that they can be read.
const LABEL_ROWS: usize = 3;

/// Charts over the same time, with what happened meanwhile behind them.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// What it shows.
    pub title: String,
    /// How long the time is, in seconds.
    pub seconds: f64,
    /// What happened.
    pub spans: Vec<Span>,
    /// One below the other.
    pub charts: Vec<Chart>,
}

/// Something that happened, in seconds since the begin.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// What.
    pub label: String,
    /// When it began.
    pub from: f64,
    /// When it was over.
    pub to: f64,
}

/// Lines with one scale, which begins with zero.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// What is shown, and its unit.
    pub title: String,
    /// The lines.
    pub lines: Vec<Line>,
}

/// A line.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// As SVG has it.
    pub color: &'static str,
    /// Seconds since the begin, and values.
    pub points: Vec<(f64, f64)>,
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Picture {
    /// As SVG.
    #[must_use]
    pub fn svg(&self) -> String {
        let length = self.seconds.max(1.0);
        let x = |second: f64| LEFT + second / length * WIDTH;
        let below = |charts: usize| TOP + STEP * f64::from(u32::try_from(charts).unwrap_or(u32::MAX));
        let (bottom, height) = (below(self.charts.len()) - STEP + HEIGHT, below(self.charts.len()) + 20.0);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1100 {height}\" font-family=\"sans-serif\" \
             font-size=\"11\">\n<rect width=\"1100\" height=\"{height}\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{}</text>\n",
            escaped(&self.title)
        );
        // Writing into a string does not fail.
        for (number, span) in self.spans.iter().enumerate() {
            let (from, to, label) = (x(span.from), x(span.to), escaped(&span.label));
            let _ = writeln!(
                svg,
                "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\" fill=\"#e66\" opacity=\"0.25\">\
                 <title>{label}: {:.1} s to {:.1} s</title></rect>\
                 <text x=\"{from:.1}\" y=\"{}\" font-size=\"8\">{label}</text>",
                (to - from).max(2.0),
                bottom - TOP,
                span.from,
                span.to,
                34 + 9 * (number % LABEL_ROWS),
            );
        }
        for (number, chart) in self.charts.iter().enumerate() {
            let top = below(number);
            let values = chart.lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value);
            let most = values.fold(1.0, f64::max);
            let y = |value: f64| top + HEIGHT - value / most * HEIGHT;
            let _ = writeln!(
                svg,
                "<text x=\"4\" y=\"{:.1}\">{}</text><text x=\"4\" y=\"{:.1}\">{most:.0}</text>\
                 <line x1=\"{LEFT}\" y1=\"{3:.1}\" x2=\"{4:.1}\" y2=\"{3:.1}\" stroke=\"#999\"/>",
                top - 4.0,
                escaped(&chart.title),
                y(most) + 10.0,
                y(0.0),
                LEFT + WIDTH,
            );
            for line in &chart.lines {
                let points: Vec<String> =
                    line.points.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value))).collect();
                let _ = writeln!(
                    svg,
                    "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\"/>",
                    points.join(" "),
                    line.color
                );
            }
        }
        svg.push_str("</svg>\n");
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_lie_where_their_values_are() {
        let line = Line { color: "#284", points: vec![(0.0, 0.0), (5.0, 50.0), (10.0, 100.0)] };
        let chart = Chart { title: "a < b".to_owned(), lines: vec![line] };
        let span = Span { label: "kill".to_owned(), from: 5.0, to: 6.0 };
        let title = "three & more".to_owned();
        let svg = Picture { title, seconds: 10.0, spans: vec![span], charts: vec![chart] }.svg();
        assert!(svg.contains("60.0,180.0 560.0,120.0 1060.0,60.0"), "{svg}");
        assert!(svg.contains("<rect x=\"560.0\" y=\"60\" width=\"100.0\" height=\"120\""), "{svg}");
        assert!(svg.contains("three &amp; more") && svg.contains("a &lt; b"), "{svg}");
    }
}
