//! The chart: a row of bars for each row of the benchmark, one bar for each subject. Its length is
//! the ratio to the bare filesystem, on a logarithmic scale.

use std::fmt::Write;

use crate::report::Report;
use crate::subject::Subject;

const NAMES: f64 = 290.0;
const BARS: f64 = 560.0;
const BAR: f64 = 9.0;
const ROW: f64 = 76.0;
const TOP: f64 = 60.0;
/// The ratios at the two ends of the scale.
const SCALE: (f64, f64) = (0.1, 1000.0);

fn color(subject: Subject) -> &'static str {
    match subject {
        Subject::Bare => "#999999",
        Subject::Kernel => "#4e79a7",
        Subject::KernelWithAll => "#a0cbe8",
        Subject::FuseOverlayfs => "#f28e2b",
        Subject::Ours => "#2f9e44",
        Subject::OverRing => "#b2df8a",
        Subject::Floor => "#555555",
        Subject::FloorOverRing => "#bab0ac",
    }
}

fn place(ratio: f64) -> f64 {
    let (from, to) = (SCALE.0.log10(), SCALE.1.log10());
    NAMES + BARS * ((ratio.clamp(SCALE.0, SCALE.1).log10() - from) / (to - from))
}

/// Returns the chart as SVG.
pub fn svg(report: &Report) -> String {
    let shown: Vec<_> = Subject::ALL.into_iter().filter(|subject| *subject != Subject::Bare).collect();
    let height = TOP + ROW * report.lines.len() as f64 + 20.0;
    let width = NAMES + BARS + 70.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n<text x=\"8\" y=\"20\" font-size=\"14\">Time as a ratio to the bare filesystem; shorter is better</text>\n"
    );
    for (index, subject) in shown.iter().copied().enumerate() {
        let x = 8.0 + 150.0 * index as f64;
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"29\" width=\"12\" height=\"12\" fill=\"{}\"/><text x=\"{}\" y=\"40\">{}</text>",
            color(subject),
            x + 18.0,
            subject.name()
        );
    }
    for power in -1..=3 {
        let (x, label) = (place(10f64.powi(power)), 10f64.powi(power));
        let stroke = if power == 0 { "#333333" } else { "#dddddd" };
        let _ = writeln!(
            text,
            "<line x1=\"{x}\" x2=\"{x}\" y1=\"{TOP}\" y2=\"{}\" stroke=\"{stroke}\"/><text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666666\">{label}</text>",
            height - 20.0,
            TOP - 4.0
        );
    }
    for (index, line) in report.lines.iter().enumerate() {
        let y = TOP + 6.0 + ROW * index as f64;
        let _ =
            writeln!(text, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", NAMES - 8.0, y + 24.0, line.name);
        for (bar, subject) in shown.iter().copied().enumerate() {
            let result = line.results.iter().find(|result| result.subject == subject && !result.ratio.is_nan());
            let Some(result) = result else { continue };
            let (one, end, y) = (place(1.0), place(result.ratio), y + BAR * bar as f64);
            let (from, length) = (one.min(end), (end - one).abs().max(1.0));
            let _ = writeln!(
                text,
                "<rect x=\"{from}\" y=\"{y}\" width=\"{length}\" height=\"{}\" fill=\"{}\"/><text x=\"{}\" y=\"{}\" font-size=\"9\" fill=\"#444444\">{:.1}</text>",
                BAR - 1.0,
                color(subject),
                one.max(end) + 4.0,
                y + 8.0,
                result.ratio
            );
        }
    }
    text + "</svg>\n"
}
