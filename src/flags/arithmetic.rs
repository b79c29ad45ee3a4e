//! Calculating with the values of an evaluation. Integers stay integers as long as they fit, and what is no number is an
//! error: an evaluation never goes on with `NaN`.

use super::datum::Datum;
use super::error::RuleFault;
use super::rule::Operator;

/// A value as a number, which keeps its form.
pub(super) fn number<'a>(value: &Datum<'a>) -> Result<Datum<'a>, RuleFault> {
    match value {
        Datum::Int(value) => Ok(Datum::Int(*value)),
        Datum::Bool(value) => Ok(Datum::Int(i64::from(*value))),
        Datum::Null => Ok(Datum::Int(0)),
        other if other.number().is_nan() => Err(RuleFault::NotANumber),
        other => Ok(Datum::Float(other.number())),
    }
}

/// Integers stay integers unless they overflow.
pub(super) fn combined<'a>(operator: Operator, a: &Datum<'a>, b: &Datum<'a>) -> Result<Datum<'a>, RuleFault> {
    if let (Datum::Int(a), Datum::Int(b)) = (a, b) {
        let exact = match operator {
            Operator::Add => a.checked_add(*b),
            Operator::Subtract => a.checked_sub(*b),
            Operator::Multiply => a.checked_mul(*b),
            Operator::Minimum => Some(*a.min(b)),
            _ => Some(*a.max(b)),
        };
        if let Some(exact) = exact {
            return Ok(Datum::Int(exact));
        }
    }
    let (a, b) = (a.number(), b.number());
    let result = match operator {
        Operator::Add => a + b,
        Operator::Subtract => a - b,
        Operator::Multiply => a * b,
        Operator::Minimum => a.min(b),
        _ => a.max(b),
    };
    if result.is_nan() { Err(RuleFault::NotANumber) } else { Ok(Datum::Float(result)) }
}

/// The quotient, or what remains of the division.
pub(super) fn divide<'a>(operator: Operator, a: &Datum<'a>, b: &Datum<'a>) -> Result<Datum<'a>, RuleFault> {
    let (a, b) = (number(a)?, number(b)?);
    if b.number() == 0.0 {
        return Err(RuleFault::DivisionByZero);
    }
    if let (Operator::Remainder, Datum::Int(a), Datum::Int(b)) = (operator, &a, &b) {
        return Ok(Datum::Int(a.wrapping_rem(*b)));
    }
    let result = if operator == Operator::Divide { a.number() / b.number() } else { a.number() % b.number() };
    if result.is_nan() { Err(RuleFault::NotANumber) } else { Ok(Datum::Float(result)) }
}
