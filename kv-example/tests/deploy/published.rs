//! The manifests and the unit, compared with what is published of their forms: the schemas of Kubernetes and of the
//! Compose specification, and systemd's own check.
//!
//! Negative controls: a field that is misspelt, a value of another type and an unknown directive are noticed.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::common::{self, folder};
use crate::{resource, text, yaml};

/// The versions of Kubernetes that are compared: the earliest one that the file names, and a late one.
const KUBERNETES: [&str; 2] = ["v1.27.0", "v1.37.0"];

/// Where `.ci/run` puts the schemas. On a machine that tests for others they have to be there.
fn schema(file: &str) -> Option<Value> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("manifest-schemas").join(file);
    let Ok(bytes) = std::fs::read(&path) else {
        assert!(std::env::var_os("CI").is_none(), "CI needs {}", path.display());
        eprintln!("\n*** SKIPPED: there is no {file}; the manifests are NOT compared (see .ci/run) ***\n");
        return None;
    };
    Some(serde_json::from_slice(&bytes).unwrap())
}

/// What a schema does not permit.
fn faults(schema: &Value, document: &Value) -> Vec<String> {
    let validator = jsonschema::validator_for(schema).unwrap();
    let told = |error: jsonschema::ValidationError<'_>| format!("{}: {error}", error.instance_path());
    validator.iter_errors(document).map(told).collect()
}

/// The schema of a document of Kubernetes, by its kind and version.
fn of_kind(all: &Value, document: &Value) -> Value {
    let [kind, version] = ["kind", "apiVersion"].map(|field| document[field].as_str().unwrap());
    let version = if version.contains('/') { version.to_owned() } else { format!("core/{version}") };
    let (group, version) = version.split_once('/').unwrap();
    let group = group.split('.').next().unwrap();
    let name = format!("io.k8s.api.{group}.{version}.{kind}");
    assert!(all["$defs"][&name].is_object(), "there is no {name}");
    json!({ "$ref": format!("#/$defs/{name}"), "$defs": all["$defs"] })
}

#[test]
fn manifests_satisfy_the_schemas_of_kubernetes() {
    for version in KUBERNETES {
        let Some(all) = schema(&format!("kubernetes/{version}-local-strict/_definitions.json")) else {
            return;
        };
        let documents = yaml("kubernetes.yaml");
        assert_eq!(documents.len(), 5);
        for document in documents {
            let found = faults(&of_kind(&all, &document), &document);
            assert!(found.is_empty(), "{version}: {} {found:#?}", document["kind"]);
        }
        let set = resource("StatefulSet", "tidings");
        let mut misspelt = set.clone();
        misspelt["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = json!({});
        let mut mistyped = set.clone();
        mistyped["spec"]["replicas"] = json!("3");
        for wrong in [misspelt, mistyped] {
            assert_eq!(faults(&of_kind(&all, &wrong), &wrong).len(), 1);
        }
    }
}

#[test]
fn compose_file_satisfies_the_schema_of_its_specification() {
    let Some(schema) = schema("compose/schema.json") else { return };
    let document = yaml("docker-compose.yml").remove(0);
    let found = faults(&schema, &document);
    assert!(found.is_empty(), "{found:#?}");
    for (field, value) in [("restrat", json!("always")), ("mem_limit", json!([1]))] {
        let mut wrong = document.clone();
        wrong["services"]["node-1"][field] = value;
        assert!(!faults(&schema, &wrong).is_empty(), "{field}");
    }
}

/// What systemd says of the unit with its drop-in, both as these texts. Nothing: it takes both.
fn said_by_systemd(name: &str, unit: &str, drop_in: &str) -> String {
    let folder: PathBuf = folder(&format!("systemd-{name}"));
    // The program is looked for at the path that the unit names.
    let unit = unit.replace("/usr/local/bin/tidings", common::PROGRAM);
    std::fs::write(folder.join("tidings.service"), unit).unwrap();
    std::fs::create_dir(folder.join("tidings.service.d")).unwrap();
    std::fs::write(folder.join("tidings.service.d/credentials.conf"), drop_in).unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]).arg(folder.join("tidings.service"));
    let output = command.env("SYSTEMD_UNIT_PATH", format!("{}:", folder.display())).output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    // What it says of other units of this machine is no matter of this one.
    said.lines().filter(|line| line.contains("tidings")).collect::<Vec<_>>().join("\n")
}

#[test]
fn unit_and_its_drop_in_pass_the_check_of_systemd() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI needs systemd-analyze");
        eprintln!("\n*** SKIPPED: systemd-analyze is not installed; the unit is NOT checked ***\n");
        return;
    }
    let (unit, drop_in) = (text("tidings.service"), text("tidings-credentials.conf"));
    assert_eq!(said_by_systemd("right", &unit, &drop_in), "");
    for (name, unit, drop_in) in [
        ("unknown", unit.replace("MemoryMax=", "MemoryMost="), drop_in.clone()),
        ("wrong", unit.replace("Restart=on-failure", "Restart=on-leave"), drop_in.clone()),
        ("drop-in", unit.clone(), drop_in.replace("LoadCredential=", "LoadCredentials=")),
    ] {
        assert_ne!(said_by_systemd(name, &unit, &drop_in), "", "{name}");
    }
}
