//! The names and labels of metrics in rules, in the dashboard for Grafana and in the documentation.

use std::collections::{BTreeMap, BTreeSet};

use promql_parser::parser::{Expr, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;
use tidings_proptest::processes::eventually;

use crate::common::ask;
use crate::{TOKEN, cluster, compose_environment, text, with, yaml};

/// What `/metrics` shows: the labels of the samples of each metric.
type Shown = BTreeMap<String, Vec<BTreeMap<String, String>>>;

fn shown(metrics: &str) -> Shown {
    let mut shown = Shown::new();
    for line in metrics.lines() {
        if let Some(name) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split(' ').next()) {
            shown.entry(name.to_owned()).or_default();
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let labels =
                line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(all, _)| all);
            let label = |label: &str| {
                label
                    .split_once('=')
                    .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
            };
            shown.entry(name.to_owned()).or_default().push(labels.split(',').filter_map(label).collect());
        }
    }
    shown
}

/// The selectors of an expression.
#[derive(Default)]
struct Selectors(Vec<VectorSelector>);

impl ExprVisitor for Selectors {
    type Error = String;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, String> {
        match expr {
            Expr::VectorSelector(selector) => self.0.push(selector.clone()),
            Expr::MatrixSelector(matrix) => self.0.push(matrix.vs.clone()),
            _ => {}
        }
        Ok(true)
    }
}

/// Added by Prometheus itself.
const SCRAPED: [&str; 2] = ["job", "instance"];

/// What is wrong with an expression, compared with what a node shows.
fn fault(expr: &str, shown: &Shown) -> Option<String> {
    let parsed = match promql_parser::parser::parse(&expr.replace("$__rate_interval", "5m")) {
        Ok(parsed) => parsed,
        Err(error) => return Some(format!("{expr}: {error}")),
    };
    let mut selectors = Selectors::default();
    walk_expr(&mut selectors, &parsed).unwrap();
    for selector in selectors.0 {
        let name = selector.name.unwrap_or_default();
        let Some(samples) = shown.get(&name) else {
            if name == "up" {
                continue;
            }
            return Some(format!("{expr}: no node shows \"{name}\""));
        };
        for matcher in &selector.matchers.matchers {
            let has = |labels: &BTreeMap<String, String>| labels.get(&matcher.name) == Some(&matcher.value);
            if !SCRAPED.contains(&matcher.name.as_str()) && !samples.iter().any(has) {
                return Some(format!("{expr}: {name} has no {}=\"{}\"", matcher.name, matcher.value));
            }
        }
    }
    None
}

/// What stands between these marks in a text.
fn between<'a>(text: &'a str, open: &str, close: &str) -> Vec<&'a str> {
    text.split(open).skip(1).filter_map(|rest| rest.split_once(close)).map(|(inner, _)| inner).collect()
}

#[test]
fn metrics_of_rules_dashboard_and_documentation_are_shown() {
    let nodes = cluster("metrics", &["node-1", "node-2"].map(compose_environment));
    let bearer = format!("Bearer {TOKEN}");
    let url = format!("{}/metrics", nodes[0].0.http);
    // Some are shown only after something has happened.
    assert!(with(&nodes[0].1, &["put", "k", "v"]).status().unwrap().success());
    assert_eq!(ask("GET", &url, &[], b"").status, 401);
    let samples = || {
        let reply = ask("GET", &url, &[("authorization", &bearer)], b"");
        shown(std::str::from_utf8(&reply.body).unwrap())
    };
    eventually("the other node is a peer", || {
        samples().get("tidings_peer_lag_bytes").is_some_and(|rows| rows.len() == 1)
    });
    let shown = samples();
    let labels: BTreeSet<&String> = shown.values().flatten().flat_map(BTreeMap::keys).collect();

    let mut expressions = Vec::new();
    let rules = yaml("prometheus-rules.yaml").remove(0);
    for rule in
        rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap())
    {
        for part in ["alert", "expr"] {
            assert!(rule[part].is_string(), "{rule}");
        }
        assert!(
            rule["annotations"]["summary"].is_string() && rule["labels"]["severity"].is_string(),
            "{rule}"
        );
        expressions.push(rule["expr"].as_str().unwrap().to_owned());
    }
    let dashboard_text = text("grafana-dashboard.json");
    let dashboard: Value = serde_json::from_str(&dashboard_text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    expressions.extend(targets.map(|target| target["expr"].as_str().unwrap().to_owned()));
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let query = variable["query"]["query"].as_str().unwrap_or_default();
        expressions.extend(between(query, "label_values(", ", ").into_iter().map(str::to_owned));
    }
    let faults: Vec<String> = expressions.iter().filter_map(|expr| fault(expr, &shown)).collect();
    assert!(faults.is_empty() && expressions.len() > 30, "{faults:#?}");

    let rules_text = text("prometheus-rules.yaml");
    let mut named = between(&dashboard_text, "{{", "}}");
    named.extend(between(&rules_text, "$labels.", " "));
    for list in between(&rules_text, " by (", ")").into_iter().chain(between(&dashboard_text, " by (", ")")) {
        named.extend(list.split(", "));
    }
    for label in named {
        assert!(SCRAPED.contains(&label) || labels.contains(&label.to_owned()), "no metric has \"{label}\"");
    }
    let page = text("../../docs/operating.md");
    for (at, _) in page.match_indices("tidings_") {
        let name: String = page[at..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
        assert!(shown.contains_key(&name), "operating.md names {name}, which no node shows");
    }
    // The control: a name, a label or a form that is wrong is found.
    for wrong in [
        "tidings_entry",
        "sum(tidings_members{state=\"gone\"})",
        "rate(tidings_entry[5m])",
        "sum(tidings_ready",
    ] {
        assert!(fault(wrong, &shown).is_some(), "{wrong}");
    }
}
