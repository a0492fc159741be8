//! What people read of a run, whatever the format: sections of paragraphs, lists and tables.
//!
//! Sections build it, `markdown`, `html` and `terminal` render it. What one format does beyond the others (colours of a
//! heat map, bars, columns that a narrow terminal leaves out) are hints on cells, rows and columns.

/// For which format a section is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// `summary.md`.
    Summary,
    /// `report.html`.
    Page,
    /// A few lines on a terminal.
    Terminal,
    /// GitHub's step summary: what decides.
    Step,
}

/// A section.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// Its heading; without one it follows what is above.
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
    /// The same table in several sizes, of which a terminal shows the first that fits, or else the last.
    Fitting(Vec<Table>),
    /// Findings, each with its explanation.
    Entries(Vec<Entry>),
    /// What a program wrote, such as a log; the summary shows its end.
    Verbatim {
        title: String,
        text: String,
    },
    /// An empty line on a terminal.
    Gap,
    /// An empty line on a terminal where there is none yet.
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

/// What a word or a cell means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Warn,
    Bad,
    /// Nothing is known.
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
    /// A line each.
    pub(crate) heads: Vec<Vec<Span>>,
    /// Whether a head that is too long for a terminal goes on below; else it is cut.
    pub(crate) wraps: bool,
    /// The explanation.
    pub(crate) text: String,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Row>,
    /// Rows and columns are the same names, which a page and a terminal number.
    pub(crate) is_square: bool,
    /// What a page folds the table under.
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
    /// The lower, the sooner a narrow terminal leaves the column out.
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

/// A row; one that is too short ends in a reason instead of numbers.
#[derive(Debug, Default)]
pub(crate) struct Row {
    pub(crate) cells: Vec<Cell>,
    /// What a page folds the row under: `agreeing pairs`.
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
    /// A share from 0 to 1, which a page shows as the depth of a colour.
    pub(crate) heat: Option<f64>,
    /// What a page shows where the pointer rests.
    pub(crate) hover: String,
    /// What a page draws ahead of the number.
    pub(crate) bar: Option<Bar>,
    /// Whether it says why there is no number.
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
