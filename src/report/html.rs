//! `report.html`: one file without scripts or fetched parts, in light and dark.

use super::{Report, RunView};

/// The report as a page.
#[derive(Clone, Copy, Debug)]
pub struct Html;

impl Report for Html {
    fn file_name(&self) -> &'static str {
        "report.html"
    }

    fn render(&self, run: &RunView) -> String {
        format!("<!doctype html><title>{}</title>", run.id)
    }
}
