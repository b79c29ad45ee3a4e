//! Rules as they are evaluated: expressions that were compiled from JSON once, when a definition changed.

use std::sync::Arc;

use super::fractional::Buckets;
use super::value::FlagValue;

/// A compiled rule or a part of one.
#[derive(Debug)]
pub(super) enum Expression {
    /// A value that does not depend on the context.
    Literal(FlagValue),
    /// A list of which some part depends on the context.
    List(Box<[Expression]>),
    /// A place in the context, and what counts where nothing is there.
    Variable(VariablePath, Option<Box<Expression>>),
    /// A place whose name is computed. Evaluates its arguments: the name, and what counts where nothing is there.
    NamedVariable(Box<[Expression]>),
    /// Whether a text is in a list of texts, which is sorted.
    InTexts(Box<Expression>, Box<[Arc<str>]>),
    /// The share of the subject: the arguments, and their buckets where none depends on the context.
    Fractional(Box<[Expression]>, Option<Buckets<FlagValue>>),
    /// An operator with its arguments.
    Call(Operator, Box<[Expression]>),
    /// A rule that several flags share.
    Shared(Arc<Expression>),
}

/// The names that lead to a place in the context. Empty: the whole context.
#[derive(Debug)]
pub(super) struct VariablePath(pub(super) Box<[Box<str>]>);

impl VariablePath {
    pub(super) fn new(path: &str) -> Self {
        let names = path.split('.').map(Box::from);
        Self(if path.is_empty() { Box::default() } else { names.collect() })
    }
}

macro_rules! operators {
    ($($operator:ident $($name:literal)|+),+ $(,)?) => {
        /// What an expression does with its arguments.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Operator {
            $($operator),+
        }

        impl Operator {
            pub(super) fn named(name: &str) -> Option<Self> {
                match name {
                    $($($name)|+ => Some(Self::$operator),)+
                    _ => None,
                }
            }
        }
    };
}

operators! {
    If "if" | "?:",
    And "and",
    Or "or",
    Not "!",
    Truth "!!",
    Equal "==",
    NotEqual "!=",
    Same "===",
    NotSame "!==",
    Less "<",
    LessOrEqual "<=",
    Greater ">",
    GreaterOrEqual ">=",
    Add "+",
    Subtract "-",
    Multiply "*",
    Divide "/",
    Remainder "%",
    Minimum "min",
    Maximum "max",
    In "in",
    Cat "cat",
    Substring "substr",
    Merge "merge",
    Map "map",
    Filter "filter",
    Reduce "reduce",
    All "all",
    Some "some",
    None "none",
    Missing "missing",
    MissingSome "missing_some",
    Log "log",
    StartsWith "starts_with",
    EndsWith "ends_with",
    Version "sem_ver",
}
