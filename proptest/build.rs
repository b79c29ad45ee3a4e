//! Finds the package of the crate `open-feature-flagd`, which has the conformance files of flagd, and downloads it if need
//! be: so that the tests find it without a network. It is a dependency on a platform on which nothing is built.

use std::env;
use std::path::Path;
use std::process::Command;

const PLATFORM: &str = "x86_64-unknown-none";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=Cargo.toml");
    println!("cargo::rerun-if-env-changed=CARGO_HOME");
    let cargo = env::var("CARGO").expect("cargo runs this");
    let arguments = ["metadata", "--format-version=1", "--filter-platform", PLATFORM];
    let output = Command::new(cargo).args(arguments).output().expect("cargo can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let packages = metadata["packages"].as_array().expect("there are packages");
    let package = packages.iter().find(|package| package["name"] == "open-feature-flagd");
    let manifest = package.expect("it is a dependency")["manifest_path"].as_str().expect("it has a path");
    let folder = Path::new(manifest).parent().expect("it is in a folder");
    println!("cargo::rustc-env=FLAGD_FILES={}", folder.display());
}
