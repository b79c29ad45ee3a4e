//! What people read has no Rust debug text: logs and errors of the library, and every text of the program `tidings`.
//! The test reads the sources, tests and comments aside. It does not see a debug text that reaches a person through a
//! variable.

use std::fs;
use std::path::Path;

const LOG_MACROS: [&str; 5] = ["trace!(", "debug!(", "info!(", "warn!(", "error!("];

/// What stands in the parentheses behind each occurrence of `opening`, which ends with the first of them.
fn arguments<'a>(code: &'a str, opening: &'a str) -> impl Iterator<Item = &'a str> {
    code.match_indices(opening).map(move |(at, _)| {
        let rest = &code[at + opening.len()..];
        let mut depth = 1;
        let end = rest.find(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth == 0
        });
        &rest[..end.unwrap_or(rest.len())]
    })
}

fn formats_debug(text: &str) -> bool {
    text.contains(":?}") || text.contains(":#?}")
}

/// Whether a macro of `tracing` records a field by its debug text: `?field` or `name = ?field`.
fn has_debug_field(arguments: &str) -> bool {
    arguments.split('?').collect::<Vec<_>>().windows(2).any(|around| {
        let is_first = around[0].trim_end().is_empty() || around[0].trim_end().ends_with([',', '=', '(']);
        is_first && around[1].starts_with(|c: char| c.is_alphabetic() || c == '_')
    })
}

/// The debug texts of a source. In the program every text counts, in the library the texts of logs and errors.
fn debug_texts(source: &str, is_program: bool) -> Vec<String> {
    let code = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    let logs = LOG_MACROS.into_iter().flat_map(|opening| arguments(&code, opening));
    let logs = logs.filter(|log| has_debug_field(log) || formats_debug(log));
    let errors = arguments(&code, "#[error(").filter(|error| formats_debug(error));
    let shown = code.lines().filter(|line| is_program && formats_debug(line) && !line.contains("assert"));
    logs.chain(errors).chain(shown).map(String::from).collect()
}

fn read(folder: &Path, is_program: bool, found: &mut Vec<String>) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(folder).expect("the folder exists") {
        let path = entry.expect("the entry is readable").path();
        if path.is_dir() {
            files += read(&path, is_program, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files += 1;
            let source = fs::read_to_string(&path).expect("a source is text");
            let texts = debug_texts(&source, is_program).into_iter();
            found.extend(texts.map(|text| format!("{}: {text}", path.display())));
        }
    }
    files
}

#[test]
fn logs_errors_and_program_show_no_debug_text() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    assert!(read(&root.join("src"), false, &mut found) > 50, "the library is where it is expected");
    assert!(read(&root.join("kv-example/src"), true, &mut found) > 20, "the program is where it is expected");
    assert!(found.is_empty(), "people would read Rust debug text: {found:#?}");
}

#[test]
fn debug_texts_in_sources_are_noticed() {
    let is_noticed = |source: &str| !debug_texts(source, false).is_empty();
    for wrong in [
        "tracing::warn!(?reason, \"link closed\");",
        "tracing::info!(node = %name, ?event, \"changed\");",
        "info!(\n    took = ?began.elapsed(),\n    \"loaded\"\n);",
        "error!(node, \"it failed (again): {cause:?}\");",
        "#[error(\"the seed {seed:?} is wrong\")]",
        "#[error(\n    \"the seed {:#?} is wrong\",\n    seed\n)]",
    ] {
        assert!(is_noticed(wrong), "{wrong} is noticed");
    }
    for right in [
        "tracing::warn!(%reason, rows = count()?, \"why? closed\"); let a = b?;",
        "// tracing::warn!(?reason)\nwarn!(%node);",
        "panic!(\"{broken:?}\");",
        "#[cfg(test)]\nmod tests { fn f() { info!(?x); } }",
    ] {
        assert!(!is_noticed(right), "{right} is accepted");
    }
    let shown = "let text = format!(\"no key {key:?}\");\nassert!(is_sound, \"{key:?}\");";
    assert_eq!(debug_texts(shown, true).len(), 1, "only what the program shows counts");
}
