//! Why an evaluation gave the default of the program, and why a definition is not taken.

use serde::Serialize;

use super::value::FlagValue;
use crate::error::Cause;
use crate::text::Escaped;

/// Why an evaluation gave the program's default instead of a value of the flag. Nothing else is affected: other flags,
/// and other evaluations of the same flag, are answered as before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum FlagError {
    /// There is no such flag.
    #[error("there is no flag \"{}\" in the set \"{}\"; the default was used", Escaped(flag), Escaped(set))]
    NotFound {
        /// The set that was asked.
        set: String,
        /// The flag.
        flag: String,
    },
    /// The flag's definition cannot be used, and this node has never seen one that can.
    #[error("the flag \"{}\" is malformed: {error}; the default was used", Escaped(flag))]
    Malformed {
        /// The flag.
        flag: String,
        /// What is wrong with the definition.
        error: Cause,
    },
    /// The variant's value has another type than the program asks for.
    #[error(
        "the flag \"{}\" has {found} where {expected} was asked for; the default was used",
        Escaped(flag)
    )]
    TypeMismatch {
        /// The flag.
        flag: String,
        /// The type that was asked for.
        expected: &'static str,
        /// The type of the variant.
        found: &'static str,
    },
    /// The rule gave something that is no variant of the flag.
    #[error(
        "the rule of the flag \"{}\" gave \"{}\", which is none of its variants; the default was used",
        Escaped(flag),
        Escaped(variant)
    )]
    NoVariant {
        /// The flag.
        flag: String,
        /// What the rule gave, cut to 64 characters.
        variant: String,
    },
    /// The rule cannot be computed for this context.
    #[error("the rule of the flag \"{}\" cannot be computed: {reason}; the default was used", Escaped(flag))]
    Rule {
        /// The flag.
        flag: String,
        /// Why not.
        reason: RuleFault,
    },
    /// The context is larger than [`CONTEXT_BYTES_MAX`](super::CONTEXT_BYTES_MAX). Attributes over it are not kept.
    #[error("the context is larger than {} bytes; the default was used", super::CONTEXT_BYTES_MAX)]
    ContextTooLarge,
}

impl FlagError {
    /// The error code that `OpenFeature` has for it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "FLAG_NOT_FOUND",
            Self::Malformed { .. } => "PARSE_ERROR",
            Self::TypeMismatch { .. } => "TYPE_MISMATCH",
            Self::NoVariant { .. } | Self::Rule { .. } => "GENERAL",
            Self::ContextTooLarge => "INVALID_CONTEXT",
        }
    }
}

/// Why a rule cannot be computed for a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum RuleFault {
    /// It takes more than [`EVALUATION_STEPS_MAX`](super::EVALUATION_STEPS_MAX) steps.
    #[error("it takes more than {} steps", super::EVALUATION_STEPS_MAX)]
    TooLong,
    /// An operand of an arithmetic operator is no number.
    #[error("an operand of an arithmetic operator is no number")]
    NotANumber,
    /// A number is divided by zero.
    #[error("a number is divided by zero")]
    DivisionByZero,
}

/// Why a rule is not taken, when it is compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CompileError {
    #[error("the targeting is {0}, and a rule is an object")]
    NoRule(&'static str),
    #[error("there is no operator \"{}\"", Escaped(.0))]
    UnknownOperator(String),
    #[error("the rule is nested deeper than {}", super::RULE_DEPTH_MAX)]
    TooDeep,
    #[error("the rule \"{}\" that it refers to is not among the shared rules", Escaped(.0))]
    UnknownReference(String),
    #[error("the shared rule \"{}\" refers to itself", Escaped(.0))]
    Cycle(String),
    #[error("the shared rule \"{}\" is malformed: {}", Escaped(.0), .1)]
    SharedRule(String, Box<CompileError>),
    /// The place is a JSON pointer from the rule on.
    #[error("at {}: {}", Escaped(.0), .1)]
    At(String, Box<CompileError>),
}

impl CompileError {
    /// The error with the argument in which it is.
    pub(super) fn at(self, argument: usize) -> Self {
        match self {
            Self::At(place, error) => Self::At(format!("/{argument}{place}"), error),
            error @ (Self::UnknownOperator(_) | Self::UnknownReference(_)) => {
                Self::At(format!("/{argument}"), Box::new(error))
            }
            error => error,
        }
    }

    /// The error with the operator in whose arguments it is. A single argument may stand there without a list.
    pub(super) fn within(self, operator: &str, arguments: &FlagValue) -> Self {
        match self {
            Self::At(place, error) => {
                let is_list = matches!(arguments, FlagValue::List(_));
                let place = if is_list { &*place } else { place.strip_prefix("/0").unwrap_or(&place) };
                Self::At(format!("/{operator}{place}"), error)
            }
            error => error,
        }
    }
}
