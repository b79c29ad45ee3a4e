//! Rules from JSON: names become operators, paths are split, and references to shared rules are followed, all once per
//! change. A rule with an unknown operator, an unknown or circular reference or too much nesting is not taken.
//!
//! Beside errors there are *findings*: what flagd's schema does not allow, although every implementation evaluates it,
//! such as a version that can never be valid. They never keep a rule from being taken.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::datum::sorted_texts;
use super::error::CompileError;
use super::fractional::Buckets;
use super::rule::{Expression, Operator, VariablePath};
use super::value::{Field, FlagValue};

/// The deepest nesting of a rule, what it refers to included.
pub const RULE_DEPTH_MAX: usize = 128;
/// How many shared rules may refer to one another in a row.
const REFERENCES_MAX: usize = 8;

/// The rules that the flags of a set share, by their names.
#[derive(Debug, Default)]
pub(super) struct SharedRules {
    trees: Arc<[Field]>,
    /// Those that were compiled and are in order.
    compiled: BTreeMap<Arc<str>, SharedRule>,
    /// References are taken for granted, where one definition is checked alone.
    is_permissive: bool,
}

#[derive(Clone, Debug)]
struct SharedRule {
    expression: Arc<Expression>,
    depth: usize,
    /// How many rules refer to one another from here on, this one included.
    references: usize,
    has_fractional: bool,
    may_read_time: bool,
}

impl SharedRules {
    /// The rules of an object. Rules that are malformed are kept out; they fail where they are referred to.
    pub(super) fn new(trees: Arc<[Field]>) -> Self {
        Self { trees, ..Self::default() }
    }

    /// Rules that nobody knows, each of which may exist.
    pub(super) fn permissive() -> Self {
        Self { is_permissive: true, ..Self::default() }
    }

    /// What is wrong with each rule, also if no flag refers to it.
    pub(super) fn errors(&mut self) -> Vec<CompileError> {
        let trees = self.trees.clone();
        let mut compiler = RuleCompiler::new(self);
        trees.iter().filter_map(|(name, _)| compiler.reference(name).err()).collect()
    }
}

/// A rule with what is known of it.
#[derive(Debug)]
pub(super) struct CompiledRule {
    pub(super) expression: Expression,
    pub(super) has_fractional: bool,
    /// Whether it reads a variable that is, or may be, the time.
    pub(super) may_read_time: bool,
    /// What flagd's schema does not allow.
    pub(super) findings: Vec<String>,
}

/// Compiles the targeting of a flag. `None`: it has none.
pub(super) fn compile(
    targeting: Option<&FlagValue>,
    shared: &mut SharedRules,
) -> Result<Option<CompiledRule>, CompileError> {
    let targeting = match targeting {
        None | Some(FlagValue::Null) => return Ok(None),
        Some(FlagValue::Object(fields)) if fields.is_empty() => return Ok(None),
        Some(rule @ FlagValue::Object(_)) => rule,
        Some(other) => return Err(CompileError::NoRule(other.kind())),
    };
    let mut compiler = RuleCompiler::new(shared);
    let expression = compiler.expression(targeting)?;
    let RuleCompiler { has_fractional, may_read_time, findings, .. } = compiler;
    Ok(Some(CompiledRule { expression, has_fractional, may_read_time, findings }))
}

struct RuleCompiler<'s> {
    shared: &'s mut SharedRules,
    /// The shared rules that are being compiled, each because the one before it refers to it.
    open: Vec<Arc<str>>,
    depth: usize,
    depth_max: usize,
    references: usize,
    has_fractional: bool,
    may_read_time: bool,
    findings: Vec<String>,
}

impl<'s> RuleCompiler<'s> {
    fn new(shared: &'s mut SharedRules) -> Self {
        Self {
            shared,
            open: Vec::new(),
            depth: 0,
            depth_max: 0,
            references: 0,
            has_fractional: false,
            may_read_time: false,
            findings: Vec::new(),
        }
    }

    fn expression(&mut self, value: &FlagValue) -> Result<Expression, CompileError> {
        self.depth += 1;
        self.note_depth(self.depth)?;
        let expression = match value {
            FlagValue::List(items) => self.list(items)?,
            FlagValue::Object(fields) if fields.len() == 1 => {
                let (name, arguments) = &fields[0];
                self.call(name, arguments).map_err(|error| error.within(name, arguments))?
            }
            other => {
                if matches!(other, FlagValue::Object(_)) {
                    self.findings.push("an object with several fields or none is no rule".to_owned());
                }
                Expression::Literal(other.clone())
            }
        };
        self.depth -= 1;
        Ok(expression)
    }

    fn note_depth(&mut self, depth: usize) -> Result<(), CompileError> {
        self.depth_max = self.depth_max.max(depth);
        if self.depth_max > RULE_DEPTH_MAX { Err(CompileError::TooDeep) } else { Ok(()) }
    }

    fn list(&mut self, items: &Arc<[FlagValue]>) -> Result<Expression, CompileError> {
        let parts = self.expressions(items)?;
        let is_literal = parts.iter().all(|part| matches!(part, Expression::Literal(_)));
        Ok(if is_literal {
            Expression::Literal(FlagValue::List(items.clone()))
        } else {
            Expression::List(parts)
        })
    }

    fn expressions(&mut self, values: &[FlagValue]) -> Result<Box<[Expression]>, CompileError> {
        let expression = |(at, value)| self.expression(value).map_err(|error| error.at(at));
        values.iter().enumerate().map(expression).collect()
    }

    fn call(&mut self, name: &Arc<str>, arguments: &FlagValue) -> Result<Expression, CompileError> {
        let arguments = match arguments {
            FlagValue::List(items) => items,
            single => std::slice::from_ref(single),
        };
        if &**name == "$ref" {
            return match arguments {
                [FlagValue::Text(name)] => self.reference(name).map(Expression::Shared),
                _ => Err(CompileError::UnknownReference("not a text".to_owned())),
            };
        }
        if &**name == "var" {
            return self.variable(arguments);
        }
        if &**name == "fractional" {
            return self.fractional(arguments);
        }
        let operator = Operator::named(name).ok_or_else(|| CompileError::UnknownOperator(cut(name)))?;
        self.findings.extend(finding(operator, arguments));
        if let (Operator::In, [needle, FlagValue::List(items)]) = (operator, arguments)
            && let Some(texts) = sorted_texts(items)
        {
            let needle = self.expression(needle).map_err(|error| error.at(0))?;
            return Ok(Expression::InTexts(Box::new(needle), texts));
        }
        Ok(Expression::Call(operator, self.expressions(arguments)?))
    }

    fn variable(&mut self, arguments: &[FlagValue]) -> Result<Expression, CompileError> {
        let path = match arguments.first() {
            None | Some(FlagValue::Null) => String::new(),
            Some(FlagValue::Text(path)) => path.to_string(),
            Some(FlagValue::Int(index)) => index.to_string(),
            Some(_) => {
                self.may_read_time = true;
                return self.expressions(arguments).map(Expression::NamedVariable);
            }
        };
        // Without a name it is the whole context, in which the time is.
        self.may_read_time |= path.is_empty() || path.split('.').next() == Some("$flagd");
        if path.starts_with("$flagd.") && !["$flagd.flagKey", "$flagd.timestamp"].contains(&&*path) {
            self.findings.push(format!("there is no variable \"{}\"", cut(&path)));
        }
        let default = arguments.get(1).map(|default| self.expression(default)).transpose();
        let default = default.map_err(|error| error.at(1))?.map(Box::new);
        Ok(Expression::Variable(VariablePath::new(&path), default))
    }

    fn fractional(&mut self, arguments: &[FlagValue]) -> Result<Expression, CompileError> {
        self.has_fractional = true;
        self.findings.extend(fractional_finding(arguments));
        let expressions = self.expressions(arguments)?;
        let buckets = fixed_buckets(&expressions);
        Ok(Expression::Fractional(expressions, buckets))
    }

    /// A shared rule. It is compiled when it is first referred to.
    fn reference(&mut self, name: &Arc<str>) -> Result<Arc<Expression>, CompileError> {
        if self.shared.is_permissive {
            return Ok(Arc::new(Expression::Literal(FlagValue::Null)));
        }
        let rule = match self.shared.compiled.get(name) {
            Some(rule) => rule.clone(),
            None => self.compile_shared(name)?,
        };
        self.references = self.references.max(rule.references);
        if self.open.len() + rule.references > REFERENCES_MAX {
            return Err(CompileError::TooDeep);
        }
        self.note_depth(self.depth + rule.depth)?;
        self.has_fractional |= rule.has_fractional;
        self.may_read_time |= rule.may_read_time;
        Ok(rule.expression)
    }

    fn compile_shared(&mut self, name: &Arc<str>) -> Result<SharedRule, CompileError> {
        if self.open.contains(name) {
            return Err(CompileError::Cycle(cut(name)));
        }
        if self.open.len() == REFERENCES_MAX {
            return Err(CompileError::TooDeep);
        }
        let trees = self.shared.trees.clone();
        let tree = super::value::field(&trees, name);
        let tree = tree.ok_or_else(|| CompileError::UnknownReference(cut(name)))?;
        let mut inner = RuleCompiler::new(self.shared);
        inner.open = std::mem::take(&mut self.open);
        inner.open.push(name.clone());
        let expression = inner.expression(tree);
        inner.open.pop();
        let RuleCompiler {
            open, depth_max: depth, references, has_fractional, may_read_time, findings, ..
        } = inner;
        self.open = open;
        self.findings.extend(findings);
        let expression = expression.map_err(|error| match error {
            CompileError::Cycle(_) | CompileError::SharedRule(..) => error,
            other => CompileError::SharedRule(cut(name), Box::new(other)),
        })?;
        let references = references + 1;
        let expression = Arc::new(expression);
        let rule = SharedRule { expression, depth, references, has_fractional, may_read_time };
        self.shared.compiled.insert(name.clone(), rule.clone());
        Ok(rule)
    }
}

/// The buckets of `fractional`, if all are literals that both versions understand alike.
fn fixed_buckets(arguments: &[Expression]) -> Option<Buckets<FlagValue>> {
    let buckets = match arguments {
        [Expression::Literal(FlagValue::List(_)), ..] => arguments,
        _ => arguments.get(1..)?,
    };
    let mut fixed = Buckets::default();
    for bucket in buckets {
        let Expression::Literal(FlagValue::List(parts)) = bucket else { return None };
        match &parts[..] {
            [variant @ FlagValue::Text(_)] => fixed.push(variant.clone(), 1),
            [variant @ FlagValue::Text(_), FlagValue::Int(weight)] => {
                fixed.push(variant.clone(), u64::try_from(*weight).unwrap_or(0));
            }
            _ => return None,
        }
    }
    Some(fixed)
}

/// The beginning of a text, for messages.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

/// What flagd's schema does not allow of arguments that are literals.
fn finding(operator: Operator, arguments: &[FlagValue]) -> Option<String> {
    let is_rule = |value: &FlagValue| matches!(value, FlagValue::Object(_));
    match operator {
        Operator::StartsWith | Operator::EndsWith => {
            let fits = arguments.iter().all(|it| is_rule(it) || it.as_str().is_some());
            (arguments.len() != 2 || !fits).then(|| "starts_with and ends_with compare two texts".to_owned())
        }
        Operator::Version => version_finding(arguments),
        _ => None,
    }
}

fn version_finding(arguments: &[FlagValue]) -> Option<String> {
    let [left, comparison, right] = arguments else {
        return Some("sem_ver has three arguments".to_owned());
    };
    if !comparison.as_str().is_some_and(|it| super::version::COMPARISONS.contains(&it)) {
        return Some("sem_ver compares by one of = != < <= > >= ^ ~".to_owned());
    }
    let is_version = |value: &FlagValue| match value {
        FlagValue::Text(text) => semver::Version::parse(text).is_ok(),
        other => other.field("var").is_some(),
    };
    (!is_version(left) || !is_version(right)).then(|| "sem_ver compares versions such as 1.2.3".to_owned())
}

fn fractional_finding(arguments: &[FlagValue]) -> Option<String> {
    let buckets = match arguments {
        [FlagValue::Object(_), buckets @ ..] | buckets => buckets,
    };
    let is_bucket = |value: &FlagValue| match value {
        FlagValue::List(items) => match &items[..] {
            [variant] | [variant, FlagValue::Int(_) | FlagValue::Float(_)] => variant.as_str().is_some(),
            _ => false,
        },
        _ => false,
    };
    (buckets.len() < 2 || !buckets.iter().all(is_bucket))
        .then(|| "fractional has at least two buckets, each a variant with or without a weight".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(json: &str) -> SharedRules {
        match json.parse().unwrap() {
            FlagValue::Object(fields) => SharedRules::new(fields),
            other => panic!("{other}"),
        }
    }

    fn compiled(json: &str, rules: &mut SharedRules) -> Result<Option<CompiledRule>, CompileError> {
        compile(Some(&json.parse().unwrap()), rules)
    }

    #[test]
    fn empty_targeting_is_none() {
        for json in ["null", "{}"] {
            assert!(compiled(json, &mut SharedRules::default()).unwrap().is_none());
        }
        for json in ["1", "[]", "\"on\"", "true"] {
            assert!(matches!(compiled(json, &mut SharedRules::default()), Err(CompileError::NoRule(_))));
        }
    }

    #[test]
    fn rules_that_may_read_the_time_are_found() {
        let mut rules = shared(
            r#"{"late": {">": [{"var": "$flagd.timestamp"}, 5]}, "plain": {"var": "email"}, "by-late": {"$ref": "late"}}"#,
        );
        let mut reads = |rule: &str| compiled(rule, &mut rules).unwrap().unwrap().may_read_time;
        for harmless in [
            r#"{"var":"email"}"#,
            r#"{"if":[{"in":[{"var":["user.name","x"]},["a"]]},"on"]}"#,
            r#"{"$ref":"plain"}"#,
        ] {
            assert!(!reads(harmless), "{harmless}");
        }
        for timely in [
            r#"{">":[{"var":"$flagd.timestamp"},5]}"#,
            r#"{"var":["$flagd.timestamp"]}"#,
            r#"{"var":["email",{"var":"$flagd.timestamp"}]}"#,
            r#"{"var":{"cat":["$fla","gd.timestamp"]}}"#,
            r#"{"var":""}"#,
            r#"{"var":[]}"#,
            r#"{"var":null}"#,
            r#"{"$ref":"late"}"#,
            r#"{"if":[{"$ref":"by-late"},"on"]}"#,
        ] {
            assert!(reads(timely), "{timely}");
        }
    }

    #[test]
    fn references_are_followed_and_circles_refused() {
        let mut rules = shared(
            r#"{"a": {"$ref": "b"}, "b": {"fractional": [["x"], ["y"]]}, "c": {"!": {"$ref": "d"}},
                "d": {"or": [{"$ref": "c"}]}, "e": {"nothing": 1}, "f": {"$ref": "e"}, "self": {"$ref": "self"}}"#,
        );
        assert!(compiled(r#"{"$ref": "a"}"#, &mut rules).unwrap().unwrap().has_fractional);
        let mut error = |json| compiled(json, &mut rules).unwrap_err().to_string();
        assert_eq!(error(r#"{"$ref": "c"}"#), "the shared rule \"c\" refers to itself");
        assert_eq!(error(r#"{"$ref": "self"}"#), "the shared rule \"self\" refers to itself");
        assert_eq!(
            error(r#"{"$ref": "x"}"#),
            "the rule \"x\" that it refers to is not among the shared rules"
        );
        assert_eq!(
            error(r#"{"if": [{"in": [{"!": {"nothing": 1}}, ["a"]]}, "x"]}"#),
            "at /if/0/in/0/!: there is no operator \"nothing\""
        );
        assert_eq!(
            error(r#"{"var": ["x", [1, {"nothing": 1}]]}"#),
            "at /var/1/1: there is no operator \"nothing\""
        );
        assert_eq!(
            error(r#"{"$ref": "f"}"#),
            "the shared rule \"e\" is malformed: there is no operator \"nothing\""
        );
        assert_eq!(rules.errors().len(), 5);
    }

    #[test]
    fn depth_is_bounded_whatever_is_compiled_first() {
        let nested = |depth: usize| format!("{}1{}", "{\"!\":".repeat(depth), "}".repeat(depth));
        let deep = format!(r#"{{"deep": {}, "more": {{"!": {{"$ref": "deep"}}}}}}"#, nested(100));
        let over = format!("{}{{\"$ref\":\"more\"}}{}", "{\"!\":".repeat(30), "}".repeat(30));
        for first in ["deep", "more"] {
            let mut rules = shared(&deep);
            assert!(compiled(&format!(r#"{{"$ref": "{first}"}}"#), &mut rules).is_ok());
            assert_eq!(compiled(&over, &mut rules).unwrap_err(), CompileError::TooDeep);
        }
        let chain: Vec<_> = (0..20).map(|i| format!(r#""{i}": {{"$ref": "{}"}}"#, i + 1)).collect();
        let chain = format!("{{{}, \"20\": {{\"!\": 1}}}}", chain.join(","));
        for first in [13, 20] {
            let mut rules = shared(&chain);
            assert!(compiled(&format!(r#"{{"$ref": "{first}"}}"#), &mut rules).is_ok());
            assert!(compiled(r#"{"$ref": "13"}"#, &mut rules).is_ok());
            assert!(compiled(r#"{"$ref": "12"}"#, &mut rules).is_err());
        }
    }
}
