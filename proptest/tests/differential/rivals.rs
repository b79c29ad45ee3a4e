//! The programs to compare with. `.ci/run` installs them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tidings_proptest::Folder;

/// What a program says of a case: variant, value, reason and error code.
pub(crate) type Answer = (Option<String>, String, String, Option<String>);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rival {
    /// `@openfeature/flagd-core` 4.0.1, with version 2 of `fractional`.
    Npm,
    /// `openfeature-flagd-core` 2.0.0, with version 3.
    Pypi,
}

impl Rival {
    pub(crate) fn version(self) -> u8 {
        match self {
            Self::Npm => 2,
            Self::Pypi => 3,
        }
    }

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join("flagd-rivals")
    }

    /// Whether it is there. On a machine that tests for others it has to be.
    pub(crate) fn is_installed(self) -> bool {
        let path = match self {
            Self::Npm => "node_modules/@openfeature/flagd-core",
            Self::Pypi => "venv/bin/python3",
        };
        let is_there = Self::folder().join(path).exists();
        assert!(is_there || std::env::var_os("CI").is_none(), "CI needs the programs that .ci/run installs");
        if !is_there {
            eprintln!(
                "\n*** SKIPPED: {self:?} is not installed; nothing is compared with it (see .ci/run) ***\n"
            );
        }
        is_there
    }

    fn run(self, chunks: &[Value]) -> Output {
        let folder = Folder::new();
        let file = folder.at("cases");
        let lines: Vec<_> = chunks.iter().map(Value::to_string).collect();
        fs::write(&file, lines.join("\n")).expect("the folder can be written");
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential");
        let mut command = match self {
            Self::Npm => {
                let mut node = Command::new("node");
                node.arg(sources.join("npm.cjs")).arg(Self::folder());
                node
            }
            Self::Pypi => {
                let mut python = Command::new(Self::folder().join("venv/bin/python3"));
                python.arg(sources.join("pypi.py"));
                python
            }
        };
        command.arg(file).output().expect("it can be run")
    }

    /// Its answers to chunks of cases, each a JSON object with a file of flags and contexts.
    pub(crate) fn answers(self, chunks: &[Value]) -> Vec<Answer> {
        let output = self.run(chunks);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let output = String::from_utf8(output.stdout).expect("its answers are text");
        output.lines().map(|line| serde_json::from_str(line).expect("an answer")).collect()
    }

    /// Whether it does not take a file of flags.
    pub(crate) fn refuses(self, chunk: &Value) -> bool {
        !self.run(std::slice::from_ref(chunk)).status.success()
    }
}
