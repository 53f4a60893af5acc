//! Curves over time or over a count, drawn as SVG.

use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;

/// Size of one panel in pixels.
const PANEL: (u32, u32) = (900, 340);
/// Curves of this many points and fewer show them as dots.
const FEW: usize = 40;
/// The curves' colours, told apart by colour-blind readers too (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
    RGBColor(0, 0, 0),
];

/// A picture: panels below each other over one axis.
#[derive(Clone, Debug, Default)]
pub struct Figure {
    /// What it shows.
    pub title: String,
    /// What the horizontal axis is, with its unit.
    pub x: String,
    /// From top to bottom.
    pub panels: Vec<Panel>,
}

/// Some curves with one vertical axis, which begins at 0.
#[derive(Clone, Debug, Default)]
pub struct Panel {
    /// What the vertical axis is, with its unit.
    pub y: String,
    /// The curves.
    pub lines: Vec<Line>,
}

/// A curve.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// What it is.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
    /// How it is drawn.
    pub stroke: Stroke,
}

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stroke {
    /// A measurement.
    #[default]
    Fine,
    /// What a measurement is compared with: pale and wide, to be seen under a fine curve that covers it.
    Pale,
}

/// A figure that could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw {file}: {reason}", file = file.display())]
pub struct FigureError {
    file: PathBuf,
    reason: String,
}

impl Line {
    /// A curve called `name`.
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self {
            name: name.into(),
            points: points.into_iter().collect(),
            stroke: Stroke::Fine,
        }
    }

    /// The same curve, drawn pale and wide.
    #[must_use]
    pub fn pale(mut self) -> Self {
        self.stroke = Stroke::Pale;
        self
    }
}

impl Figure {
    /// Draws the figure into `file`, an SVG.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, file: &Path) -> Result<(), FigureError> {
        let failed = |reason: String| FigureError {
            file: file.to_owned(),
            reason,
        };
        let mut text = String::new();
        self.draw(&mut text).map_err(failed)?;
        std::fs::write(file, text).map_err(|e| failed(e.to_string()))
    }

    fn draw(&self, text: &mut String) -> Result<(), String> {
        let count = self.panels.len().max(1);
        let size = (PANEL.0, PANEL.1 * count as u32 + 40);
        let area = SVGBackend::with_string(text, size).into_drawing_area();
        area.fill(&WHITE).map_err(|e| e.to_string())?;
        let area = area
            .titled(&self.title, ("sans-serif", 20))
            .map_err(|e| e.to_string())?;
        for (panel, area) in self.panels.iter().zip(area.split_evenly((count, 1))) {
            panel.draw(&area, &self.x).map_err(|e| e.to_string())?;
        }
        area.present().map_err(|e| e.to_string())
    }
}

impl Panel {
    fn draw<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, Shift>,
        x: &str,
    ) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
        let points = || self.lines.iter().flat_map(|line| line.points.iter());
        let left = points().map(|p| p.0).fold(f64::INFINITY, f64::min).min(f64::MAX);
        let right = points().map(|p| p.0).fold(left, f64::max).max(left + 1e-9);
        let top = points().map(|p| p.1).fold(0.0, f64::max).max(1e-9) * 1.08;
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(24)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(left..right, 0.0..top)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc(x)
            .y_desc(&self.y)
            .x_labels(((right - left) as usize + 1).clamp(2, 12))
            .x_label_formatter(&|x| format!("{}", (x * 10.0).round() / 10.0))
            .y_label_formatter(&|y| format!("{}", (y * 100.0).round() / 100.0))
            .label_style(("sans-serif", 13))
            .axis_desc_style(("sans-serif", 14))
            .draw()?;
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let style = match line.stroke {
                Stroke::Fine => colour.stroke_width(2),
                Stroke::Pale => colour.mix(0.35).stroke_width(8),
            };
            let curve = LineSeries::new(line.points.iter().copied(), style);
            chart
                .draw_series(curve)?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
            if line.points.len() <= FEW && line.stroke == Stroke::Fine {
                let dots = line.points.iter().map(|p| Circle::new(*p, 3, colour.filled()));
                chart.draw_series(dots)?;
            }
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .label_font(("sans-serif", 13))
            .draw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_names_its_curves_and_survives_empty_ones() {
        let figure = Figure {
            title: "pages <shared>".into(),
            x: "guests".into(),
            panels: vec![
                Panel {
                    y: "MiB".into(),
                    lines: vec![
                        Line::new("shared", [(1.0, 0.0), (2.0, 40.0)]),
                        Line::new("none", []),
                    ],
                },
                Panel::default(),
            ],
        };
        let mut text = String::new();
        figure.draw(&mut text).unwrap();
        assert!(text.starts_with("<svg") && text.contains("shared") && text.contains("&lt;shared&gt;"));
    }
}
