//! Conditions as people write them: `email ends_with @example.com`.

use serde_json::{Value, json};

pub(super) const OPERATORS: &str = "\
A condition is ATTRIBUTE OPERATOR VALUE, and several --when all have to hold. Operators: == != < <= > >= contains
starts_with ends_with in not_in (lists with commas) sem_ver (sem_ver '>= 1.2.0'), and exists, which has no value. A value
is JSON, or else a text. The user's key is the attribute targetingKey.";

/// The rule for a condition.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let form = || format!("\"{text}\" is no condition, such as 'email ends_with @example.com'");
    let (attribute, rest) = text.trim().split_once(char::is_whitespace).ok_or_else(form)?;
    let (operator, value) = rest.trim().split_once(char::is_whitespace).unwrap_or((rest.trim(), ""));
    let (value, attribute) = (value.trim(), json!({ "var": attribute }));
    if value.is_empty() != (operator == "exists") {
        return Err(form());
    }
    let list = || value.split(',').map(|item| literal(item.trim())).collect::<Value>();
    let text_value = || match literal(value) {
        Value::String(text) => text,
        _ => value.to_owned(),
    };
    Ok(match operator {
        "==" | "!=" | "<" | "<=" | ">" | ">=" => json!({ operator: [attribute, literal(value)] }),
        "starts_with" | "ends_with" => json!({ operator: [attribute, text_value()] }),
        "contains" => json!({ "in": [text_value(), attribute] }),
        "in" => json!({ "in": [attribute, list()] }),
        "not_in" => json!({ "!": [{ "in": [attribute, list()] }] }),
        "sem_ver" => {
            let (relation, version) = value.split_once(char::is_whitespace).ok_or_else(form)?;
            json!({ "sem_ver": [attribute, relation, version.trim()] })
        }
        // Not "!=", to which 0 and false are null.
        "exists" => json!({ "!==": [attribute, null] }),
        _ => return Err(format!("\"{operator}\" is no operator of conditions; {}", form())),
    })
}

/// Several conditions that all have to hold.
pub(super) fn all(conditions: &[Value]) -> Value {
    match conditions {
        [one] => one.clone(),
        many => json!({ "and": many }),
    }
}

/// JSON, or else a text.
pub(super) fn literal(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_rules() {
        let var = |name: &str| json!({ "var": name });
        for (text, rule) in [
            ("email ends_with @example.com", json!({ "ends_with": [var("email"), "@example.com"] })),
            ("age  >= 18", json!({ ">=": [var("age"), 18] })),
            ("plan == gold", json!({ "==": [var("plan"), "gold"] })),
            ("name == \"18\"", json!({ "==": [var("name"), "18"] })),
            ("zip starts_with 18", json!({ "starts_with": [var("zip"), "18"] })),
            ("country in de, at,ch", json!({ "in": [var("country"), ["de", "at", "ch"]] })),
            ("country not_in de", json!({ "!": [{ "in": [var("country"), ["de"]] }] })),
            ("agent contains Fire fox", json!({ "in": ["Fire fox", var("agent")] })),
            ("version sem_ver >= 1.2.0", json!({ "sem_ver": [var("version"), ">=", "1.2.0"] })),
            ("beta exists", json!({ "!==": [var("beta"), null] })),
        ] {
            assert_eq!(parse(text), Ok(rule), "{text}");
        }
        for slip in ["", "email", "email ends_with", "email is x", "version sem_ver 1.0", "beta exists x"] {
            assert!(parse(slip).is_err(), "{slip:?}");
        }
        assert_eq!(all(&[json!(1)]), json!(1));
        assert_eq!(all(&[json!(1), json!(2)]), json!({ "and": [1, 2] }));
    }
    #[test]
    fn whatever_is_not_null_exists() {
        use tidings::flags::{Context, FlagValue, Snapshot};
        let rule = json!({ "if": [parse("beta exists").unwrap(), "on"] });
        let flag = json!({ "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off",
                           "targeting": rule });
        let (flags, _) = Snapshot::from_json(&json!({ "flags": { "f": flag } }).to_string()).unwrap();
        let values = [0.into(), false.into(), "".into(), FlagValue::Null, true.into()];
        let exists = values.map(|value| flags.bool("f", false, &Context::anonymous().with("beta", value)));
        assert_eq!(exists, [true, true, true, false, true]);
        assert!(!flags.bool("f", false, &Context::anonymous()));
    }
}
