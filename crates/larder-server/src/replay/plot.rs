//! A small plot for a terminal: one glyph per series of ratios, what they depend on to the right on a logarithmic scale.

use std::io::{self, Write};

const WIDTH: usize = 76;
const HEIGHT: usize = 13;
const LABEL_WIDTH: usize = 9;

/// One line of the plot.
pub(crate) struct Series {
    pub(crate) name: &'static str,
    pub(crate) glyph: char,
    /// What is to the right, above 0 and rising, and the ratio there; the same places in every series.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Draws the series, the first one on top, with a tick and its label below each point, and says what is drawn.
pub(crate) fn write(
    out: &mut impl Write,
    series: &[Series],
    ticks: &[String],
    caption: &str,
) -> io::Result<()> {
    let Some(first) = series.first().filter(|series| series.points.len() > 1) else { return Ok(()) };
    let columns = columns(&first.points);
    let (bottom, top) = edges(series);
    let row =
        |ratio: f64| HEIGHT - 1 - ((ratio - bottom) / (top - bottom) * (HEIGHT - 1) as f64).round() as usize;

    let mut grid = vec![[' '; WIDTH]; HEIGHT];
    for series in series.iter().rev() {
        for (pair, at) in series.points.windows(2).zip(columns.windows(2)) {
            for column in at[0] + 1..at[1] {
                let way = (column - at[0]) as f64 / (at[1] - at[0]) as f64;
                let line: &mut [char] = &mut grid[row(pair[0].1 + (pair[1].1 - pair[0].1) * way)];
                let cell = &mut line[column];
                if *cell == ' ' {
                    *cell = '·';
                }
            }
        }
    }
    for series in series.iter().rev() {
        for (point, column) in series.points.iter().zip(&columns) {
            grid[row(point.1)][*column] = series.glyph;
        }
    }

    for (at, line) in grid.iter().enumerate() {
        let label = if at % 3 == 0 {
            let height = (HEIGHT - 1 - at) as f64 / (HEIGHT - 1) as f64;
            format!("{:.0}%", (bottom + (top - bottom) * height) * 100.0)
        } else {
            String::new()
        };
        let axis = if label.is_empty() { '│' } else { '┤' };
        let line: String = line.iter().collect();
        writeln!(out, "{label:>LABEL_WIDTH$} {axis}{}", line.trim_end())?;
    }
    let axis: String = (0..WIDTH).map(|column| if columns.contains(&column) { '┬' } else { '─' }).collect();
    writeln!(out, "{:>LABEL_WIDTH$} └{axis}", "")?;
    writeln!(out, "{:>LABEL_WIDTH$}  {}", "", labels(&columns, ticks))?;
    let legend: Vec<String> =
        series.iter().map(|series| format!("{} {}", series.glyph, series.name)).collect();
    writeln!(out, "{:>LABEL_WIDTH$}  {}   ({caption})", "", legend.join("   "))
}

/// The ratios at the plot's edges, a multiple of 4% apart so that the five labels are whole numbers. The lower
/// one is 0, unless that would leave half of the plot empty.
fn edges(series: &[Series]) -> (f64, f64) {
    let ratios = || series.iter().flat_map(|series| &series.points).map(|point| point.1);
    let top = (ratios().fold(0.0, f64::max) * 25.0).ceil().clamp(1.0, 25.0);
    let lowest = (ratios().fold(1.0, f64::min) * 25.0).floor().min(top - 1.0);
    let bottom = if lowest * 2.0 > top { lowest } else { 0.0 };
    (bottom / 25.0, top / 25.0)
}

/// Where each capacity stands.
fn columns(points: &[(f64, f64)]) -> Vec<usize> {
    let (first, last) = (points[0].0.ln(), points[points.len() - 1].0.ln());
    // Room for half a label on both sides.
    let margin = 4;
    let span = (WIDTH - 1 - 2 * margin) as f64;
    points
        .iter()
        .map(|point| margin + ((point.0.ln() - first) / (last - first) * span).round() as usize)
        .collect()
}

/// Each label below its tick, left out where it would touch the one before.
fn labels(columns: &[usize], ticks: &[String]) -> String {
    let mut line: Vec<char> = Vec::new();
    for (column, tick) in columns.iter().zip(ticks) {
        let width = tick.chars().count();
        let from = column.saturating_sub(width / 2);
        if line.is_empty() || from > line.len() {
            line.resize(from, ' ');
            line.extend(tick.chars());
        }
    }
    line.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(points: &[(f64, f64)]) -> String {
        let series = [
            Series { name: "larder", glyph: '●', points: points.to_vec() },
            Series { name: "LRU", glyph: '○', points: points.iter().map(|(x, y)| (*x, y / 2.0)).collect() },
        ];
        let ticks: Vec<String> = points.iter().map(|point| point.0.to_string()).collect();
        let mut out = Vec::new();
        write(&mut out, &series, &ticks, "hit ratio against capacity").unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_point_of_every_series_is_drawn() {
        let plot = drawn(&[(10.0, 0.1), (100.0, 0.5), (1000.0, 1.0)]);
        // One more each for the legend; at 10 both round to the same cell, and the first series is on top.
        assert_eq!(plot.matches('●').count(), 4, "{plot}");
        assert_eq!(plot.matches('○').count(), 3, "{plot}");
        assert!(plot.starts_with("     100% ┤"), "{plot}");
        assert!(plot.contains(" 10 ") && plot.contains(" 100 ") && plot.contains(" 1000"), "{plot}");
        assert!(plot.lines().all(|line| line.chars().count() <= 100));
    }

    #[test]
    fn extremes_stay_within_the_grid() {
        drawn(&[(1.0, 0.0), (2.0, 0.0)]);
        drawn(&[(1.0, 1.0), (1.8e19, 1.0)]);
        drawn(&[(1e15, 0.5), (1e15 + 2.0, 0.5)]);
        assert!(drawn(&[(5.0, 1.0), (6.0, 1.0)]).contains("50% ┤"));
        assert_eq!(drawn(&[(5.0, 0.5)]), "", "one point is not a plot");
    }
}
