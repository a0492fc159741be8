//! Diagnosis by reproduction: planted mistakes are named, those outside the table are localised, and nothing is named wrongly.

mod cli;
mod planted;
