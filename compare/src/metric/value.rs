//! The value of a metric and its text formats.

use crate::metrics::{ElementIndex, PositionIndex};

/// The value of a metric for one pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A number, NaN and infinities included.
    Number(f64),
    /// A count.
    Count(u64),
    /// A word, such as a dtype.
    Word(&'static str),
    /// A position; `None` if there is none.
    Place(Option<PositionIndex>),
    /// A logit; `None` if there is none.
    Element(Option<ElementIndex>),
    /// The metric is not defined for this pair.
    Undefined,
}

/// Text format of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Fixed number of decimals: `0.000014`.
    Decimals(usize),
    /// Scientific, with this number of digits after the first: `1.054e-6`.
    Digits(usize),
    /// A share as a percentage: `96.00 %`.
    Percent,
    /// A whole number.
    Count,
    /// The word unchanged.
    Word,
    /// `row 0, position 2`.
    Place,
    /// `(0, 2, 17)`: row, position and token.
    Element,
}

impl Format {
    /// Suffixes of the metric's column names in matrix.csv, one per column: a place has several columns.
    pub fn csv_suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Place => &["_row", "_position"],
            Self::Element => &["_row", "_position", "_token"],
            _ => &[""],
        }
    }
}

impl Value {
    /// The number that gates compare; NaN if the value is not a number.
    pub fn number(self) -> f64 {
        match self {
            Self::Number(number) => number,
            Self::Count(count) => count as f64,
            _ => f64::NAN,
        }
    }

    /// Text for tables; `—` if the value is not defined.
    pub fn text(self, format: Format) -> String {
        match (self, format) {
            (Self::Number(number), Format::Decimals(decimals)) => format!("{number:.decimals$}"),
            (Self::Number(number), Format::Digits(digits)) => format!("{number:.digits$e}"),
            (Self::Number(number), Format::Percent) => format!("{:.2} %", 100.0 * number),
            (Self::Number(number), _) => format!("{number}"),
            (Self::Count(count), _) => count.to_string(),
            (Self::Word(word), _) => word.to_owned(),
            (Self::Place(Some(at)), _) => format!("row {}, position {}", at.row, at.position),
            (Self::Place(None), _) => "none".to_owned(),
            (Self::Element(Some(at)), _) => format!("({}, {}, {})", at.at.row, at.at.position, at.token),
            (Self::Element(None) | Self::Undefined, _) => "—".to_owned(),
        }
    }

    /// Text for narrow tables: one digit fewer in scientific format.
    pub fn narrow(self, format: Format) -> String {
        match format {
            Format::Digits(digits) => self.text(Format::Digits(digits.saturating_sub(1))),
            format => self.text(format),
        }
    }

    /// Text for a gate's evidence: at least three digits, so that a small number is not shown as zeros.
    pub fn precise(self, format: Format) -> String {
        match format {
            Format::Decimals(decimals) if decimals < 9 => self.text(Format::Digits(3)),
            Format::Digits(digits) => self.text(Format::Digits(digits.max(3))),
            format => self.text(format),
        }
    }

    /// Text for use in a sentence.
    pub fn words(self, format: Format) -> String {
        match self {
            Self::Place(Some(at)) => format!("first differs at row {}, position {}", at.row, at.position),
            Self::Place(None) => "chooses the same token everywhere".to_owned(),
            Self::Element(Some(at)) => {
                format!("row {}, position {}, vocabulary token {}", at.at.row, at.at.position, at.token)
            }
            value => value.text(format),
        }
    }

    /// The fields of matrix.csv, as many as [`Format::csv_suffixes`]; numbers in full precision, empty if undefined.
    pub fn csv(self, format: Format) -> Vec<String> {
        let mut fields = match self {
            // The shortest text that reads back as the same number, `1.5e-9`, `NaN`, `inf`.
            Self::Number(number) => vec![format!("{number:?}")],
            Self::Count(count) => vec![count.to_string()],
            Self::Word(word) => vec![word.to_owned()],
            Self::Place(Some(at)) => vec![at.row.to_string(), at.position.to_string()],
            Self::Element(Some(at)) => {
                vec![at.at.row.to_string(), at.at.position.to_string(), at.token.to_string()]
            }
            Self::Place(None) | Self::Element(None) | Self::Undefined => Vec::new(),
        };
        fields.resize(format.csv_suffixes().len(), String::new());
        fields
    }

    /// False for an undefined value and for the absence of an element.
    pub(super) fn is_something(self) -> bool {
        !matches!(self, Self::Element(None) | Self::Undefined)
    }
}
