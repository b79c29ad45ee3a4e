//! The files of the suites, and where they are.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::{Map, Value, json};
use tidings::flags::Snapshot;
use tidings_proptest::Folder;

/// The flags that belong to the scenarios of the providers.
const FLAG_FILES: [&str; 8] = [
    "changing-flag",
    "custom-ops",
    "disabled-flags",
    "edge-case-flags",
    "evaluator-refs",
    "metadata-flags",
    "testing-flags",
    "zero-flags",
];

#[derive(Clone, Copy, Debug)]
pub(crate) enum Suite {
    /// All scenarios of evaluators.
    Evaluator,
    /// Those of providers that concern the evaluation of rules.
    Targeting,
}

/// The package of the crate `open-feature-flagd`.
pub(crate) struct Files(PathBuf);

impl Files {
    /// Where `build.rs` has found it.
    pub(crate) fn find() -> Self {
        Self(PathBuf::from(env!("FLAGD_FILES")))
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// A folder with the scenarios of a suite. The parser of the crate `cucumber` refuses `\"` and `\u` in tables: they
    /// are doubled here, so that the steps see them as they are written.
    pub(crate) fn features(&self, suite: Suite) -> Folder {
        let path = self.path(match suite {
            Suite::Evaluator => "flagd-testbed/evaluator/gherkin",
            Suite::Targeting => "flagd-testbed/gherkin",
        });
        let folder = Folder::new();
        for entry in fs::read_dir(path).expect("the folder is there") {
            let path = entry.expect("the entry is readable").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
            if matches!(suite, Suite::Evaluator) || name == "targeting.feature" {
                let text = fs::read_to_string(&path).expect("a feature is text");
                let text = text.replace(r"\u", r"\\u").replace(r#"\""#, r#"\\""#);
                fs::write(folder.at(name), text).expect("the folder can be written");
            }
        }
        folder
    }

    /// The flags of a suite as one set, which says which version of `fractional` it uses.
    pub(crate) fn flags(&self, suite: Suite, version: u8) -> Snapshot {
        let paths: Vec<String> = match suite {
            Suite::Evaluator => vec!["flagd-testbed/evaluator/flags/testkit-flags.json".to_owned()],
            Suite::Targeting => {
                FLAG_FILES.iter().map(|name| format!("flagd-testbed/flags/{name}.json")).collect()
            }
        };
        let (mut flags, mut shared) = (Map::new(), Map::new());
        for path in paths {
            let text = fs::read_to_string(self.path(&path)).expect("the file is there");
            let file: Value = serde_json::from_str(&text).expect("it is JSON");
            let part = |name: &str| file[name].as_object().cloned().unwrap_or_default();
            flags.extend(part("flags"));
            shared.extend(part("$evaluators"));
        }
        let file = json!({"flags": flags, "$evaluators": shared, "metadata": {"fractional": version}});
        Snapshot::from_json(&file.to_string()).expect("it is a file of flags").0.at(SystemTime::now())
    }
}
