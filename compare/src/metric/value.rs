//! What a metric gives, and how people read it.

use crate::metrics::{ElementIndex, PositionIndex};

/// What a metric gives for one pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A number, NaN and infinities included.
    Number(f64),
    /// A count.
    Count(u64),
    /// A word, such as a dtype.
    Word(&'static str),
    /// A position; `None` where there is none.
    Place(Option<PositionIndex>),
    /// A logit; `None` where there is none.
    Element(Option<ElementIndex>),
    /// It is not defined for these values.
    Undefined,
}

/// How people read a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `0.000014`: so many decimals.
    Decimals(usize),
    /// `1.054e-6`: so many digits after the first.
    Digits(usize),
    /// `96.00 %` of a share.
    Percent,
    /// A whole number.
    Count,
    /// As it is.
    Word,
    /// `row 0, position 2`.
    Place,
    /// `(0, 2, 17)`: row, position and token.
    Element,
}

impl Format {
    /// What is appended to the name of a column of matrix.csv: a place has several.
    pub fn csv_suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Place => &["_row", "_position"],
            Self::Element => &["_row", "_position", "_token"],
            _ => &[""],
        }
    }
}

impl Value {
    /// As gates compare it; NaN where it is no number.
    pub fn number(self) -> f64 {
        match self {
            Self::Number(number) => number,
            Self::Count(count) => count as f64,
            _ => f64::NAN,
        }
    }

    /// As tables show it: `—` where it is not defined.
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

    /// As a narrow table shows it: one digit fewer.
    pub fn narrow(self, format: Format) -> String {
        match format {
            Format::Digits(digits) => self.text(Format::Digits(digits.saturating_sub(1))),
            format => self.text(format),
        }
    }

    /// As the evidence of a gate shows it: with digits where a small number would be all zeros.
    pub fn precise(self, format: Format) -> String {
        match format {
            Format::Decimals(decimals) if decimals < 9 => self.text(Format::Digits(3)),
            Format::Digits(digits) => self.text(Format::Digits(digits.max(3))),
            format => self.text(format),
        }
    }

    /// As a sentence shows it.
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

    /// The fields of matrix.csv, as many as [`Format::csv_suffixes`]: all digits, empty where there is nothing.
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

    /// Whether there is something to join to the number above it.
    pub(super) fn is_something(self) -> bool {
        !matches!(self, Self::Element(None) | Self::Undefined)
    }
}
