//! Every run of every contestant as a dot, the median as a line.

use std::path::Path;

use plotters::coord::ranged1d::SegmentValue;
use plotters::prelude::*;

use crate::Result;
use crate::figures::{Figures, Group};

const WIDTH: u32 = 960;
/// Height of a contestant's lane, and of what is around the lanes of a panel.
const LANE: u32 = 22;
const AROUND: u32 = 64;

/// What has a panel for each of its rows: section and metric.
const PANELS: [(&str, &str); 5] = [
    ("in process", "first instruction, ms"),
    ("first instruction", "first instruction, ms"),
    ("boot", "init, ms"),
    ("boot", "exit, ms"),
    ("at once", "exit, ms"),
];

struct Panel<'a> {
    title: String,
    lanes: Vec<&'a Group>,
}

impl Panel<'_> {
    fn height(&self) -> u32 {
        AROUND + LANE * u32::try_from(self.lanes.len()).unwrap_or(0)
    }
}

/// Draws all panels into one file, one below the other.
pub(crate) fn draw(figures: &Figures, path: &Path) -> Result<()> {
    let panels = panels(figures);
    let height = panels.iter().map(Panel::height).sum::<u32>().max(LANE);
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut rest = root.clone();
    for panel in &panels {
        let (area, below) = rest.split_vertically(panel.height());
        draw_panel(panel, &area)?;
        rest = below;
    }
    root.present()?;
    Ok(())
}

fn panels(figures: &Figures) -> Vec<Panel<'_>> {
    let of = |(section, metric): (&'static str, &'static str)| {
        let contestants = figures.contestants(section, metric);
        let rows = figures.rows(section, metric).into_iter();
        rows.map(move |row| {
            let lanes = contestants.iter().filter_map(|who| figures.get(section, row, metric, who));
            Panel { title: format!("{section}: {row}: {metric}"), lanes: lanes.collect() }
        })
    };
    PANELS.into_iter().flat_map(of).collect()
}

fn draw_panel(
    panel: &Panel<'_>,
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
) -> Result<()> {
    let largest = panel.lanes.iter().filter_map(|lane| lane.values.last()).copied();
    let largest = largest.fold(0.0, f64::max) * 1.05;
    // The range of segments includes its end.
    let last = panel.lanes.len().saturating_sub(1);
    let lanes = (0..last).into_segmented();
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, ("sans-serif", 15))
        .margin_right(20)
        .x_label_area_size(24)
        .y_label_area_size(150)
        .build_cartesian_2d(0.0..largest, lanes)?;
    // From the top down, as in the tables.
    let name = |lane: &SegmentValue<usize>| match lane {
        SegmentValue::CenterOf(index) => {
            panel.lanes.get(last.saturating_sub(*index)).map_or("".into(), |it| it.who.clone())
        }
        _ => String::new(),
    };
    chart.configure_mesh().disable_y_mesh().y_label_formatter(&name).draw()?;
    for (index, lane) in panel.lanes.iter().enumerate() {
        let color = if lane.who.starts_with("sparkler") { RED } else { BLUE };
        let at = last.saturating_sub(index);
        let dots = lane.values.iter();
        let dots = dots.map(|value| (*value, SegmentValue::CenterOf(at)));
        chart.draw_series(dots.map(|dot| Circle::new(dot, 3, color.mix(0.35).filled())))?;
        let median = lane.median();
        let line = [(median, SegmentValue::Exact(at)), (median, SegmentValue::Exact(at + 1))];
        chart.draw_series([PathElement::new(line.to_vec(), color.stroke_width(2))])?;
    }
    Ok(())
}
