//! A run as a picture: who held how much, and what was believed of them.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::record::{Moment, Point, Record};

/// A number of one kind of guest.
type Value = fn(&Point) -> f64;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// One line: its name, how it is drawn, and its values.
struct Line<'a> {
    name: String,
    style: ShapeStyle,
    value: Box<dyn Fn(&Moment) -> f64 + 'a>,
}

/// Draws `record` into the SVG file `path`.
pub(crate) fn draw(record: &Record, path: &Path) -> Result<()> {
    let area = SVGBackend::new(path, (1000, 800)).into_drawing_area();
    paint(record, &area).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn paint(record: &Record, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    let title = area.titled(&record.title, ("sans-serif", 22))?;
    let (upper, lower) = title.split_vertically(430);
    let mut lines = Vec::new();
    for (kind, summary) in record.kinds.iter().enumerate() {
        let color = Palette99::pick(kind).mix(1.0);
        lines.push(line(
            format!("{} holds", summary.name),
            color.stroke_width(2),
            kind,
            |point| point.held,
        ));
        lines.push(line(
            format!("{} target", summary.name),
            color.mix(0.4).stroke_width(4),
            kind,
            |point| point.target,
        ));
    }
    panel(record, &upper, "private memory per guest, MiB", &lines)?;
    let lines = if record.kinds.len() <= 2 {
        activity(record)
    } else {
        totals(record)
    };
    let about = if record.kinds.len() <= 2 {
        "active memory per guest, MiB"
    } else {
        "all guests, MiB"
    };
    panel(record, &lower, about, &lines)?;
    area.present()?;
    Ok(())
}

fn line<'a>(name: String, style: ShapeStyle, kind: usize, value: Value) -> Line<'a> {
    Line {
        name,
        style,
        value: Box::new(move |moment| value(&moment.kinds[kind])),
    }
}

fn activity(record: &Record) -> Vec<Line<'_>> {
    let mut lines = Vec::new();
    for (kind, summary) in record.kinds.iter().enumerate() {
        let color = Palette99::pick(kind).mix(1.0);
        lines.push(line(
            format!("{} estimate", summary.name),
            color.stroke_width(2),
            kind,
            |point| point.estimate,
        ));
        lines.push(line(
            format!("{} truth", summary.name),
            color.mix(0.4).stroke_width(4),
            kind,
            |point| point.active,
        ));
    }
    lines
}

fn totals(record: &Record) -> Vec<Line<'_>> {
    let parts: [(&str, Value); 6] = [
        ("held", |point| point.held),
        ("active", |point| point.active),
        ("shared", |point| point.shared),
        ("ballooned", |point| point.ballooned),
        ("compressed", |point| point.compressed),
        ("swapped", |point| point.swapped),
    ];
    let total = |value: Value| {
        move |moment: &Moment| {
            let kinds = moment.kinds.iter().zip(&record.kinds);
            kinds
                .map(|(point, kind)| value(point) * f64::from(kind.guests))
                .sum()
        }
    };
    let mut lines: Vec<Line<'_>> = parts
        .into_iter()
        .enumerate()
        .map(|(index, (name, value))| Line {
            name: name.to_owned(),
            style: Palette99::pick(index).stroke_width(2),
            value: Box::new(total(value)),
        })
        .collect();
    lines.push(Line {
        name: "free".to_owned(),
        style: BLACK.stroke_width(1),
        value: Box::new(|moment| moment.free),
    });
    lines
}

fn panel(
    record: &Record,
    area: &Area<'_>,
    about: &str,
    lines: &[Line<'_>],
) -> Result<(), Box<dyn std::error::Error>> {
    let (left, right) = area.split_horizontally(810);
    let end = record.moments.last().map_or(1, |moment| moment.at_s).max(1);
    let values = lines
        .iter()
        .flat_map(|line| record.moments.iter().map(|moment| (line.value)(moment)));
    let top = values.fold(1.0, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(&left)
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(70)
        .build_cartesian_2d(0..end, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .y_label_formatter(&|value| format!("{value:.0}"))
        .x_desc("seconds")
        .y_desc(about)
        .draw()?;
    for line in lines {
        let points = record
            .moments
            .iter()
            .map(|moment| (moment.at_s, (line.value)(moment)));
        chart.draw_series(LineSeries::new(points, line.style))?;
    }
    // Beside the lines, never over them.
    for (row, line) in (0..).zip(lines) {
        let y = 20 + row * 20;
        right.draw(&PathElement::new([(4, y), (28, y)], line.style))?;
        right.draw(&Text::new(line.name.clone(), (34, y - 6), ("sans-serif", 13)))?;
    }
    Ok(())
}
