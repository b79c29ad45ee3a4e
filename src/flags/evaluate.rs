//! The evaluation of a compiled rule, in a bounded number of steps.
//!
//! Every expression costs a step, and every value that is read or made costs steps by its size, before that is done: so
//! time and memory are bounded, whatever a rule does with whatever a context holds. Nothing is locked, and nothing is
//! allocated unless a rule makes new texts, lists or objects.
//!
//! Where `JsonLogic` leaves something open, it is as the implementations of flagd have it; where they differ, as
//! JavaScript has it. Operators that cannot be computed give null if flagd says so, and otherwise an error.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use super::arithmetic::{combined, divide, number};
use super::context::{AttributeValue, Context, TARGETING_KEY, seconds_of};
use super::datum::{Datum, NAMES_PER_STEP, text_extent};
use super::error::RuleFault;
use super::fractional::{self, Buckets, FractionalVersion, Subject};
use super::rule::{Expression, Operator, VariablePath};
use super::value::FlagValue;
use super::version;

/// The most steps of one evaluation. Each expression, each value that is read, each few bytes of a text or of a name
/// that are read, each item of a list that is walked or made, and each byte of a text that is made is a step.
pub const EVALUATION_STEPS_MAX: usize = 1 << 20;

/// What an item of a new list costs beside its contents: about its size.
const ITEM_STEPS: usize = 32;

/// The name under which rules see the flag's key and the time.
const OWN_FIELDS: &str = "$flagd";

/// One evaluation of a rule.
pub(super) struct Evaluation<'a> {
    pub(super) flag: &'a str,
    pub(super) context: &'a Context<'a>,
    pub(super) fractional: FractionalVersion,
    /// Gives the seconds since 1970, where the context has no time of its own.
    pub(super) clock: &'a dyn Fn() -> i64,
    pub(super) steps_left: usize,
}

type Evaluated<'a> = Result<Datum<'a>, RuleFault>;

/// What variables are looked up in: the context, or within an operator on lists, an item.
type Scope<'s, 'a> = Option<&'s Datum<'a>>;

impl<'a> Evaluation<'a> {
    fn spend(&mut self, steps: usize) -> Result<(), RuleFault> {
        self.steps_left = self.steps_left.checked_sub(steps).ok_or(RuleFault::TooLong)?;
        Ok(())
    }

    /// Spends what it costs to read all of a value.
    fn charge(&mut self, value: &Datum<'a>) -> Result<(), RuleFault> {
        match value {
            Datum::Null | Datum::Bool(_) | Datum::Int(_) | Datum::Float(_) => Ok(()),
            large => self.spend(large.extent(self.steps_left)),
        }
    }

    /// Spends what it costs to walk the items of a list, each of which may be cloned.
    fn charge_items(&mut self, list: &Datum<'a>) -> Result<(), RuleFault> {
        self.spend(list.items_len().unwrap_or(0) + list.weight())
    }

    /// The name of the variant that a rule gives. `None`: the default variant.
    pub(super) fn variant_name(&mut self, rule: &'a Expression) -> Result<Option<Cow<'a, str>>, RuleFault> {
        let Some(chosen) = self.chosen(rule, None)? else { return Ok(None) };
        if let Expression::Literal(FlagValue::Text(name)) = chosen {
            self.spend(1 + text_extent(name))?;
            return Ok(Some(Cow::Borrowed(name)));
        }
        let value = self.value(chosen, None)?;
        self.charge(&value)?;
        Ok(if value.is_null() { None } else { Some(value.to_text()) })
    }

    pub(super) fn value(&mut self, expression: &'a Expression, scope: Scope<'_, 'a>) -> Evaluated<'a> {
        self.spend(1)?;
        match expression {
            Expression::Literal(value) => Ok(value.into()),
            Expression::Shared(shared) => self.value(shared, scope),
            Expression::List(parts) => Ok(Datum::NewList(self.values(parts, scope)?)),
            Expression::Variable(path, default) => {
                let found = self.look_up(path.0.iter().map(|name| &**name), scope)?;
                match default {
                    Some(default) if found.is_null() => self.value(default, scope),
                    _ => Ok(found),
                }
            }
            Expression::NamedVariable(arguments) => {
                let name = self.argument(arguments, 0, scope)?;
                let found = self.look_up_named(&name, scope)?;
                if found.is_null() { self.argument(arguments, 1, scope) } else { Ok(found) }
            }
            Expression::InTexts(needle, texts) => Ok(Datum::Bool(self.is_among(needle, texts, scope)?)),
            Expression::Fractional(arguments, fixed) => self.fractional(arguments, fixed.as_ref(), scope),
            Expression::Call(operator, arguments) => self.call(*operator, arguments, scope),
        }
    }

    fn values(&mut self, parts: &'a [Expression], scope: Scope<'_, 'a>) -> Result<Vec<Datum<'a>>, RuleFault> {
        self.spend(parts.len() * ITEM_STEPS)?;
        parts.iter().map(|part| self.value(part, scope)).collect()
    }

    fn argument(&mut self, arguments: &'a [Expression], at: usize, scope: Scope<'_, 'a>) -> Evaluated<'a> {
        arguments.get(at).map_or(Ok(Datum::Null), |argument| self.value(argument, scope))
    }

    fn call(
        &mut self,
        operator: Operator,
        arguments: &'a [Expression],
        scope: Scope<'_, 'a>,
    ) -> Evaluated<'a> {
        match operator {
            Operator::If => match self.branch(arguments, scope)? {
                Some(branch) => self.value(branch, scope),
                None => Ok(Datum::Null),
            },
            Operator::And | Operator::Or => {
                let mut last = Datum::Null;
                for argument in arguments {
                    last = self.value(argument, scope)?;
                    if last.is_true() == (operator == Operator::Or) {
                        break;
                    }
                }
                Ok(last)
            }
            Operator::Map | Operator::Filter | Operator::All | Operator::Some | Operator::None => {
                self.iterate(operator, arguments, scope)
            }
            Operator::Reduce => self.reduce(arguments, scope),
            Operator::Add
            | Operator::Subtract
            | Operator::Multiply
            | Operator::Minimum
            | Operator::Maximum => self.fold(operator, arguments, scope),
            Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual => {
                self.compare(operator, arguments, scope)
            }
            Operator::Cat => self.cat(arguments, scope),
            Operator::Merge => self.merge(arguments, scope),
            Operator::Missing | Operator::MissingSome => self.missing(operator, arguments, scope),
            _ => self.call_simple(operator, arguments, scope),
        }
    }

    /// Operators of at most three arguments, all of which they need.
    fn call_simple(
        &mut self,
        operator: Operator,
        arguments: &'a [Expression],
        scope: Scope<'_, 'a>,
    ) -> Evaluated<'a> {
        let given = [
            self.argument(arguments, 0, scope)?,
            self.argument(arguments, 1, scope)?,
            self.argument(arguments, 2, scope)?,
        ];
        let [first, second, third] = &given;
        let is_pair = arguments.len() == 2;
        if !matches!(operator, Operator::Not | Operator::Truth) {
            given.iter().try_for_each(|value| self.charge(value))?;
        }
        Ok(match operator {
            Operator::Not => Datum::Bool(!first.is_true()),
            Operator::Truth => Datum::Bool(first.is_true()),
            Operator::Equal => Datum::Bool(first.is_equal(second)),
            Operator::NotEqual => Datum::Bool(!first.is_equal(second)),
            Operator::Same => Datum::Bool(first.is_same(second)),
            Operator::NotSame => Datum::Bool(!first.is_same(second)),
            Operator::Divide | Operator::Remainder => return divide(operator, first, second),
            Operator::In => Datum::Bool(is_in(first, second)),
            Operator::Substring => return self.substring(first, second, third),
            Operator::StartsWith | Operator::EndsWith => match (first, second) {
                (Datum::Text(text), Datum::Text(part)) if is_pair => Datum::Bool(match operator {
                    Operator::StartsWith => text.starts_with(&**part),
                    _ => text.ends_with(&**part),
                }),
                _ => Datum::Null,
            },
            Operator::Version if arguments.len() == 3 => version::compare(&given),
            Operator::Log => {
                let [first, ..] = given;
                first
            }
            _ => Datum::Null,
        })
    }

    /// The part of a rule whose value is that of the rule: where the conditions of `if` lead to. `None`: no branch
    /// applies.
    fn chosen(
        &mut self,
        mut rule: &'a Expression,
        scope: Scope<'_, 'a>,
    ) -> Result<Option<&'a Expression>, RuleFault> {
        while let Expression::Call(Operator::If, arguments) = rule {
            self.spend(1)?;
            match self.branch(arguments, scope)? {
                Some(branch) => rule = branch,
                None => return Ok(None),
            }
        }
        Ok(Some(rule))
    }

    /// The branch of an `if` that applies.
    fn branch(
        &mut self,
        arguments: &'a [Expression],
        scope: Scope<'_, 'a>,
    ) -> Result<Option<&'a Expression>, RuleFault> {
        for pair in arguments.chunks(2) {
            match pair {
                [condition, then] => {
                    if self.holds(condition, scope)? {
                        return Ok(Some(then));
                    }
                }
                [otherwise] => return Ok(Some(otherwise)),
                _ => unreachable!("chunks have one or two elements"),
            }
        }
        Ok(None)
    }

    /// Whether a condition is true.
    fn holds(&mut self, condition: &'a Expression, scope: Scope<'_, 'a>) -> Result<bool, RuleFault> {
        match condition {
            Expression::InTexts(needle, texts) => {
                self.spend(1)?;
                self.is_among(needle, texts, scope)
            }
            Expression::Shared(shared) => {
                self.spend(1)?;
                self.holds(shared, scope)
            }
            Expression::Call(operator @ (Operator::And | Operator::Or), arguments) => {
                self.spend(1)?;
                let decisive = *operator == Operator::Or;
                for argument in arguments {
                    if self.holds(argument, scope)? == decisive {
                        return Ok(decisive);
                    }
                }
                // Without arguments both are null.
                Ok(!decisive && !arguments.is_empty())
            }
            other => Ok(self.value(other, scope)?.is_true()),
        }
    }

    /// Whether a text is one of those of a sorted list.
    fn is_among(
        &mut self,
        needle: &'a Expression,
        texts: &[Arc<str>],
        scope: Scope<'_, 'a>,
    ) -> Result<bool, RuleFault> {
        let is_in = |text: &str| texts.binary_search_by(|own| (**own).cmp(text)).is_ok();
        if let Some(text) = self.attribute_text(needle, scope) {
            self.spend(2 + self.context.len() / NAMES_PER_STEP + text_extent(text))?;
            return Ok(is_in(text));
        }
        let needle = self.value(needle, scope)?;
        self.charge(&needle)?;
        Ok(matches!(&needle, Datum::Text(text) if is_in(text)))
    }

    /// The text of an attribute, where an expression asks for just that: most conditions do.
    fn attribute_text(&self, expression: &Expression, scope: Scope<'_, 'a>) -> Option<&'a str> {
        let (Expression::Variable(VariablePath(names), None), None) = (expression, scope) else {
            return None;
        };
        match &**names {
            [name] if !matches!(&**name, OWN_FIELDS | TARGETING_KEY) => match self.context.attribute(name)? {
                AttributeValue::Text(text) => Some(text),
                AttributeValue::Other(_) => None,
            },
            _ => None,
        }
    }

    /// What a path leads to. What stands on the way is not cloned, and what a clone of its end costs is spent before.
    fn look_up<'n>(
        &mut self,
        mut names: impl Iterator<Item = &'n str>,
        scope: Scope<'_, 'a>,
    ) -> Evaluated<'a> {
        let mut found = match (scope, names.next()) {
            (Some(item), None) => Cow::Borrowed(item),
            (Some(item), Some(name)) => self.part(item, name)?,
            (None, None) => Cow::Owned(self.whole_context()?),
            (None, Some(OWN_FIELDS)) => Cow::Owned(match names.next() {
                None => self.own_fields(),
                Some(name) => self.own_field(name),
            }),
            (None, Some(name)) => {
                self.spend(text_extent(name) + self.context.len() / NAMES_PER_STEP)?;
                Cow::Owned(self.attribute(name))
            }
        };
        for name in names {
            found = match found {
                Cow::Borrowed(whole) => self.part(whole, name)?,
                // It is of the context or of the rule, and so are its parts, which are no clones.
                Cow::Owned(whole) => Cow::Owned(self.part(&whole, name)?.into_owned()),
            };
        }
        self.spend(found.weight())?;
        Ok(found.into_owned())
    }

    /// A part of a value; null if there is none.
    #[inline]
    fn part<'s>(&mut self, whole: &'s Datum<'a>, name: &str) -> Result<Cow<'s, Datum<'a>>, RuleFault> {
        self.spend(text_extent(name) + whole.search_extent())?;
        Ok(whole.part(name).unwrap_or(Cow::Owned(Datum::Null)))
    }

    fn look_up_named(&mut self, name: &Datum<'a>, scope: Scope<'_, 'a>) -> Evaluated<'a> {
        self.charge(name)?;
        let path = name.to_text();
        self.spend(path.len())?;
        if name.is_null() || path.is_empty() {
            return self.look_up(std::iter::empty(), scope);
        }
        self.look_up(path.split('.'), scope)
    }

    fn attribute(&self, name: &str) -> Datum<'a> {
        match name {
            TARGETING_KEY => self.context.targeting_key().map_or(Datum::Null, Datum::text),
            _ => self.context.attribute(name).map_or(Datum::Null, Datum::from),
        }
    }

    /// A field of `$flagd`.
    fn own_field(&self, name: &str) -> Datum<'a> {
        match name {
            "flagKey" => Datum::text(self.flag),
            "timestamp" => Datum::Int(self.context.time().map_or_else(self.clock, seconds_of)),
            _ => Datum::Null,
        }
    }

    fn own_fields(&self) -> Datum<'a> {
        let field = |name| (Cow::Borrowed(name), self.own_field(name));
        Datum::NewObject(["flagKey", "timestamp"].map(field).into())
    }

    fn whole_context(&mut self) -> Evaluated<'a> {
        let mut fields: Vec<_> =
            self.context.attributes().map(|(name, value)| (Cow::Borrowed(name), value.into())).collect();
        self.spend(fields.len() * ITEM_STEPS)?;
        fields.push((Cow::Borrowed(OWN_FIELDS), self.own_fields()));
        fields.push((Cow::Borrowed(TARGETING_KEY), self.attribute(TARGETING_KEY)));
        Ok(Datum::NewObject(fields))
    }

    fn iterate(
        &mut self,
        operator: Operator,
        arguments: &'a [Expression],
        scope: Scope<'_, 'a>,
    ) -> Evaluated<'a> {
        let list = self.argument(arguments, 0, scope)?;
        self.charge_items(&list)?;
        let mut made = Vec::new();
        for item in list.items() {
            let value = self.argument(&arguments[1.min(arguments.len())..], 0, Some(&item))?;
            match operator {
                Operator::All if !value.is_true() => return Ok(Datum::Bool(false)),
                Operator::Some if value.is_true() => return Ok(Datum::Bool(true)),
                Operator::None if value.is_true() => return Ok(Datum::Bool(false)),
                Operator::Map => made.push(value),
                Operator::Filter if value.is_true() => made.push(item.into_owned()),
                _ => continue,
            }
            self.spend(ITEM_STEPS)?;
        }
        Ok(match operator {
            Operator::Map | Operator::Filter => Datum::NewList(made),
            Operator::All => Datum::Bool(list.items_len().is_some_and(|len| len > 0)),
            _ => Datum::Bool(operator == Operator::None),
        })
    }

    fn reduce(&mut self, arguments: &'a [Expression], scope: Scope<'_, 'a>) -> Evaluated<'a> {
        let list = self.argument(arguments, 0, scope)?;
        self.charge_items(&list)?;
        let mut accumulator = self.argument(arguments, 2, scope)?;
        for item in list.items() {
            let fields = vec![
                (Cow::Borrowed("accumulator"), accumulator),
                (Cow::Borrowed("current"), item.into_owned()),
            ];
            self.spend(ITEM_STEPS)?;
            accumulator =
                self.argument(&arguments[1.min(arguments.len())..], 0, Some(&Datum::NewObject(fields)))?;
        }
        Ok(accumulator)
    }

    fn fractional(
        &mut self,
        arguments: &'a [Expression],
        fixed: Option<&'a Buckets<FlagValue>>,
        scope: Scope<'_, 'a>,
    ) -> Evaluated<'a> {
        let own = match arguments.first() {
            None => return Ok(Datum::Null),
            // The first bucket: lists are no subjects.
            Some(Expression::Literal(FlagValue::List(_))) => None,
            Some(first) => Some(self.value(first, scope)?),
        };
        own.iter().try_for_each(|own| self.charge(own))?;
        self.spend(self.context.targeting_key().map_or(0, text_extent))?;
        let subject =
            fractional::subject(self.fractional, own.as_ref(), self.flag, self.context.targeting_key());
        let Subject::Hash(hash, is_first_hashed) = subject else { return Ok(Datum::Null) };
        let arguments = &arguments[usize::from(is_first_hashed)..];
        if let Some(fixed) = fixed.filter(|fixed| fixed.len() == arguments.len()) {
            self.spend(fixed.len())?;
            return Ok(fixed.choose(hash).map_or(Datum::Null, Datum::from));
        }
        let mut buckets = Buckets::default();
        for argument in arguments {
            let value = self.value(argument, scope)?;
            self.charge_items(&value)?;
            let Some((variant, weight)) = fractional::bucket(self.fractional, &value) else {
                return Ok(Datum::Null);
            };
            buckets.push(variant, weight);
        }
        Ok(buckets.choose(hash).cloned().unwrap_or(Datum::Null))
    }

    fn fold(
        &mut self,
        operator: Operator,
        arguments: &'a [Expression],
        scope: Scope<'_, 'a>,
    ) -> Evaluated<'a> {
        let Some((first, rest)) = arguments.split_first() else {
            return match operator {
                Operator::Add => Ok(Datum::Int(0)),
                Operator::Multiply => Ok(Datum::Int(1)),
                _ => Err(RuleFault::NotANumber),
            };
        };
        let mut result = self.number(first, scope)?;
        if operator == Operator::Subtract && rest.is_empty() {
            return combined(operator, &Datum::Int(0), &result);
        }
        for argument in rest {
            result = combined(operator, &result, &self.number(argument, scope)?)?;
        }
        Ok(result)
    }

    fn number(&mut self, argument: &'a Expression, scope: Scope<'_, 'a>) -> Evaluated<'a> {
        let value = self.value(argument, scope)?;
        self.charge(&value)?;
        number(&value)
    }

    fn compare(
        &mut self,
        operator: Operator,
        arguments: &'a [Expression],
        scope: Scope<'_, 'a>,
    ) -> Evaluated<'a> {
        let mut left = self.argument(arguments, 0, scope)?;
        for at in 1..arguments.len().max(2) {
            let right = self.argument(arguments, at, scope)?;
            self.charge(&left)?;
            self.charge(&right)?;
            let order = left.order(&right);
            let holds = match operator {
                Operator::Less => order == Some(Ordering::Less),
                Operator::LessOrEqual => order.is_some_and(Ordering::is_le),
                Operator::Greater => order == Some(Ordering::Greater),
                _ => order.is_some_and(Ordering::is_ge),
            };
            if !holds {
                return Ok(Datum::Bool(false));
            }
            left = right;
        }
        Ok(Datum::Bool(true))
    }

    fn cat(&mut self, arguments: &'a [Expression], scope: Scope<'_, 'a>) -> Evaluated<'a> {
        let mut made = String::new();
        for argument in arguments {
            let value = self.value(argument, scope)?;
            self.charge(&value)?;
            let text = value.to_text();
            self.spend(text.len())?;
            made.push_str(&text);
        }
        Ok(Datum::Text(Cow::Owned(made)))
    }

    fn substring(&mut self, text: &Datum<'a>, from: &Datum<'a>, len: &Datum<'a>) -> Evaluated<'a> {
        let text = text.to_text();
        self.spend(text.len())?;
        let count = text.chars().count();
        let start = offset(from.number(), count);
        let end = match len {
            Datum::Null => count,
            len if len.number() < 0.0 => offset(len.number(), count),
            len => start.saturating_add(offset(len.number(), usize::MAX)),
        };
        Ok(Datum::Text(Cow::Owned(text.chars().skip(start).take(end.saturating_sub(start)).collect())))
    }

    fn merge(&mut self, arguments: &'a [Expression], scope: Scope<'_, 'a>) -> Evaluated<'a> {
        let mut made = Vec::new();
        for argument in arguments {
            let value = self.value(argument, scope)?;
            self.spend(value.items_len().unwrap_or(1) * ITEM_STEPS + value.weight())?;
            if value.items_len().is_some() {
                made.extend(value.items().map(Cow::into_owned));
            } else {
                made.push(value);
            }
        }
        Ok(Datum::NewList(made))
    }

    fn missing(
        &mut self,
        operator: Operator,
        arguments: &'a [Expression],
        scope: Scope<'_, 'a>,
    ) -> Evaluated<'a> {
        let (needed, names) = if operator == Operator::MissingSome {
            (self.argument(arguments, 0, scope)?.number(), self.argument(arguments, 1, scope)?)
        } else {
            match self.argument(arguments, 0, scope)? {
                list if list.items_len().is_some() => (f64::INFINITY, list),
                _ => (f64::INFINITY, Datum::NewList(self.values(arguments, scope)?)),
            }
        };
        let (mut gone, mut found) = (Vec::new(), 0.0);
        self.charge_items(&names)?;
        for name in names.items() {
            self.spend(ITEM_STEPS)?;
            let value = self.look_up_named(&name, scope)?;
            if value.is_null() || matches!(&value, Datum::Text(text) if text.is_empty()) {
                gone.push(name.into_owned());
            } else {
                found += 1.0;
            }
        }
        Ok(Datum::NewList(if found >= needed { Vec::new() } else { gone }))
    }
}

fn is_in(needle: &Datum<'_>, haystack: &Datum<'_>) -> bool {
    match haystack {
        Datum::Text(text) => text.contains(&*needle.to_text()),
        list => list.items().any(|item| item.is_same(needle)),
    }
}

/// A position in a text of so many characters; a negative one counts from its end.
#[expect(clippy::cast_sign_loss, reason = "conversions of floats saturate")]
fn offset(position: f64, count: usize) -> usize {
    if position >= 0.0 {
        return (position as usize).min(count);
    }
    let back = if position.is_nan() { count } else { (-position) as usize };
    count.saturating_sub(back)
}
