//! The order of the modules and the names of the types, read from the source text of the crate: a module imports only
//! modules that stand before it in `LAYERS`, none leads back to itself, and no type name exists twice. Each check has a
//! control beside it, which shows that it can fail.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The top modules of the crate. Each may import those before it.
const LAYERS: [&str; 19] = [
    "text",
    "form",
    "id",
    "time",
    "config",
    "error",
    "controls",
    "store",
    "wire",
    "settings_record",
    "replication",
    "membership",
    "election",
    "replica",
    "arrivals",
    "typed",
    "flags",
    "sim",
    "node",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder exists") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// A source text without its tests and comments.
fn code_of(source: &str) -> String {
    let code = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The top modules that a source text names, outside of its tests and comments.
fn named(source: &str) -> BTreeSet<String> {
    let paths = code_of(source).split("crate::").skip(1).flat_map(paths_of).collect::<Vec<_>>();
    paths.into_iter().filter_map(|path| path.into_iter().next()).collect()
}

#[test]
fn imports_point_one_way() {
    let layer = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    let mut wrong = Vec::new();
    for (module, source) in modules() {
        let own =
            layer(&module[0]).unwrap_or_else(|| panic!("{} has no place in the list of layers", module[0]));
        for name in named(&source) {
            match layer(&name) {
                Some(other) if other > own => wrong.push(format!("{}: {name}", module.join("::"))),
                Some(_) => {}
                // The default of a type parameter, which only saves users a word. No code of the module depends on it.
                None if ["typed", "flags"].contains(&&*module[0]) && name == "Node" => {}
                // A name of the crate root.
                None => wrong.push(format!("{}: {name} is named by its public path", module.join("::"))),
            }
        }
    }
    assert!(wrong.is_empty(), "these imports point the wrong way: {wrong:#?}");
}

#[test]
fn an_import_that_points_back_is_noticed() {
    assert!(named("use crate::node::Shared;\n").contains("node"));
    assert!(named("// crate::node\n#[cfg(test)]\nmod tests { use crate::node; }").is_empty());
}

/// A file below `src`, by the names of its module path.
type Module = Vec<String>;

/// All paths that a use tree or an expression after `crate::` or `super::` names, each as the names in it.
fn paths_of(text: &str) -> Vec<Vec<String>> {
    if let Some(inside) = text.strip_prefix('{') {
        return split_group(inside).into_iter().flat_map(|part| paths_of(part.trim())).collect();
    }
    let name: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    if name.is_empty() {
        return Vec::new();
    }
    let within = text[name.len()..].strip_prefix("::").map(paths_of).unwrap_or_default();
    let paths = within.into_iter().map(|path| [vec![name.clone()], path].concat()).collect::<Vec<_>>();
    if paths.is_empty() { vec![vec![name]] } else { paths }
}

/// The parts of a group in braces, up to its end.
fn split_group(inside: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&inside[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inside[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts
}

/// The modules that a source of the crate imports: the longest known beginning of each path that it names.
fn imported(own: &Module, source: &str, known: &BTreeSet<Module>) -> BTreeSet<Module> {
    let code = code_of(source);
    let mut found = BTreeSet::new();
    for (marker, base) in [("crate::", &[][..]), ("super::", &own[..own.len() - 1])] {
        for text in code.split(marker).skip(1) {
            for path in paths_of(text) {
                let path = [base.to_vec(), path].concat();
                let module =
                    (1..=path.len()).rev().map(|len| path[..len].to_vec()).find(|it| known.contains(it));
                found.extend(module);
            }
        }
    }
    // A module and those within it know each other: that is what being within means.
    found.retain(|other| !own.starts_with(other) && !other.starts_with(own));
    found
}

/// Whether one module leads to another.
fn leads_to(from: &Module, to: &Module, imports: &BTreeMap<Module, BTreeSet<Module>>) -> bool {
    let (mut seen, mut left) = (BTreeSet::new(), vec![from]);
    while let Some(module) = left.pop() {
        for next in &imports[module] {
            if next == to {
                return true;
            }
            if seen.insert(next) {
                left.push(next);
            }
        }
    }
    false
}

/// Those modules that lead back to themselves.
fn circles(sources: &BTreeMap<Module, String>) -> Vec<String> {
    let known: BTreeSet<Module> = sources.keys().cloned().collect();
    let imports = sources.iter().map(|(own, source)| (own.clone(), imported(own, source, &known))).collect();
    let circular = known.iter().filter(|module| leads_to(module, module, &imports));
    circular.map(|module| module.join("::")).collect()
}

/// The sources of the crate by their modules.
fn modules() -> BTreeMap<Module, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 50, "the sources were not found");
    let module = |file: &PathBuf| -> Module {
        let within = file.strip_prefix(&root).expect("the file is below the root").with_extension("");
        within.iter().map(|name| name.to_string_lossy().into_owned()).collect()
    };
    let read = |file: PathBuf| (module(&file), fs::read_to_string(&file).expect("the file can be read"));
    files.into_iter().map(read).filter(|(module, _)| *module != ["lib"]).collect()
}

#[test]
fn no_module_leads_back_to_itself() {
    assert_eq!(circles(&modules()), Vec::<String>::new());
}

#[test]
fn circle_of_two_modules_is_found() {
    let of = |sources: [(&str, &str); 3]| -> BTreeMap<Module, String> {
        let module = |path: &str| path.split("::").map(str::to_owned).collect();
        sources.into_iter().map(|(path, source)| (module(path), source.to_owned())).collect()
    };
    let straight =
        [("a", "mod x; mod y;"), ("a::x", "use super::y::{self, Z};"), ("a::y", "// crate::a::x\n")];
    assert_eq!(circles(&of(straight)), Vec::<String>::new());
    let circular = [("a", ""), ("a::x", "use super::{A, y::Z};"), ("a::y", "use crate::{b, a::{x, A}};")];
    assert_eq!(circles(&of(circular)), ["a::x", "a::y"]);
}

/// The types that a source declares.
fn declared(source: &str) -> Vec<String> {
    let name = |line: &str| {
        let mut words =
            line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
        // An associated type is indented, and its name is that of its trait.
        let is_declared = !line.starts_with(' ')
            && words.by_ref().any(|word| ["struct", "enum", "union", "trait", "type"].contains(&word));
        words.next().filter(|_| is_declared).map(str::to_owned)
    };
    code_of(source).lines().filter_map(name).collect()
}

/// The types that several modules declare, each as often as it is declared again.
fn declared_again(sources: &BTreeMap<Module, String>) -> Vec<String> {
    let mut known = BTreeSet::new();
    let types = sources.values().flat_map(|source| declared(source));
    types.filter(|name| !known.insert(name.clone())).collect()
}

/// The types that a glossary does not name.
fn unexplained(sources: &BTreeMap<Module, String>, glossary: &str) -> Vec<String> {
    let words: BTreeSet<&str> = glossary.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let types = sources.values().flat_map(|source| declared(source));
    types.filter(|name| !words.contains(name.as_str())).collect()
}

#[test]
fn every_type_is_in_the_glossary() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/glossary.md");
    let glossary = fs::read_to_string(page).expect("the page exists");
    assert_eq!(unexplained(&modules(), &glossary), Vec::<String>::new());
    let sources = BTreeMap::from([(vec!["a".to_owned()], "pub struct Row {\nenum Other {\n".to_owned())]);
    assert_eq!(unexplained(&sources, "- **row** (`Row`): one key."), ["Other"]);
}

#[test]
fn no_type_name_exists_twice() {
    assert_eq!(declared_again(&modules()), Vec::<String>::new());
}

#[test]
fn type_that_is_declared_again_is_found() {
    let source = |text: &str| text.to_owned();
    let sources = BTreeMap::from([
        (vec![source("a")], source("pub(crate) struct Row {\n    type Row = u8;\n")),
        (vec![source("b")], source("/// struct Row\nenum Row<'a> {")),
    ]);
    assert_eq!(declared_again(&sources), ["Row"]);
}
