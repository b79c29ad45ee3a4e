//! Random rules and contexts: what users write, with types that fit, missing attributes, malformed weights and versions,
//! and values at the edges of what `fractional` hashes.
//!
//! Left out is what the two programs answer differently from each other, or against `JsonLogic`, whatever the rule is for;
//! `known.rs` has an input for each.

use serde_json::{Map, Value, json};
use tidings_proptest::Dice;

const TEXTS: [&str; 12] = [
    "",
    "a",
    "de",
    "at",
    "fr",
    "premium",
    "basic",
    "user-1",
    "ann@example.com",
    "bob@test.org",
    "日本",
    "é\u{301}",
];
const VERSIONS: [&str; 14] = [
    "1.0.0",
    "1.2.3",
    "v1.2.3",
    "V2.0.0",
    "1.2",
    "1",
    "2.0.0",
    "1.2.3-alpha",
    "1.2.3-alpha.1",
    "1.2.3-beta",
    "1.2.3+b",
    "2.0.0.0",
    "not-a-version",
    "",
];
const COMPARISONS: [&str; 9] = ["=", "!=", "<", "<=", ">", ">=", "^", "~", "==="];
/// Attributes that every context has.
const SURE_TEXTS: [&str; 3] = ["email", "country", "plan"];
const SURE_NUMBERS: [&str; 2] = ["age", "score"];

/// Makes cases.
pub(crate) struct Cases {
    dice: Dice,
    /// What `fractional` of npm hashes has to be ASCII.
    is_ascii: bool,
    has_references: bool,
}

impl Cases {
    pub(crate) fn new(seed: u64, is_ascii: bool) -> Self {
        Self { dice: Dice::new(seed), is_ascii, has_references: true }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.dice.below(limit)
    }

    fn any_text(&mut self) -> &'static str {
        let count = if self.is_ascii { TEXTS.len() - 2 } else { TEXTS.len() };
        TEXTS[self.below(count)]
    }

    fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    /// The rules that the flags of a set share. A rule may refer to one that comes behind it: the programs replace
    /// references in the order of the names. They have ASCII texts alone.
    pub(crate) fn shared(&mut self) -> Value {
        let was_ascii = std::mem::replace(&mut self.is_ascii, true);
        self.has_references = false;
        let shared = json!({"first": self.condition(2), "second": {"!": {"$ref": "third"}}, "third": self.condition(1)});
        (self.is_ascii, self.has_references) = (was_ascii, true);
        shared
    }

    /// A definition. Its variants are their own values.
    pub(crate) fn flag(&mut self) -> Value {
        let variants: Map<_, _> = ["a", "b", "c", "true", "false", "1"]
            .into_iter()
            .map(|name| (name.to_owned(), json!(name)))
            .collect();
        let mut flag = json!({"state": "ENABLED", "variants": variants, "targeting": self.rule()});
        match self.below(10) {
            0 => {}
            1 => flag["defaultVariant"] = Value::Null,
            2 => flag["defaultVariant"] = json!(""),
            _ => flag["defaultVariant"] = json!("c"),
        }
        match self.below(100) {
            0 => flag["state"] = json!("DISABLED"),
            1 => flag["targeting"] = json!({"unheard_of": [1]}),
            2 => flag["targeting"] = json!({}),
            _ => {}
        }
        flag
    }

    fn rule(&mut self) -> Value {
        match self.below(8) {
            0 => self.condition(3),
            1..=3 => self.fractional(2),
            4 => {
                let (first, then) = (self.condition(3), self.outcome(2));
                let (second, or) = (self.condition(2), self.outcome(1));
                json!({"if": [first, then, second, or]})
            }
            _ => {
                let (condition, then, or) = (self.condition(3), self.outcome(2), self.outcome(2));
                json!({"if": [condition, then, or]})
            }
        }
    }

    fn outcome(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 5 } else { 8 }) {
            0..=2 => json!(self.pick(&["a", "b", "c"])),
            3 => Value::Null,
            4 => json!(self.pick(&["nobody's", "true"])),
            5 => json!({"if": [self.condition(depth), self.outcome(depth - 1), self.outcome(depth - 1)]}),
            _ => self.fractional(depth - 1),
        }
    }

    fn fractional(&mut self, depth: usize) -> Value {
        let mut arguments = Vec::new();
        match self.below(4) {
            0 => {}
            1 => arguments.push(json!({"var": "subject"})),
            2 => arguments.push(json!({"cat": [{"var": "$flagd.flagKey"}, self.text(1)]})),
            _ => arguments.push(self.text(1)),
        }
        for _ in 0..=self.below(5) {
            let variant = match self.below(20) {
                0 => Value::Null,
                1 => json!(true),
                2 => json!(1),
                3 => json!({"if": [self.condition(depth.min(1)), "a", "b"]}),
                _ => json!(self.pick(&["a", "b", "c"])),
            };
            arguments.push(match self.below(40) {
                0 => json!([]),
                1 => json!([variant, 1, 2]),
                2 => json!([variant, "50"]),
                3 => json!([variant, 2.5]),
                4 => json!([variant, -5]),
                5 => json!([variant, 2_147_483_647_u32]),
                6 => json!([variant, {"if": [self.condition(depth.min(1)), 10, 90]}]),
                7..=12 => json!([variant]),
                _ => json!([variant, self.below(101)]),
            });
        }
        json!({"fractional": arguments})
    }

    fn condition(&mut self, depth: usize) -> Value {
        if depth == 0 {
            return match self.below(3) {
                0 => json!({"==": [{"var": "plan"}, "premium"]}),
                1 => json!({">=": [{"var": "age"}, self.below(100)]}),
                _ => json!(self.below(2) == 0),
            };
        }
        let depth = depth - 1;
        match self.below(16) {
            0 => json!({"and": [self.condition(depth), self.condition(depth)]}),
            1 => json!({"or": [self.condition(depth), self.condition(depth)]}),
            2 => json!({self.pick(&["!", "!!"]): [self.condition(depth)]}),
            3 | 4 => {
                let operator = self.pick(&["==", "===", "!=", "!==", "<", "<=", ">", ">="]);
                json!({operator: [self.number(depth, true), self.number(depth, false)]})
            }
            5 | 6 => {
                let operator = self.pick(&["==", "===", "!=", "!==", "<", "<=", ">", ">="]);
                json!({operator: [self.text(depth), self.plain_text(depth)]})
            }
            7 | 8 => {
                let list: Vec<_> = (0..self.below(12)).map(|_| self.any_text()).collect();
                json!({"in": [self.maybe_text(), list]})
            }
            9 => json!({"in": [self.text(depth), {"cat": [self.text(depth), "-"]}]}),
            10 => json!({self.pick(&["starts_with", "ends_with"]): [self.maybe_text(), self.text(depth)]}),
            11 => {
                let version =
                    if self.below(2) == 0 { json!({"var": "version"}) } else { json!(self.pick(&VERSIONS)) };
                json!({"sem_ver": [version, self.pick(&COMPARISONS), self.pick(&VERSIONS)]})
            }
            12 => {
                let item = json!({self.pick(&["<", ">", "=="]): [{"var": ""}, self.below(10)]});
                json!({self.pick(&["some", "all", "none"]): [{"var": "numbers"}, item]})
            }
            13 if self.has_references => json!({"$ref": self.pick(&["first", "second", "third"])}),
            14 => json!({"!": {"missing": ["email", self.pick(&["phone", "user.name", "user.none"])]}}),
            _ => json!({"<": [self.below(50), {"var": "age"}, self.below(100)]}),
        }
    }

    /// A number. Not in the last operand of a comparison: `reduce`, and conditions.
    fn number(&mut self, depth: usize, is_first: bool) -> Value {
        if depth == 0 {
            return match self.below(3) {
                0 => json!(self.below(100)),
                1 => json!({"var": self.pick(&SURE_NUMBERS)}),
                _ => json!(f64::from(u32::try_from(self.below(400)).expect("it is small")) / 4.0),
            };
        }
        let depth = depth - 1;
        match self.below(9) {
            0 => {
                json!({self.pick(&["+", "-", "*", "min", "max"]): [self.number(depth, is_first), self.number(depth, is_first)]})
            }
            1 => json!({"/": [self.number(depth, is_first), self.below(9) + 1]}),
            2 => json!({"%": [{"var": "age"}, self.below(9) + 1]}),
            3 if is_first => {
                json!({"reduce": [{"var": "numbers"}, {"+": [{"var": "accumulator"}, {"var": "current"}]}, 0]})
            }
            4 if is_first => {
                let double = json!({"map": [{"var": "numbers"}, {"*": [{"var": ""}, 2]}]});
                json!({"reduce": [double, {"+": [{"var": "accumulator"}, {"var": "current"}]}, 1]})
            }
            5 if is_first => {
                json!({"if": [self.condition(depth), self.number(depth, is_first), self.number(depth, is_first)]})
            }
            6 => json!({"var": ["missing.number", self.below(100)]}),
            7 => json!({"-": [self.number(depth, is_first)]}),
            _ => self.number(0, is_first),
        }
    }

    fn text(&mut self, depth: usize) -> Value {
        if depth == 0 {
            return match self.below(3) {
                0 => json!(self.any_text()),
                1 => json!({"var": "targetingKey"}),
                _ => json!({"var": self.pick(&SURE_TEXTS)}),
            };
        }
        let depth = depth - 1;
        match self.below(6) {
            0 => json!({"cat": [self.text(depth), self.text(depth)]}),
            1 => json!({"cat": [self.text(depth), self.below(1_000)]}),
            2 => {
                let from = i64::try_from(self.below(9)).expect("it is small") - 4;
                json!({"substr": [{"var": "email"}, from, self.below(6)]})
            }
            3 => json!({"var": ["user.name", "nobody"]}),
            4 => json!({"if": [self.condition(depth), self.text(depth), self.text(depth)]}),
            _ => self.text(0),
        }
    }

    /// A text without a condition, for the last operand of a comparison.
    fn plain_text(&mut self, depth: usize) -> Value {
        match self.below(2) {
            0 => json!({"cat": [self.text(0), self.below(depth + 10)]}),
            _ => self.text(0),
        }
    }

    /// A text, or nothing.
    fn maybe_text(&mut self) -> Value {
        match self.below(3) {
            0 => json!({"var": "city"}),
            1 => json!({"var": "user.name"}),
            _ => self.text(1),
        }
    }

    pub(crate) fn context(&mut self) -> Value {
        let mut context = json!({
            "targetingKey": format!("{}-{}", self.any_text(), self.below(10_000)),
            "email": self.pick(&["ann@example.com", "bob@test.org", "eve@example.com"]),
            "country": self.any_text(), "plan": self.pick(&["premium", "basic"]),
            "age": self.below(120), "score": f64::from(u32::try_from(self.below(1_000)).expect("it is small")) / 8.0,
            "numbers": (0..self.below(4)).map(|_| self.below(10)).collect::<Vec<_>>(),
        });
        let optional =
            [("city", json!(self.any_text())), ("version", self.version()), ("subject", self.subject(3))];
        for (name, value) in optional {
            if self.below(4) > 0 {
                context[name] = value;
            }
        }
        if self.below(2) == 0 {
            context["user"] =
                json!({"name": if self.is_ascii { "jack" } else { self.pick(&["queen", "日本"]) }});
        }
        context
    }

    fn version(&mut self) -> Value {
        match self.below(4) {
            0 => json!(self.below(3)),
            1 => json!(self.pick(&["1.2", "2.5"]).parse::<f64>().expect("a number")),
            _ => json!(self.pick(&VERSIONS)),
        }
    }

    /// What `fractional` is to hash, of any type.
    fn subject(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 7 } else { 9 }) {
            0 => Value::Null,
            1 => json!(self.below(2) == 0),
            2 => json!(
                [0, 23, 24, 255, 256, 65_535, 65_536, 4_294_967_296_u64, 9_007_199_254_740_991]
                    [self.below(9)]
            ),
            3 => json!([-1, -24, -25, -256, -257, -65_537, -2_147_483_649_i64][self.below(7)]),
            4 => json!(
                [0.0, -0.0, 1.0, -2.0, 0.5, 1.23, 1e20, 1e19, -1e300, 65_504.0, 5e-324, 3.5e38]
                    [self.below(12)]
            ),
            5 => json!("x".repeat([0, 1, 23, 24, 255, 256][self.below(6)])),
            6 => json!(self.any_text()),
            7 if depth < 3 => (0..self.below(4)).map(|_| self.subject(depth - 1)).collect(),
            _ => {
                let name = |cases: &mut Self| {
                    cases.pick(&["", "a", "b", "aa", "z", "longer", "ÿ", "日本"]).to_owned()
                };
                let fields = self.below(4);
                Value::Object((0..fields).map(|_| (name(self), self.subject(depth - 1))).collect())
            }
        }
    }
}
