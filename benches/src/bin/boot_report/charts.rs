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
    /// The number of the uppermost lane, from 0. There are two at least: plotters cannot draw one alone.
    fn last(&self) -> usize {
        self.lanes.len().saturating_sub(1).max(1)
    }

    fn height(&self) -> u32 {
        AROUND + LANE * u32::try_from(self.last() + 1).unwrap_or(0)
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
    let last = panel.last();
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
            let lane = last.checked_sub(*index).and_then(|index| panel.lanes.get(index));
            lane.map_or(String::new(), |it| it.who.clone())
        }
        _ => String::new(),
    };
    // Thin lines between those with a figure; as many as plotters draws by itself would be half of the file.
    let mut mesh = chart.configure_mesh();
    mesh.disable_y_mesh().x_max_light_lines(5).y_label_formatter(&name).draw()?;
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

#[cfg(test)]
mod tests {
    use sparkler_benches::samples::{Line, Sample};

    use super::*;

    #[test]
    fn each_contestant_has_its_name_and_a_line_for_its_median_also_one_alone() {
        let mut figures = Figures::default();
        for (row, who) in [("one", "sparkler"), ("two", "sparkler"), ("two", "floor")] {
            figures.add(Line::Sample(Sample {
                section: "boot".into(),
                row: row.into(),
                metric: "exit, ms".into(),
                who: who.into(),
                value: 1.0,
            }));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("charts.svg");
        draw(&figures, &path).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        let names = |who| svg.lines().filter(|line| *line == who).count();
        assert_eq!([names("sparkler"), names("floor")], [2, 1]);
        let height = |line: &str| {
            let points = line.split_once("points=")?.1.trim_matches(|c: char| !c.is_ascii_digit());
            let (top, bottom) = points.split_once(' ')?;
            let y = |point: &str| point.split_once(',')?.1.parse::<i32>().ok();
            Some(y(top)?.abs_diff(y(bottom)?))
        };
        let medians = svg.lines().filter(|line| line.contains(r#"stroke-width="2""#));
        let heights: Vec<_> = medians.filter_map(height).collect();
        assert_eq!(heights.len(), 3);
        assert!(heights.iter().all(|height| *height >= LANE), "{heights:?}");
    }
}
