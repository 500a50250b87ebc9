//! The plots of `docs/benchmarks.md`, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::{coord::Shift, prelude::*};

use crate::report::Line;

const SIZE: (u32, u32) = (760, 420);
const OURS: RGBColor = RGBColor(0, 114, 178);
const THEIRS: RGBColor = RGBColor(213, 94, 0);
const FONT: &str = "sans-serif";

/// Points of one line of a plot.
pub(crate) struct Series {
    pub(crate) name: &'static str,
    pub(crate) is_ours: bool,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Series {
    const fn colour(&self) -> RGBColor {
        if self.is_ours { OURS } else { THEIRS }
    }
}

fn sheet(path: &Path) -> Result<DrawingArea<SVGBackend<'_>, Shift>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    Ok(root)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

/// Something against the number of tenants, both axes logarithmic.
pub(crate) fn growth(path: &Path, title: &str, unit: &str, series: &[Series]) -> Result<()> {
    let points = || {
        series
            .iter()
            .flat_map(|series| series.points.iter().copied())
    };
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, 0.0_f64), |(low, high), value| {
            (low.min(value), high.max(value))
        })
    };
    let (left, right) = bounds(&mut points().map(|(x, _)| x));
    let (low, high) = bounds(&mut points().map(|(_, y)| y));
    let root = sheet(path)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(
            (left * 0.9..right * 1.1).log_scale(),
            (low * 0.7..high * 1.4).log_scale(),
        )
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("tenants")
        .y_desc(unit)
        .x_label_formatter(&|x| crate::report::number(*x))
        .y_label_formatter(&|y| crate::report::number(*y))
        .label_style((FONT, 14))
        .draw()
        .map_err(failed)?;
    for series in series {
        let colour = series.colour();
        chart
            .draw_series(LineSeries::new(
                series.points.iter().copied(),
                colour.stroke_width(2),
            ))
            .map_err(failed)?
            .label(series.name)
            .legend(move |(x, y)| {
                PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2))
            });
        let dots = series
            .points
            .iter()
            .map(|point| Circle::new(*point, 4, colour.filled()));
        chart.draw_series(dots).map_err(failed)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(BLACK)
        .label_font((FONT, 14))
        .draw()
        .map_err(failed)?;
    root.present().map_err(failed)
}

/// Ours beside haproxy's, a pair of bars for each line.
pub(crate) fn pairs(path: &Path, title: &str, unit: &str, lines: &[&Line]) -> Result<()> {
    let values = |line: &Line| {
        let peer = line
            .peer
            .as_ref()
            .map_or(0.0, crate::report::Samples::median);
        (line.ours.median(), peer)
    };
    let highest = lines
        .iter()
        .map(|line| values(line))
        .fold(0.0, |high: f64, (ours, peer)| high.max(ours).max(peer));
    let count = i32::try_from(lines.len())?;
    let root = sheet(path)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 20))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(300)
        .build_cartesian_2d(0.0..highest * 1.15, 0..count * 3)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_desc(unit)
        .label_style((FONT, 14))
        .draw()
        .map_err(failed)?;
    for (at, line) in (0..count).rev().zip(lines) {
        let (ours, peer) = values(line);
        let bar = |from: i32, value: f64, colour: RGBColor| {
            Rectangle::new([(0.0, from), (value, from + 1)], colour.filled())
        };
        let bars = [bar(at * 3 + 1, ours, OURS), bar(at * 3, peer, THEIRS)];
        chart.draw_series(bars).map_err(failed)?;
        let (_, y) = chart.backend_coord(&(0.0, at * 3 + 1));
        let name = Text::new(line.name.clone(), (12, y - 6), (FONT, 14).into_font());
        root.draw(&name).map_err(failed)?;
    }
    let legend = [("metadata-proxy", OURS, 0), ("haproxy", THEIRS, 1)];
    for (name, colour, at) in legend {
        let y = 14 + at * 18;
        root.draw(&Rectangle::new([(610, y), (622, y + 12)], colour.filled()))
            .map_err(failed)?;
        root.draw(&Text::new(name, (628, y), (FONT, 14).into_font()))
            .map_err(failed)?;
    }
    root.present().map_err(failed)
}
