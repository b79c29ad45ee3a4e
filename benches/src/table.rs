//! What a measurement found: rows that are printed as they come, kept as data beside the plots, and read again for
//! the report.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where the data is kept.
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/results");

/// One figure of one contestant: the least, the middle and the greatest of its repetitions.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// On whom.
    pub contestant: String,
    /// Least, middle, greatest.
    pub figures: [f64; 3],
    /// Of the figures.
    pub unit: String,
    /// What the middle figure may be at most; for rates, has to be at least.
    pub target: Option<f64>,
    /// More is better.
    pub is_rate: bool,
}

impl Row {
    /// The target with its direction.
    fn bound(&self) -> String {
        let sign = if self.is_rate { "≥" } else { "≤" };
        self.target.map(|target| format!("{sign} {}", figure(target))).unwrap_or_default()
    }

    /// Whether the middle figure is within its target.
    pub fn is_met(&self) -> Option<bool> {
        let target = self.target?;
        Some(if self.is_rate { self.figures[1] >= target } else { self.figures[1] <= target })
    }
}

/// The rows of one measurement.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Names its file.
    pub name: String,
    /// For people.
    pub title: String,
    /// What it found, in order.
    pub rows: Vec<Row>,
    /// What a reader must know to understand the figures.
    pub notes: Vec<String>,
}

/// How busy the machine was when the program started.
#[derive(Debug)]
struct Start {
    load: String,
    ticks: Ticks,
}

fn started() -> &'static Start {
    static START: OnceLock<Start> = OnceLock::new();
    START.get_or_init(|| Start { load: load(), ticks: Ticks::now() })
}

/// Remembers how busy the machine is: what is measured from now on is told with it.
pub fn start() {
    _ = started();
}

/// What the machine's processors did since it was started.
#[derive(Clone, Copy, Debug)]
struct Ticks {
    all: u64,
    stolen: u64,
}

impl Ticks {
    fn now() -> Self {
        let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
        let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
        Self { all: ticks.iter().sum(), stolen: ticks.get(7).copied().unwrap_or(0) }
    }
}

impl Table {
    /// An empty table; its head is printed.
    pub fn new(name: &str, title: &str) -> Self {
        println!("\n{title}\n{:<44} {:<22} {:>11} {:>11} {:>11}", "", "", "min", "median", "max");
        let mut table = Self { name: name.to_owned(), title: title.to_owned(), ..Self::default() };
        table.note(&format!("Load of the machine at the start: {}.", started().load));
        table
    }

    /// Adds and prints a row of figures that should be small. Answers the middle one, NaN if there are none.
    pub fn row(
        &mut self,
        name: &str,
        contestant: &str,
        unit: &str,
        target: Option<f64>,
        all: Vec<f64>,
    ) -> f64 {
        self.add(name, contestant, unit, (target, false), all)
    }

    /// The same for figures that should be large.
    pub fn rate(
        &mut self,
        name: &str,
        contestant: &str,
        unit: &str,
        target: Option<f64>,
        all: Vec<f64>,
    ) -> f64 {
        self.add(name, contestant, unit, (target, true), all)
    }

    /// Adds the quantiles of many samples: a row each.
    pub fn quantiles(&mut self, name: &str, contestant: &str, unit: &str, all: Vec<f64>) -> [f64; 3] {
        let found = quantiles(all);
        for (quantile, figure) in ["p50", "p99", "max"].into_iter().zip(found) {
            self.row(&format!("{name}, {quantile}"), contestant, unit, None, vec![figure]);
        }
        found
    }

    fn add(
        &mut self,
        name: &str,
        contestant: &str,
        unit: &str,
        (target, is_rate): (Option<f64>, bool),
        mut all: Vec<f64>,
    ) -> f64 {
        all.sort_by(f64::total_cmp);
        let at = |i: usize| all.get(i).copied().unwrap_or(f64::NAN);
        let figures = [at(0), at(all.len() / 2), at(all.len().saturating_sub(1))];
        let (name, contestant, unit) = (name.to_owned(), contestant.to_owned(), unit.to_owned());
        let row = Row { name, contestant, figures, unit, target, is_rate };
        println!("{}", line(&row));
        self.rows.push(row);
        figures[1]
    }

    /// Adds and prints a remark.
    pub fn note(&mut self, text: &str) {
        println!("  {text}");
        self.notes.push(text.to_owned());
    }

    /// The middle figures of a contestant, of the rows whose name begins like this: what follows in the name, as a
    /// number, and the figure. For plots.
    pub fn curve(&self, prefix: &str, contestant: &str) -> Vec<(f64, f64)> {
        let of = self.rows.iter().filter(|row| row.contestant == contestant);
        let points = of.filter_map(|row| {
            let rest = row.name.strip_prefix(prefix)?;
            let number = rest.split_whitespace().next()?.trim_end_matches(',').parse().ok()?;
            Some((number, row.figures[1]))
        });
        points.collect()
    }

    /// Keeps the table as data.
    ///
    /// # Panics
    /// If the folder cannot be written.
    pub fn save(&self) {
        let mut text = format!("# {}\n", self.title);
        for note in &self.notes {
            _ = writeln!(text, "#- {note}");
        }
        let (before, now) = (started().ticks, Ticks::now());
        let share =
            100 * now.stolen.saturating_sub(before.stolen) / (now.all.saturating_sub(before.all)).max(1);
        _ = writeln!(text, "#- Of the processors' time since then, other guests of the host took {share} %.");
        for row in &self.rows {
            let [least, middle, most] = row.figures;
            let sign = if row.is_rate { ">" } else { "" };
            let target = row.target.map(|target| format!("{sign}{target}")).unwrap_or_default();
            let Row { name, contestant, unit, .. } = row;
            _ = writeln!(text, "{name}\t{contestant}\t{least:.4}\t{middle:.4}\t{most:.4}\t{unit}\t{target}");
        }
        std::fs::create_dir_all(RESULTS).expect("the folder can be made");
        std::fs::write(path(&self.name), text).expect("the folder can be written");
    }

    /// Reads what [`Table::save`] kept, if it is there.
    pub fn load(name: &str) -> Option<Self> {
        let text = std::fs::read_to_string(path(name)).ok()?;
        let mut table = Self { name: name.to_owned(), ..Self::default() };
        for line in text.lines() {
            if let Some(note) = line.strip_prefix("#- ") {
                table.notes.push(note.to_owned());
            } else if let Some(title) = line.strip_prefix("# ") {
                title.clone_into(&mut table.title);
            } else if let [name, contestant, least, middle, most, unit, target] =
                line.split('\t').collect::<Vec<_>>()[..]
            {
                let number = |text: &str| text.parse().unwrap_or(f64::NAN);
                table.rows.push(Row {
                    name: name.to_owned(),
                    contestant: contestant.to_owned(),
                    figures: [number(least), number(middle), number(most)],
                    unit: unit.to_owned(),
                    target: target.trim_start_matches('>').parse().ok(),
                    is_rate: target.starts_with('>'),
                });
            }
        }
        Some(table)
    }

    /// As a page shows it.
    pub fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n", self.title);
        text.push_str("| what | who | min | median | max | unit | target |\n|---|---|--:|--:|--:|---|--:|\n");
        for row in &self.rows {
            let [least, middle, most] = row.figures.map(figure);
            let target = row.bound();
            let verdict = row.is_met().map_or("", |met| if met { " met" } else { " **missed**" });
            let Row { name, contestant, unit, .. } = row;
            _ = writeln!(
                text,
                "| {name} | {contestant} | {least} | {middle} | {most} | {unit} | {target}{verdict} |"
            );
        }
        text.push('\n');
        self.notes.iter().for_each(|note| _ = writeln!(text, "- {note}"));
        text
    }
}

fn line(row: &Row) -> String {
    let [least, middle, most] = row.figures.map(figure);
    let target = row.target.map(|_| format!("   (target: {})", row.bound())).unwrap_or_default();
    let verdict = if row.is_met() == Some(false) { " MISSED" } else { "" };
    let Row { name, contestant, unit, .. } = row;
    format!("{name:<44} {contestant:<22} {least:>11} {middle:>11} {most:>11} {unit}{target}{verdict}")
}

/// Three digits or so, whatever the size.
pub fn figure(figure: f64) -> String {
    match figure.abs() {
        size if size.is_nan() => "-".to_owned(),
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(RESULTS).join(format!("{name}.tsv"))
}

/// How many programs want to run, over the last minute and the last five.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let fields: Vec<&str> = text.split_whitespace().take(2).collect();
    if fields.is_empty() { "unknown".to_owned() } else { fields.join(", ") }
}

/// The figure that this share of all is not above. The figures must be sorted.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[expect(
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "shares are positive, counts small"
    )]
    let at = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// The middle, the ninety-ninth of a hundred, and the greatest.
pub fn quantiles(mut figures: Vec<f64>) -> [f64; 3] {
    figures.sort_by(f64::total_cmp);
    [0.5, 0.99, 1.0].map(|share| quantile(&figures, share))
}
