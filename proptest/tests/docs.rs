//! The names and paths that stand in backticks in `docs/*.md` exist in the sources.
//!
//! A rename that forgets the documentation fails here. The test reads text alone: a name counts as existing if it is a
//! word of the code of a Rust file, comments aside, and both parts of `Type::member` have to be words of one file. So
//! it notices what is gone, and not what means something else by now.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The folders of the workspace that hold sources. A span that begins with one of these names is a path.
const FOLDERS: [&str; 5] = ["src", "proptest", "kv-example", "benches", "examples"];

/// Names of other projects, which the documentation may use and no source of this one does. None is needed now.
const EXCEPTIONS: &[&str] = &[];

/// What the documentation may name.
#[derive(Default)]
struct Sources {
    /// All files below [`FOLDERS`], and these folders themselves, by their path in the repository.
    paths: BTreeSet<String>,
    /// The words of the code of each Rust file, and the name of its module.
    words: Vec<BTreeSet<String>>,
    /// The functions of all Rust files.
    functions: BTreeSet<String>,
    /// Where constants are declared: path and name.
    constants: BTreeSet<(String, String)>,
}

impl Sources {
    fn of_workspace(root: &Path) -> Self {
        let mut sources = Self::default();
        for folder in FOLDERS {
            sources.paths.insert(format!("{folder}/"));
            sources.read(root, &root.join(folder));
        }
        sources
    }

    fn read(&mut self, root: &Path, folder: &Path) {
        for entry in fs::read_dir(folder).expect("the folder exists") {
            let path = entry.expect("the entry is readable").path();
            let within = path.strip_prefix(root).expect("the path is below the root");
            let within = within.to_string_lossy().into_owned();
            if path.is_dir() {
                // Build output is not part of the sources.
                if !path.ends_with("target") {
                    self.paths.insert(format!("{within}/"));
                    self.read(root, &path);
                }
                continue;
            }
            self.paths.insert(within.clone());
            // This file names things that do not exist.
            if is_rust(&within) && within != "proptest/tests/docs.rs" {
                let text = fs::read_to_string(&path).expect("a source is text");
                let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                let code = code.collect::<Vec<_>>().join("\n");
                // A file is also the module of its name.
                let module = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
                self.words.push(words(&code).map(String::from).chain(module).collect());
                let functions = code.split("fn ").skip(1).filter_map(|rest| words(rest).next());
                self.functions.extend(functions.map(String::from));
                let declared = text.split("const ").skip(1).filter_map(|rest| words(rest).next());
                self.constants.extend(declared.map(|name| (within.clone(), name.to_owned())));
            }
        }
    }

    /// Whether the span is a path in the repository, from its root. A part of a path would stand for several files.
    fn has_path(&self, span: &str) -> bool {
        self.paths.contains(span) || self.paths.contains(&format!("{span}/"))
    }

    /// Whether one source has all these words.
    fn has_words(&self, wanted: &[&str]) -> bool {
        self.words.iter().any(|of_file| wanted.iter().all(|word| of_file.contains(*word)))
    }
}

fn is_rust(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension == "rs")
}

/// The words of a text: letters, digits and underscores.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// What stands in backticks outside of code blocks, with the number of its line.
fn spans(page: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut is_code = false;
    for (index, line) in page.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            found.extend(line.split('`').skip(1).step_by(2).map(|span| (index + 1, span)));
        }
    }
    found
}

fn is_path(span: &str) -> bool {
    let first = span.split('/').next().unwrap_or_default();
    let is_in_folder = span.contains('/') && FOLDERS.contains(&first);
    (is_in_folder || is_rust(span)) && !span.contains(' ')
}

/// The parts of a name: `Type::member`, `snake_case`, `CONST` or `CamelCase`, with or without arguments behind it.
/// Anything else is prose, a command or a value, and gives nothing.
fn name_parts(span: &str) -> Vec<&str> {
    let end = span.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':').unwrap_or(span.len());
    let (name, rest) = span.split_at(end);
    let parts: Vec<&str> = name.split("::").collect();
    let is_name = (rest.is_empty() || rest.starts_with('(') || rest.starts_with(" {"))
        && parts.iter().all(|part| part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'))
        && parts.iter().all(|part| !part.contains(':'));
    let looks_like_code = parts.len() > 1
        || parts.iter().any(|part| part.contains('_') || part.starts_with(|c: char| c.is_ascii_uppercase()));
    if is_name && looks_like_code { parts } else { Vec::new() }
}

/// The paths and names of a page that do not exist.
fn missing(sources: &Sources, page: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (line, span) in spans(page) {
        if is_path(span) {
            if !sources.has_path(span) {
                found.push(format!("line {line}: no file {span}"));
            }
            continue;
        }
        let parts = name_parts(span);
        let is_known = parts.is_empty() || EXCEPTIONS.contains(&span);
        // The first part may be a module whose name stands in another file: the last two have to stand together.
        if !is_known && !sources.has_words(&parts[parts.len().saturating_sub(2)..]) {
            found.push(format!("line {line}: no name {span}"));
        }
    }
    found
}

/// The lines of tables that begin with a constant and end with paths, none of which declares it.
fn misplaced(sources: &Sources, page: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (index, line) in page.lines().enumerate() {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').collect();
        let (Some(first), Some(last)) = (cells.first(), cells.last()) else { continue };
        let spans = |cell: &str| cell.split('`').skip(1).step_by(2).map(String::from).collect::<Vec<_>>();
        let is_constant = |name: &String| name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        let paths: Vec<String> = spans(last).into_iter().filter(|span| is_path(span)).collect();
        let is_declared = |name: &String| {
            paths.iter().any(|path| sources.constants.contains(&(path.clone(), name.clone())))
        };
        if cells.len() > 2 && !paths.is_empty() {
            let wrong = spans(first).into_iter().filter(is_constant).filter(|name| !is_declared(name));
            found
                .extend(wrong.map(|name| format!("line {}: {name} is not declared in {paths:?}", index + 1)));
        }
    }
    found
}

/// The writers and readers in the table of messages at the top of `src/wire.rs` that do not exist.
fn missing_handlers(sources: &Sources, table: &str) -> Vec<String> {
    let rows = table.lines().filter_map(|line| line.strip_prefix("//! | "));
    let rows = rows.filter(|row| row.starts_with(|first: char| first.is_ascii_digit()));
    let names = rows.flat_map(|row| row.split('|').skip(3).take(2).map(|cell| cell.trim().trim_matches('`')));
    let exists = |name: &str| {
        let (of, function) = name.split_once("::").expect("a type and a function");
        sources.functions.contains(function) && sources.has_words(&[of, function])
    };
    names.filter(|name| !exists(name)).map(String::from).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn docs_name_only_what_exists() {
    let sources = Sources::of_workspace(&root());
    assert!(sources.words.len() > 100, "the sources are where they are expected");
    let mut wrong = Vec::new();
    let mut pages = 0;
    for entry in fs::read_dir(root().join("docs")).expect("the folder exists") {
        let path = entry.expect("the entry is readable").path();
        if path.extension().is_some_and(|extension| extension == "md") {
            pages += 1;
            let page = fs::read_to_string(&path).expect("a page is text");
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let faults = missing(&sources, &page).into_iter().chain(misplaced(&sources, &page));
            wrong.extend(faults.map(|what| format!("{name}, {what}")));
        }
    }
    assert!(pages > 5, "the pages are where they are expected");
    assert!(wrong.is_empty(), "the documentation names what does not exist: {wrong:#?}");
}

#[test]
fn handlers_in_table_of_messages_exist() {
    let sources = Sources::of_workspace(&root());
    let wire = fs::read_to_string(root().join("src/wire.rs")).expect("a source is text");
    assert_eq!(missing_handlers(&sources, &wire), Vec::<String>::new());
    let made_up = "//! | 1 | `Hello` | live | `Link::next_live_frame` | `Link::on_nothing` | |";
    assert_eq!(missing_handlers(&sources, made_up), ["Link::on_nothing"]);
}

#[test]
fn constant_named_with_the_wrong_file_is_noticed() {
    let sources = Sources::of_workspace(&root());
    let row = |file: &str| format!("| `MEMBERS_MAX` | 4,096 | members | `{file}` |");
    assert!(misplaced(&sources, &row("src/membership.rs")).is_empty());
    assert_eq!(misplaced(&sources, &row("src/wire.rs")).len(), 1);
}

#[test]
fn made_up_names_in_docs_are_noticed() {
    let sources = Sources::of_workspace(&root());
    let is_noticed = |text: &str| !missing(&sources, text).is_empty();
    for wrong in [
        "`src/store/nowhere.rs`",
        "`kv-example/nowhere/`",
        "`nowhere.rs`",
        "`digest.rs`",
        "`NoSuchType`",
        "`no_such_function`",
        "`NO_SUCH_CONST`",
        "`LocalStore::no_such_member`",
        "`NoSuchType::new`",
        "`no_such_function(true)`",
        "`KeyIndex::note_ack`",
    ] {
        assert!(is_noticed(wrong), "{wrong} is noticed");
    }
    for right in [
        "`src/store.rs`",
        "`src/node/`",
        "`src/store/digest.rs`",
        "`Replica::handle`",
        "`src/replica.rs` has `Replica`",
        "no_such_function without backticks",
        "```\nno_such_function\n`NoSuchType`\n```",
        "`cargo build --release`",
        "`2 × no_such_limit`",
    ] {
        assert!(!is_noticed(right), "{right} is accepted");
    }
}

/// The names of metrics in a source text, from the lists that describe them, with their kinds.
fn described_metrics(source: &str) -> BTreeSet<(String, &'static str)> {
    let kinds = [("GAUGES", "gauge"), ("COUNTERS", "counter"), ("HISTOGRAMS", "histogram")];
    let of_kind = |(list, kind): (&str, &'static str)| {
        let declared = source.split_once(&format!("const {list}: ")).map_or("", |(_, rest)| rest);
        let list = declared.split("];\n").next().unwrap_or_default();
        metric_names(list).into_iter().map(move |name| (name, kind)).collect::<Vec<_>>()
    };
    kinds.into_iter().flat_map(of_kind).collect()
}

/// The names of metrics that stand in a source text as literals.
fn metric_names(source: &str) -> BTreeSet<String> {
    let literals = source.split('"').skip(1).step_by(2);
    literals.filter(|literal| literal.starts_with("tidings_")).map(str::to_owned).collect()
}

/// The metrics that a part of the page lists: names and kinds.
fn listed_metrics(page: &str, part: &str) -> BTreeSet<(String, &'static str)> {
    let (_, rest) = page.split_once(&format!("## {part}\n")).expect("the page has this part");
    let rows = rest.split("\n## ").next().unwrap_or_default().lines().filter(|line| line.starts_with("| `"));
    let cells = |row: &str| -> Vec<String> { row.split('|').map(|cell| cell.trim().to_owned()).collect() };
    rows.map(|row| {
        let cells = cells(row);
        let kinds = ["gauge", "counter", "histogram"];
        let kind = kinds.into_iter().find(|kind| *kind == cells[2]).expect("a kind");
        (cells[1].trim_matches('`').to_owned(), kind)
    })
    .collect()
}

#[test]
fn metrics_page_lists_what_the_code_records() {
    let read = |path: &str| fs::read_to_string(root().join(path)).expect("the file is there");
    let page = read("docs/metrics.md");
    for (part, file, others) in [
        ("Of a node", "src/node/api/metrics.rs", &["src/node/runtime/meter.rs"][..]),
        ("Of the program", "kv-example/src/api/metrics.rs", &[]),
    ] {
        let source = read(file);
        let described = described_metrics(&source);
        assert_eq!(listed_metrics(&page, part), described, "docs/metrics.md and {file} differ");
        let described: BTreeSet<String> = described.into_iter().map(|(name, _)| name).collect();
        let others = others.iter().flat_map(|other| metric_names(&read(other)));
        let recorded: BTreeSet<String> = metric_names(&source).into_iter().chain(others).collect();
        assert_eq!(recorded, described, "what {file} records and what it describes differ");
    }
}

#[test]
fn metric_that_the_page_lacks_is_noticed() {
    let source =
        "const GAUGES: [D; 1] = [(\"tidings_a\", 1)];\nconst COUNTERS: [D; 1] = [(\"tidings_b\", 1)];\n";
    let page = "## Of a node\n\n| name | kind |\n| `tidings_a` | gauge | | text |\n";
    let missing: Vec<_> =
        described_metrics(source).difference(&listed_metrics(page, "Of a node")).cloned().collect();
    assert_eq!(missing, [("tidings_b".to_owned(), "counter")]);
}
