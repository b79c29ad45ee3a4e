//! Imports point one way: a module imports only modules that stand before it in `LAYERS`. The test reads the source
//! text of the crate. Its control, `an_import_that_points_back_is_noticed`, shows that an import is found and that
//! comments and tests are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The top modules of the crate. Each may import those before it.
const LAYERS: [&str; 13] = [
    "time",
    "config",
    "error",
    "controls",
    "store",
    "wire",
    "replication",
    "membership",
    "election",
    "replica",
    "arrivals",
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

/// The top modules that a source text names, outside of its tests and comments.
fn named(source: &str) -> BTreeSet<String> {
    let code = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    let paths = lines.flat_map(|line| line.split("crate::").skip(1));
    let first = |path: &str| path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    paths.map(first).collect()
}

#[test]
fn imports_point_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 50, "the sources were not found");
    let layer = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    let mut wrong = Vec::new();
    for file in files {
        let within = file.strip_prefix(&root).expect("the file is below the root");
        let top = within
            .components()
            .next()
            .expect("the path has a component")
            .as_os_str()
            .to_string_lossy()
            .replace(".rs", "");
        if top == "lib" {
            continue;
        }
        let own = layer(&top).unwrap_or_else(|| panic!("{top} has no place in the list of layers"));
        for name in named(&fs::read_to_string(&file).expect("the file can be read")) {
            match layer(&name) {
                Some(other) if other > own => wrong.push(format!("{}: {name}", within.display())),
                Some(_) => {}
                // A name of the crate root.
                None => wrong.push(format!("{}: {name} is named by its public path", within.display())),
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
    let code = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    let code = lines.collect::<Vec<_>>().join("\n");
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

#[test]
fn no_module_leads_back_to_itself() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut modules = BTreeMap::new();
    for file in files {
        let within = file.strip_prefix(&root).expect("it was found there").with_extension("");
        let module: Module = within.iter().map(|name| name.to_string_lossy().into_owned()).collect();
        if module != ["lib"] {
            modules.insert(module, fs::read_to_string(&file).expect("it can be read"));
        }
    }
    assert_eq!(circles(&modules), Vec::<String>::new());
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
