//! Inputs to which the programs give different answers, each with what everybody says and why. If one of them is
//! corrected, this fails and the entry is removed.

use serde_json::{Value, json};
use tidings::flags::Snapshot;

use crate::own_answer;
use crate::rivals::{Answer, Rival};

/// A rule, a context, and the answers: a variant, an error code, or `DEFAULT`.
struct Difference {
    why: &'static str,
    rule: Value,
    context: Value,
    own: &'static str,
    npm: &'static str,
    pypi: &'static str,
}

fn difference(
    why: &'static str,
    rule: Value,
    context: Value,
    [own, npm, pypi]: [&'static str; 3],
) -> Difference {
    Difference { why, rule, context, own, npm, pypi }
}

fn differences_of_npm() -> Vec<Difference> {
    let list = json!({"list": [2], "x": 1});
    let reduce = json!({"reduce": [{"var": "list"}, {"var": "current"}, 0]});
    let nested = json!({"if": [{">": [{"var": "x"}, 1]}, "a", "b"]});
    let none = || json!({});
    vec![
        difference(
            "npm: a rule on a list as the last operand of a comparison fails",
            json!({"!=": [{"var": "x"}, reduce]}),
            list,
            ["true", "GENERAL", "true"],
        ),
        difference(
            "npm: a comparison within the last operand of a comparison replaces its first operand",
            json!({">=": ["b", nested]}),
            json!({"x": 2}),
            ["true", "GENERAL", "true"],
        ),
        difference(
            "npm: an empty text contains nothing, not even itself",
            json!({"in": ["", ""]}),
            none(),
            ["true", "false", "true"],
        ),
        difference(
            "npm: `missing` finds null and the empty text",
            json!({"!": {"missing": ["e"]}}),
            json!({"e": ""}),
            ["false", "true", "false"],
        ),
        difference(
            "npm: an empty object is false",
            json!({"!!": [{"var": "o"}]}),
            json!({"o": {}}),
            ["true", "false", "true"],
        ),
        difference(
            "npm: `all` of nothing is true",
            json!({"all": [{"var": "none"}, true]}),
            none(),
            ["false", "true", "false"],
        ),
        difference(
            "npm: a comparison with what is no number fails",
            json!({"<": [{"var": "t"}, 1]}),
            json!({"t": "abc"}),
            ["false", "GENERAL", "false"],
        ),
        difference(
            "npm: `max` takes numbers alone",
            json!({"==": [{"max": [{"var": "t"}, 1]}, 2]}),
            json!({"t": "2"}),
            ["true", "GENERAL", "true"],
        ),
        difference(
            "npm: `fractional` hashes UTF-16 instead of UTF-8 (version 3 is another hash)",
            json!({"fractional": [{"var": "t"}, ["a", 1], ["b", 1], ["c", 1], ["true", 1], ["false", 1]]}),
            json!({"t": "\u{e9}\u{65e5}"}),
            ["OTHER", "OTHER", "OTHER"],
        ),
    ]
}

fn differences_of_pypi() -> Vec<Difference> {
    let none = || json!({});
    vec![
        difference(
            "PyPI: a boolean as a text has a capital",
            json!({"==": [{"cat": [true]}, "true"]}),
            none(),
            ["true", "true", "false"],
        ),
        difference(
            "PyPI: true and 1 are of one type",
            json!({"===": [true, 1]}),
            none(),
            ["false", "false", "true"],
        ),
        difference(
            "PyPI: a remainder has the sign of the divisor",
            json!({"==": [{"%": [{"var": "x"}, 3]}, -1]}),
            json!({"x": -7}),
            ["true", "true", "false"],
        ),
        difference(
            "PyPI: numbers have 15 digits as texts",
            json!({"==": [{"cat": [{"+": [0.1, {"var": "x"}]}]}, "0.30000000000000004"]}),
            json!({"x": 0.2}),
            ["true", "true", "false"],
        ),
        difference(
            "PyPI: a division by zero is an exception that is none of OpenFeature's",
            json!({"if": [{"/": [1, {"var": "x"}]}, "a"]}),
            json!({"x": 0}),
            ["GENERAL", "GENERAL", "raised ZeroDivisionError"],
        ),
        difference(
            "PyPI: a text that is no number counts in arithmetic",
            json!({"==": [{"+": [{"var": "t"}, 1]}, 1]}),
            json!({"t": "abc"}),
            ["GENERAL", "GENERAL", "false"],
        ),
        difference(
            "PyPI: an incomplete version may have a pre-release",
            json!({"sem_ver": ["1-alpha", "=", "1.0.0-alpha"]}),
            none(),
            ["DEFAULT", "DEFAULT", "true"],
        ),
    ]
}

fn short((variant, _, reason, code): &Answer) -> String {
    let code = code.as_ref().filter(|_| reason == "ERROR");
    code.or(variant.as_ref()).cloned().unwrap_or_else(|| reason.clone())
}

/// Compares with a program, if it is there, and with what is said of us.
fn compare(rival: Rival) {
    if !rival.is_installed() {
        return;
    }
    let variants = json!({"a": "a", "b": "b", "c": "c", "true": "true", "false": "false"});
    for difference in differences_of_npm().into_iter().chain(differences_of_pypi()) {
        let flag = json!({"state": "ENABLED", "variants": variants, "targeting": difference.rule});
        let file = json!({"flags": {"f": flag}, "metadata": {"fractional": rival.version()}});
        let (flags, _) = Snapshot::from_json(&file.to_string()).expect("it is a file of flags");
        let own = own_answer(&flags, "f", &difference.context);
        let chunk = json!({"file": file, "contexts": [{"flag": "f", "context": difference.context}]});
        let theirs = &rival.answers(&[chunk])[0];
        let expected = if rival == Rival::Npm { difference.npm } else { difference.pypi };
        if expected == "OTHER" {
            assert_eq!(own == *theirs, rival == Rival::Pypi, "{}", difference.why);
        } else {
            assert_eq!((&*short(&own), &*short(theirs)), (difference.own, expected), "{}", difference.why);
        }
    }
}

#[test]
fn known_differences_of_npm_flagd_core_are_still_there() {
    compare(Rival::Npm);
}

#[test]
fn known_differences_of_pypi_flagd_core_are_still_there() {
    compare(Rival::Pypi);
}

/// Texts beyond ASCII in shared rules: the whole set is refused.
#[test]
fn shared_rules_of_pypi_flagd_core_must_be_ascii() {
    if !Rival::Pypi.is_installed() {
        return;
    }
    let flag = json!({"state": "ENABLED", "variants": {"a": "a"}, "targeting": {"if": [{"$ref": "r"}, "a"]}});
    let file = json!({"flags": {"f": flag}, "$evaluators": {"r": {"==": [{"var": "x"}, "\u{65e5}"]}}});
    let (flags, _) = Snapshot::from_json(&file.to_string()).expect("it is a file of flags");
    let context = json!({"x": "\u{65e5}"});
    assert_eq!(short(&own_answer(&flags, "f", &context)), "a");
    let chunk = json!({"file": file, "contexts": [{"flag": "f", "context": context}]});
    assert!(Rival::Pypi.refuses(&chunk), "it refuses the set");
}
