//! The files that flagd's schemas are tested with: each positive one has no fault, each negative one has.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tidings::flags::{FlagFault, check_file};

use crate::files::Files;

/// The faults of a file. A file of targeting alone is the rule of a flag; lists of flags are those of flagd itself, each
/// with its key.
fn faults(path: &Path, kind: &str) -> Vec<FlagFault> {
    let text = fs::read_to_string(path).expect("the file is there");
    let mut file: Value = serde_json::from_str(&text).expect("it is JSON");
    match kind {
        "targeting" => {
            let flag = json!({"state": "ENABLED", "variants": {"a": true}, "targeting": file});
            // A rule that one of the files refers to, without saying what it is.
            file = json!({"flags": {"flag": flag}, "$evaluators": {"some-ref": {"var": "x"}}});
        }
        _ if path.to_string_lossy().contains("positive") => {
            if let Some(list) = file["flags"].as_array().cloned() {
                let key = |flag: &Value| flag["key"].as_str().expect("it has a key").to_owned();
                file["flags"] = list.iter().map(|flag| (key(flag), flag.clone())).collect();
            }
        }
        _ => {}
    }
    check_file(&file.to_string())
}

#[test]
fn schema_files_are_judged_as_the_schemas_do() {
    let files = Files::find();
    let mut counts = [0, 0];
    for kind in ["flagd", "flags", "targeting"] {
        for (at, sign) in ["positive", "negative"].into_iter().enumerate() {
            let folder = files.path(&format!("schemas/json/test/{kind}/{sign}"));
            for entry in fs::read_dir(folder).expect("the folder is there") {
                let path = entry.expect("the entry is readable").path();
                if path.extension().is_none_or(|extension| extension != "json") {
                    continue;
                }
                let faults = faults(&path, kind);
                assert_eq!(faults.is_empty(), sign == "positive", "{}: {faults:?}", path.display());
                counts[at] += 1;
            }
        }
    }
    assert_eq!(counts, [14, 16]);
}
