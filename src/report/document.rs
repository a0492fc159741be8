//! The format-independent document of a run: sections of paragraphs, lists and tables.
//!
//! `sections` builds it; `markdown`, `html` and `terminal` render it. Features of one format (heat-map colours, bars,
//! columns that a narrow terminal drops) are hints on cells, rows and columns.

/// The format that a section is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// `summary.md`.
    Summary,
    /// `report.html`.
    Page,
    /// A few lines on a terminal.
    Terminal,
    /// GitHub's step summary, which holds the sections that decide the result.
    Step,
}

/// A section.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// Its heading; `None` continues the section above.
    pub(crate) title: Option<String>,
    pub(crate) blocks: Vec<Block>,
}

impl Content {
    pub(crate) fn titled(title: impl Into<String>, blocks: Vec<Block>) -> Self {
        Self { title: Some(title.into()), blocks }
    }

    pub(crate) fn untitled(blocks: Vec<Block>) -> Self {
        Self { title: None, blocks }
    }
}

#[derive(Debug)]
pub(crate) enum Block {
    /// A heading below the section's.
    Heading(String),
    /// A paragraph.
    Text(Vec<Span>),
    List(Vec<Item>),
    Table(Table),
    /// The same table in several sizes; a terminal shows the first that fits, or else the last.
    Fitting(Vec<Table>),
    /// Findings, each with its explanation.
    Entries(Vec<Entry>),
    /// Program output, such as a log; the summary shows its last lines.
    Verbatim {
        title: String,
        text: String,
    },
    /// An empty line on a terminal.
    Gap,
    /// An empty line on a terminal unless the previous line is empty.
    Apart,
}

impl Block {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(vec![Span::Plain(text.into())])
    }

    /// A list of plain items.
    pub(crate) fn list(items: impl IntoIterator<Item = String>) -> Self {
        let item = |text| Item { text: vec![Span::Plain(text)], ..Item::default() };
        Self::List(items.into_iter().map(item).collect())
    }
}

/// Text of one kind.
#[derive(Clone, Debug)]
pub(crate) enum Span {
    Plain(String),
    Strong(String),
    Toned(String, Tone),
}

/// The meaning of a word or a cell, which selects its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Warn,
    Bad,
    /// The state is not known.
    Unknown,
}

#[derive(Debug, Default)]
pub(crate) struct Item {
    pub(crate) text: Vec<Span>,
    /// A line below the text.
    pub(crate) below: Option<String>,
    /// A list within.
    pub(crate) items: Vec<String>,
}

/// A finding.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Head lines of the finding.
    pub(crate) heads: Vec<Vec<Span>>,
    /// Whether a head that is wider than the terminal wraps; otherwise it is truncated.
    pub(crate) wraps: bool,
    /// The explanation.
    pub(crate) text: String,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Row>,
    /// Whether rows and columns have the same names; HTML and terminal then number the columns.
    pub(crate) is_square: bool,
    /// Summary line under which HTML folds the table.
    pub(crate) folded: Option<&'static str>,
}

impl Table {
    pub(crate) fn new<C: Into<Column>>(
        columns: impl IntoIterator<Item = C>,
        rows: impl IntoIterator<Item = Row>,
    ) -> Self {
        Self {
            columns: columns.into_iter().map(Into::into).collect(),
            rows: rows.into_iter().collect(),
            ..Self::default()
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) title: String,
    /// Priority: a narrow terminal drops the columns with the lowest values first; `None` is never dropped.
    pub(crate) need: Option<u8>,
}

impl From<&str> for Column {
    fn from(title: &str) -> Self {
        Self { title: title.to_owned(), need: None }
    }
}

impl From<String> for Column {
    fn from(title: String) -> Self {
        Self { title, need: None }
    }
}

/// A row; a row with fewer cells than columns ends in a reason instead of numbers.
#[derive(Debug, Default)]
pub(crate) struct Row {
    pub(crate) cells: Vec<Cell>,
    /// Summary line under which HTML folds the row, for example `agreeing pairs`.
    pub(crate) folded: Option<&'static str>,
}

impl<C: Into<Cell>> FromIterator<C> for Row {
    fn from_iter<I: IntoIterator<Item = C>>(cells: I) -> Self {
        Self { cells: cells.into_iter().map(Into::into).collect(), folded: None }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    pub(crate) text: String,
    pub(crate) tone: Option<Tone>,
    /// A share from 0 to 1, which HTML shows as colour intensity.
    pub(crate) heat: Option<f64>,
    /// Tooltip in HTML.
    pub(crate) hover: String,
    /// Bar that HTML draws before the number.
    pub(crate) bar: Option<Bar>,
    /// Whether the text is the reason for a missing number.
    pub(crate) is_absent: bool,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, ..Self::default() }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Cell {
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone: Some(tone), ..Self::default() }
    }
}

/// A number with its interval and a tick, as shares from 0 to 1 of the longest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bar {
    pub(crate) length: f64,
    pub(crate) interval: [f64; 2],
    pub(crate) tick: f64,
}
