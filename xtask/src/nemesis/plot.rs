//! Throughput over time with the harm marked, as SVG.

use super::Harm;
use super::history::History;
use super::report::name;
use std::fmt::Write;

const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 360.0;
/// Around the curve: room for the numbers, and for the legend below.
const LEFT: f64 = 60.0;
const RIGHT: f64 = 15.0;
const TOP: f64 = 15.0;
const BOTTOM: f64 = 75.0;
/// Submits are counted in intervals of this length.
const BIN_US: u64 = 250_000;

/// The acknowledged submits a second, and a line for each harm.
pub(super) fn plot(history: &History) -> String {
    let (begun, ended) = history.span();
    let bins = ((ended.saturating_sub(begun)) / BIN_US + 1) as usize;
    let mut counts = vec![0_u64; bins];
    for submit in history.submits() {
        counts[((submit.ended - begun) / BIN_US) as usize] += 1;
    }
    let per_second = 1e6 / BIN_US as f64;
    let highest = round_up(counts.iter().max().map_or(1.0, |count| *count as f64 * per_second).max(1.0));
    let seconds = bins as f64 / per_second;
    let x = |second: f64| LEFT + second / seconds * (WIDTH - LEFT - RIGHT);
    let y = |rate: f64| HEIGHT - BOTTOM - rate / highest * (HEIGHT - TOP - BOTTOM);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    let mut add = |element: String| writeln!(svg, "{element}").expect("a String takes everything");
    for step in 0..=4 {
        let rate = highest * f64::from(step) / 4.0;
        let (left, right, y) = (LEFT, WIDTH - RIGHT, y(rate));
        add(format!("<path d=\"M{left} {y:.1}H{right}\" stroke=\"#ddd\"/>"));
        add(format!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{rate:.0}</text>", LEFT - 6.0, y + 4.0));
    }
    let step = round_up(seconds / 12.0);
    for tick in 0..=(seconds / step) as usize {
        let second = tick as f64 * step;
        add(format!(
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{second} s</text>",
            x(second),
            HEIGHT - BOTTOM + 17.0
        ));
    }
    for (at, harm) in &history.harms {
        let (x, bottom) = (x(at.saturating_sub(begun) as f64 / 1e6), HEIGHT - BOTTOM);
        add(format!("<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"{}\" stroke-width=\"1.5\"/>", color(*harm)));
    }
    let mut curve = String::new();
    for (bin, count) in counts.iter().enumerate() {
        let (from, to) = (x(bin as f64 / per_second), x((bin + 1) as f64 / per_second));
        let (verb, y) = (if bin == 0 { 'M' } else { 'L' }, y(*count as f64 * per_second));
        write!(curve, "{verb}{from:.1} {y:.1}H{to:.1}").expect("a String takes everything");
    }
    add(format!("<path d=\"{curve}\" fill=\"none\" stroke=\"#222\"/>"));
    add(format!("<text x=\"{LEFT}\" y=\"{}\">jobs acknowledged a second; masters were harmed:</text>", HEIGHT - 32.0));
    for (place, harm) in Harm::ALL.iter().enumerate() {
        let (x, y) = (LEFT + place as f64 * 225.0, HEIGHT - 12.0);
        add(format!("<path d=\"M{x} {:.1}h18\" stroke=\"{}\" stroke-width=\"3\"/>", y - 4.0, color(*harm)));
        add(format!("<text x=\"{}\" y=\"{y}\">{}</text>", x + 24.0, name(*harm)));
    }
    svg + "</svg>\n"
}

fn color(harm: Harm) -> &'static str {
    match harm {
        Harm::KillLeader => "#d62728",
        Harm::StopLeader => "#ff9f1c",
        Harm::KillFollower => "#1f77b4",
        Harm::StopFollower => "#7fc8f8",
        Harm::KillAll => "#9b30d9",
    }
}

/// The next of 1, 2, 5, 10, 20 and so on.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|step| step * power);
    steps.into_iter().find(|step| *step >= value).unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_harm_is_a_line_and_the_curve_has_every_interval() {
        let text =
            "submit 0 10000 1 1 a 1 1\nharm 20000 kill-leader\nsubmit 15000 915000 2 2 b 2 1\nharm 500000 kill-all\n";
        let svg = plot(&History::read(text).unwrap());
        assert_eq!(svg.matches("stroke-width=\"1.5\"").count(), 2, "{svg}");
        assert_eq!(svg.matches("fill=\"none\"").count(), 1);
        let curve = svg.lines().find(|line| line.contains("fill=\"none\"")).unwrap();
        assert_eq!(curve.matches('H').count(), 4, "{curve}");
    }

    #[test]
    fn scales_end_at_round_numbers() {
        assert_eq!([0.3, 1.0, 7.0, 12.0, 130.0].map(round_up), [0.5, 1.0, 10.0, 20.0, 200.0]);
    }
}
