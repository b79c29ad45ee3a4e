//! Imports point one way: a module imports only modules that stand before it in `LAYERS`. The test reads the source
//! text of the crate. Its control, `an_import_that_points_back_is_noticed`, shows that an import is found and that
//! comments and tests are left out.

use std::collections::BTreeSet;
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
