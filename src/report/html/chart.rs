//! SVG charts drawn with plotters. Each role has a placeholder colour that is replaced by a CSS variable, so that a chart
//! follows the page's light or dark scheme.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::element::{Drawable, PointCollection};
use plotters::prelude::{
    Cartesian2d, ChartBuilder, ChartContext, Circle, Cross, DrawingArea, IntoDrawingArea, IntoFont,
    PathElement, RGBColor, Rectangle, SVGBackend, ShapeStyle, Text, TextStyle, TriangleMarker,
};
use plotters::style::Color;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Each role's placeholder colour and its CSS variable.
const ROLES: [(RGBColor, &str); 6] = [
    (LABEL, "var(--soft)"),
    (GRID, "var(--line)"),
    (FIRST, "var(--first)"),
    (SECOND, "var(--second)"),
    (THIRD, "var(--third)"),
    (WRONG, "var(--bad)"),
];
/// Text of labels and ticks.
const LABEL: RGBColor = RGBColor(1, 1, 1);
/// Grid lines.
pub(super) const GRID: RGBColor = RGBColor(2, 2, 2);
/// The main series.
pub(super) const FIRST: RGBColor = RGBColor(3, 3, 3);
/// The second series.
pub(super) const SECOND: RGBColor = RGBColor(4, 4, 4);
/// The third series.
pub(super) const THIRD: RGBColor = RGBColor(5, 5, 5);
/// Values that are not finite, and the marked place.
pub(super) const WRONG: RGBColor = RGBColor(6, 6, 6);

/// Height of text in a chart, in pixels.
const TEXT_SIZE: u32 = 12;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Axes<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Size of a chart, in pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) width: u32,
    pub(super) height: u32,
    /// Width of the labels of the vertical axis.
    pub(super) left: u32,
}

/// A chart that is being drawn.
pub(super) struct Chart<'a, 'b> {
    area: &'a Area<'b>,
    axes: Axes<'a, 'b>,
    x: Range<f64>,
    y: Range<f64>,
}

/// The SVG that `draw` draws on axes with the ranges `x` and `y`; empty if plotters cannot draw it.
pub(super) fn drawn(
    size: Size,
    x: Range<f64>,
    y: Range<f64>,
    draw: impl FnOnce(&mut Chart<'_, '_>),
) -> String {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (size.width, size.height)).into_drawing_area();
        let axes = ChartBuilder::on(&area)
            .margin_top(8)
            .margin_right(12)
            .x_label_area_size(34)
            .y_label_area_size(size.left)
            .build_cartesian_2d(x.clone(), y.clone());
        let Ok(axes) = axes else { return String::new() };
        draw(&mut Chart { area: &area, axes, x, y });
        if area.present().is_err() {
            return String::new();
        }
    }
    themed(&svg)
}

/// Replaces the placeholder colours by CSS variables.
fn themed(svg: &str) -> String {
    let mut themed = svg.to_owned();
    for (RGBColor(red, green, blue), variable) in ROLES {
        themed = themed.replace(&format!("\"#{red:02X}{green:02X}{blue:02X}\""), &format!("\"{variable}\""));
    }
    // Removes attributes that the page's style sheet sets for all charts, and line breaks.
    themed
        .replace(" font-family=\"sans-serif\"", "")
        .replace(" opacity=\"1\"", "")
        .replace(">\n", ">")
        .replace("\n<", "<")
}

/// Shape of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    Dot,
    Triangle,
    Cross,
}

impl<'b> Chart<'_, 'b> {
    /// Draws horizontal grid lines, each with its label on the left.
    pub(super) fn rows(&mut self, ticks: &[(f64, String)]) {
        for (y, label) in ticks {
            self.line(&[(self.x.start, *y), (self.x.end, *y)], GRID, 1);
            let (left, middle) = self.pixel(self.x.start, *y);
            self.text(label, (left - 8, middle), HPos::Right, VPos::Center);
        }
    }

    /// Draws the horizontal axis with its tick labels and title.
    pub(super) fn columns(&mut self, ticks: &[(f64, String)], title: &str) {
        self.line(&[(self.x.start, self.y.start), (self.x.end, self.y.start)], GRID, 1);
        for (x, label) in ticks {
            let (center, bottom) = self.pixel(*x, self.y.start);
            self.text(label, (center, bottom + 5), HPos::Center, VPos::Top);
        }
        let (right, bottom) = self.pixel(self.x.end, self.y.start);
        self.text(title, (right, bottom + 20), HPos::Right, VPos::Top);
    }

    /// Draws a line through `points`.
    pub(super) fn line(&mut self, points: &[(f64, f64)], color: RGBColor, width: u32) {
        let style: ShapeStyle = color.stroke_width(width);
        self.draw(PathElement::new(points.to_vec(), style));
    }

    /// Draws a filled rectangle; `share` is its opacity, 0 to 1.
    pub(super) fn bar(&mut self, corners: [(f64, f64); 2], color: RGBColor, share: f64) {
        self.draw(Rectangle::new(corners, color.mix(share).filled()));
    }

    /// Draws a point.
    pub(super) fn mark(&mut self, at: (f64, f64), marker: Marker, size: u32, color: RGBColor) {
        match marker {
            Marker::Dot => self.draw(Circle::new(at, size, color.filled())),
            Marker::Triangle => self.draw(TriangleMarker::new(at, size, color.filled())),
            Marker::Cross => self.draw(Cross::new(at, size, color.stroke_width(2))),
        }
    }

    /// Pixel coordinates of a point in the SVG.
    pub(super) fn pixel(&self, x: f64, y: f64) -> (i32, i32) {
        self.axes.backend_coord(&(x, y))
    }

    /// Draws text at pixel coordinates.
    pub(super) fn text(&mut self, text: &str, at: (i32, i32), horizontal: HPos, vertical: VPos) {
        let style = TextStyle::from(("sans-serif", TEXT_SIZE).into_font())
            .color(&LABEL)
            .pos(Pos::new(horizontal, vertical));
        // A failed write is detected in `drawn`, where the area is presented.
        let _ = self.area.draw(&Text::new(text.to_owned(), at, style));
    }

    fn draw<E>(&mut self, element: E)
    where
        for<'x> &'x E: PointCollection<'x, (f64, f64)>,
        E: Drawable<SVGBackend<'b>>,
    {
        let _ = self.axes.draw_series(std::iter::once(element));
    }
}

/// A logarithmic axis with a lane below the decades for 0 and one above them for values that are not finite.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decades {
    low: i32,
    high: i32,
    has_zero: bool,
    is_finite: bool,
}

impl Decades {
    /// The axis that covers all values.
    pub(super) fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut found = Self { low: i32::MAX, high: i32::MIN, has_zero: false, is_finite: true };
        for value in values {
            if !value.is_finite() {
                found.is_finite = false;
            } else if value > 0.0 {
                found.low = found.low.min(value.log10().floor() as i32);
                found.high = found.high.max(value.log10().ceil() as i32);
            } else {
                found.has_zero = true;
            }
        }
        if found.low > found.high {
            (found.low, found.high) = (-1, 0);
        }
        found.high = found.high.max(found.low + 1);
        found
    }

    /// Decades from one label to the next.
    fn step(self) -> i32 {
        ((self.high - self.low) as u32).div_ceil(8).max(1) as i32
    }

    /// Coordinate of the lane for 0, one label step below the decades.
    fn zero(self) -> f64 {
        f64::from(self.low - self.step())
    }

    /// Coordinate of the lane for values that are not finite, one label step above the last label.
    fn lost(self) -> f64 {
        let labelled = (self.high - self.low) / self.step() * self.step();
        f64::from((self.low + labelled + self.step()).max(self.high + 1))
    }

    pub(super) fn range(self) -> Range<f64> {
        let low = if self.has_zero { self.zero() } else { f64::from(self.low) };
        let high = if self.is_finite { f64::from(self.high) } else { self.lost() };
        let margin = 0.25 * f64::from(self.step());
        low - margin..high + margin
    }

    /// The coordinate of a value, and whether it is finite.
    pub(super) fn place(self, value: f64) -> (f64, bool) {
        if !value.is_finite() {
            return (self.lost(), false);
        }
        let place = if value > 0.0 { value.log10() } else { self.zero() };
        (place, true)
    }

    /// Coordinates and labels of at most nine powers of ten and of the lanes in use.
    pub(super) fn ticks(self) -> Vec<(f64, String)> {
        let step = self.step() as usize;
        let decades =
            (self.low..=self.high).step_by(step).map(|power| (f64::from(power), format!("1e{power}")));
        let zero = self.has_zero.then(|| (self.zero(), "0".to_owned()));
        let lost = (!self.is_finite).then(|| (self.lost(), "NaN, ∞".to_owned()));
        zero.into_iter().chain(decades).chain(lost).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { width: 300, height: 200, left: 60 };

    #[test]
    fn a_chart_uses_css_variables_and_escapes_its_texts() {
        let svg = drawn(SIZE, 0.0..1.0, 0.0..1.0, |chart| {
            chart.rows(&[(0.5, "<script>&\"".to_owned())]);
            chart.line(&[(0.0, 0.0), (1.0, 1.0)], FIRST, 2);
            chart.mark((0.5, 0.5), Marker::Cross, 4, WRONG);
        });
        assert!(
            svg.starts_with("<svg") && svg.contains("var(--first)") && svg.contains("var(--bad)"),
            "{svg}"
        );
        assert!(!svg.contains("<script") && svg.contains("&lt;script"), "{svg}");
        assert!(!svg.contains("#0"), "a colour without a role: {svg}");
    }

    #[test]
    fn zero_and_non_finite_values_have_separate_lanes() {
        let decades = Decades::of([0.0, 3e-5, 2e-2, f64::NAN, f64::INFINITY].into_iter());
        let labels: Vec<String> = decades.ticks().into_iter().map(|(_, label)| label).collect();
        assert_eq!(labels, ["0", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1", "NaN, ∞"]);
        assert_eq!((decades.place(f64::NAN), decades.place(0.0)), ((0.0, false), (-6.0, true)));
        let plain = Decades::of([1e-3].into_iter()).ticks();
        assert_eq!(plain.len(), 2, "a decade at least");
        assert!(Decades::of(std::iter::empty()).range().end > -1.0);
    }
}
