//! The alerts for Prometheus, evaluated over time by Prometheus' own `promtool`: each fires in its case, and does not in
//! the neighbouring one. The cases are in `alerts.yaml`.
//!
//! Negative controls: each alert in turn fires always or never, and the cases notice it.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::folder;

const RULES: &str = include_str!("../deploy/prometheus-rules.yaml");
const CASES: &str = include_str!("alerts.yaml");
const PAGE: &str = include_str!("../../docs/operating.md");

/// Where `.ci/run` puts the program, or its name. On a machine that tests for others it has to be there.
fn promtool() -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_TARGET_TMPDIR")).join("promtool/usr/bin/promtool");
    let is_there = |path: &PathBuf| Command::new(path).arg("--version").output().is_ok();
    let found = [installed, PathBuf::from("promtool")].into_iter().find(is_there);
    assert!(found.is_some() || std::env::var_os("CI").is_none(), "CI needs promtool");
    if found.is_none() {
        eprintln!("\n*** SKIPPED: promtool is not installed; the alerts are NOT tested (see .ci/run) ***\n");
    }
    found
}

fn test(promtool: &Path, folder: &Path, rules: &str, cases_text: &str) -> Output {
    std::fs::write(folder.join("rules.yaml"), rules).unwrap();
    let cases = folder.join("cases.yaml");
    std::fs::write(&cases, cases_text.replace("../deploy/prometheus-rules.yaml", "rules.yaml")).unwrap();
    Command::new(promtool).args(["test", "rules"]).arg(cases).output().unwrap()
}

/// The cases of one alert alone.
fn cases_of(name: &str) -> String {
    let mut parts = CASES.split_inclusive("tests:\n");
    let head = parts.next().unwrap();
    let cases =
        parts.next().unwrap().split("  - name: ").filter(|case| case.starts_with(&format!("\"{name}: ")));
    let cases: Vec<&str> = cases.collect();
    assert!(!cases.is_empty(), "{name}");
    format!("{head}  - name: {}", cases.join("  - name: "))
}

/// The rules of one alert begin with its name and end before the next one.
fn alerts() -> Vec<(&'static str, &'static str)> {
    let parts = RULES.split("- alert: ").skip(1);
    parts.map(|part| (part.lines().next().unwrap(), part)).collect()
}

#[test]
fn each_alert_fires_in_its_case_and_not_beside_it() {
    for (name, _) in alerts() {
        let checks = CASES
            .split("      - eval_time: ")
            .filter(|check| check.contains(&format!("alertname: {name}\n")));
        let (quiet, firing): (Vec<_>, Vec<_>) = checks.partition(|check| check.contains("exp_alerts: []"));
        assert!(!quiet.is_empty() && !firing.is_empty(), "{name} has no such cases");
    }
    let Some(promtool) = promtool() else { return };
    let tested = test(&promtool, &folder("alerts"), RULES, CASES);
    let said = [tested.stdout, tested.stderr].map(|said| String::from_utf8(said).unwrap()).concat();
    assert!(tested.status.success(), "{said}");
}

#[test]
fn what_the_page_says_to_watch_has_an_alert() {
    let table = PAGE.split("## What to watch\n").nth(1).unwrap().split("\n\n`").next().unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    let metrics: Vec<&str> = rows.map(|row| row.split(['`', '{']).next().unwrap()).collect();
    let expressions: Vec<&str> =
        alerts().iter().filter_map(|(_, rules)| rules.split("annotations:").next()).collect();
    let has_alert = |metric: &str| expressions.iter().any(|rules| rules.contains(&format!("{metric}{{")));
    let without: Vec<&&str> = metrics.iter().filter(|metric| !has_alert(metric)).collect();
    assert!(without.is_empty() && metrics.len() >= 12, "{without:?} of {metrics:?}");
    // The control.
    assert!(!has_alert("tidings_http_streams"));
}

#[test]
fn alert_that_fires_always_or_never_is_noticed() {
    let Some(promtool) = promtool() else { return };
    let folder = folder("alerts-controls");
    for (name, rules) in alerts() {
        let cases = cases_of(name);
        assert!(test(&promtool, &folder, RULES, &cases).status.success(), "{name}");
        let expr = rules.split_once("expr: ").unwrap().1.split_once("labels:").unwrap().0;
        for broken in ["vector(0) > 1", "vector(1)"] {
            let changed = rules.replace(expr, &format!("{broken}\n        "));
            let tested = test(&promtool, &folder, &RULES.replace(rules, &changed), &cases);
            assert_eq!(tested.status.code(), Some(1), "{name} with {broken} is not noticed");
        }
    }
}
