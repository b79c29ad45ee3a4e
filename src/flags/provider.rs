//! A provider of `OpenFeature`'s SDK for Rust.
//!
//! The SDK merges the contexts of the program, the client and the call, and runs the hooks. It has no events yet:
//! [`FlagsProvider::events`] gives ours. Each evaluation is told as an event of `tracing`, called
//! `feature_flag.evaluation`, with the fields that `OpenTelemetry` names for it, and counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use open_feature::async_trait;
use open_feature::provider::{FeatureProvider, ProviderMetadata, ProviderStatus, ResolutionDetails};
use open_feature::{
    EvaluationContext, EvaluationContextFieldValue, EvaluationError, EvaluationErrorCode, EvaluationReason,
    EvaluationResult, FlagMetadata, FlagMetadataValue, StructValue, Value,
};

use super::context::{Attribute, Context};
use super::details::{Details, FlagType, Reason};
use super::shared::FlagsEvents;
use super::value::FlagValue;
use super::{FlagError, Flags};
use crate::typed::{LiveState, Store};

/// The name of the provider, in its metadata and in events.
const NAME: &str = "tidings";

/// [`Flags`] as a provider of `OpenFeature`'s SDK.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let mut sim = tidings::sim::Sim::new(1).nodes(1);
/// # let node = sim.node(0);
/// # node.put("flags/default/checkout", r#"{"state": "ENABLED", "variants": {"on": true}, "defaultVariant": "on"}"#)?;
/// use open_feature::{EvaluationContext, OpenFeature};
/// use tidings::flags::{Flags, FlagsProvider};
///
/// let mut api = OpenFeature::default();
/// api.set_provider(FlagsProvider::new(Flags::new(&node, "flags/"))).await;
/// let context = EvaluationContext::default().with_targeting_key("user-17");
/// let is_on = api.create_client().get_bool_value("checkout", Some(&context), None).await;
/// assert_eq!(is_on, Ok(true));
/// # Ok(()) }
/// ```
pub struct FlagsProvider<#[cfg(feature = "node")] S = crate::Node, #[cfg(not(feature = "node"))] S> {
    flags: Flags<S>,
    metadata: ProviderMetadata,
}

impl<S> std::fmt::Debug for FlagsProvider<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("FlagsProvider").field(&self.flags).finish()
    }
}

impl<S: Store> FlagsProvider<S> {
    /// A provider of the flags of one set.
    pub fn new(flags: Flags<S>) -> Self {
        Self { flags, metadata: ProviderMetadata::new(NAME) }
    }

    /// What becomes of the flags: ready, stale, changed with their names, and closed.
    pub fn events(&self) -> FlagsEvents {
        self.flags.events()
    }

    fn resolve<T: FlagType + Default>(
        &self,
        flag: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<Details<T>> {
        let details = self.flags.details(flag, T::default(), &context_of(context)?);
        tell(self.flags.store.name(), flag, context, &details);
        match &details.error {
            Some(error) => Err(EvaluationError { code: code_of(error), message: Some(error.to_string()) }),
            // The SDK has the program's default, and takes it where a provider gives an error.
            None if details.variant.is_none() => Err(EvaluationError {
                code: EvaluationErrorCode::General(details.reason.name().to_owned()),
                message: Some("the flag has no variant for this context; the default is used".to_owned()),
            }),
            None => Ok(details),
        }
    }
}

#[async_trait]
impl<S: Store> FeatureProvider for FlagsProvider<S> {
    fn metadata(&self) -> &ProviderMetadata {
        &self.metadata
    }

    fn status(&self) -> ProviderStatus {
        match self.flags.state() {
            LiveState::Current | LiveState::Rejected => ProviderStatus::Ready,
            LiveState::Stale => ProviderStatus::STALE,
            LiveState::Ended => ProviderStatus::Error,
        }
    }

    async fn resolve_bool_value(
        &self,
        flag_key: &str,
        evaluation_context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<bool>> {
        self.resolve(flag_key, evaluation_context).map(|details| resolution(details, |value| value))
    }

    async fn resolve_int_value(
        &self,
        flag_key: &str,
        evaluation_context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<i64>> {
        self.resolve(flag_key, evaluation_context).map(|details| resolution(details, |value| value))
    }

    async fn resolve_float_value(
        &self,
        flag_key: &str,
        evaluation_context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<f64>> {
        self.resolve(flag_key, evaluation_context).map(|details| resolution(details, |value| value))
    }

    async fn resolve_string_value(
        &self,
        flag_key: &str,
        evaluation_context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<String>> {
        self.resolve(flag_key, evaluation_context).map(|details| resolution(details, |value| value))
    }

    /// Fields that are null are left out, and so are those in lists: the SDK has no null.
    async fn resolve_struct_value(
        &self,
        flag_key: &str,
        evaluation_context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<StructValue>> {
        let details: Details<FlagValue> = self.resolve(flag_key, evaluation_context)?;
        match value_of(&details.value) {
            Some(Value::Struct(fields)) => Ok(resolution(details, |_| fields)),
            _ => Err(EvaluationError {
                code: EvaluationErrorCode::TypeMismatch,
                message: Some(format!("the flag has {} where an object was asked for", details.value.kind())),
            }),
        }
    }
}

fn code_of(error: &FlagError) -> EvaluationErrorCode {
    match error {
        FlagError::NotFound { .. } => EvaluationErrorCode::FlagNotFound,
        FlagError::Malformed { .. } => EvaluationErrorCode::ParseError,
        FlagError::TypeMismatch { .. } => EvaluationErrorCode::TypeMismatch,
        FlagError::ContextTooLarge => EvaluationErrorCode::InvalidContext,
        FlagError::NoVariant { .. } | FlagError::Rule { .. } => {
            EvaluationErrorCode::General("GENERAL".to_owned())
        }
    }
}

fn resolution<T, U>(details: Details<T>, value: impl FnOnce(T) -> U) -> ResolutionDetails<U> {
    let reason = match details.reason {
        Reason::Static => EvaluationReason::Static,
        Reason::Default => EvaluationReason::Default,
        Reason::TargetingMatch => EvaluationReason::TargetingMatch,
        Reason::Disabled => EvaluationReason::Disabled,
        Reason::Error => EvaluationReason::Error,
    };
    let field = |(key, value): (&Arc<str>, &FlagValue)| {
        let value = match value {
            FlagValue::Bool(value) => FlagMetadataValue::Bool(*value),
            FlagValue::Int(value) => FlagMetadataValue::Int(*value),
            FlagValue::Float(value) => FlagMetadataValue::Float(*value),
            other => FlagMetadataValue::String(other.as_str().unwrap_or_default().to_owned()),
        };
        (key.to_string(), value)
    };
    let values: HashMap<_, _> = details.metadata.iter().map(field).collect();
    ResolutionDetails {
        value: value(details.value),
        variant: details.variant.map(|variant| variant.to_string()),
        reason: Some(reason),
        flag_metadata: (!values.is_empty()).then_some(FlagMetadata { values }),
    }
}

/// A context of the SDK as one of ours. Structs are those that the SDK defines, or [`FlagValue`]s.
fn context_of(context: &EvaluationContext) -> EvaluationResult<Context<'_>> {
    let mut own = Context::anonymous();
    if let Some(key) = &context.targeting_key {
        own = own.with_targeting_key(key.as_str());
    }
    for (name, value) in &context.custom_fields {
        let attribute: Attribute<'_> = match value {
            EvaluationContextFieldValue::Bool(value) => (*value).into(),
            EvaluationContextFieldValue::Int(value) => (*value).into(),
            EvaluationContextFieldValue::Float(value) => (*value).into(),
            EvaluationContextFieldValue::String(value) => value.as_str().into(),
            EvaluationContextFieldValue::DateTime(time) => {
                humantime::format_rfc3339_millis(SystemTime::from(*time)).to_string().into()
            }
            EvaluationContextFieldValue::Struct(value) => {
                let value = value.downcast_ref::<StructValue>().map(fields_of).or_else(|| {
                    let other = value.downcast_ref::<Value>().map(flag_value_of);
                    other.or_else(|| value.downcast_ref::<FlagValue>().cloned())
                });
                value.map(Attribute::from).ok_or_else(|| EvaluationError {
                    code: EvaluationErrorCode::InvalidContext,
                    message: Some(format!(
                        "the attribute \"{}\" is of a type that cannot be read; use a StructValue or a FlagValue",
                        crate::text::Escaped(name)
                    )),
                })?
            }
        };
        own = own.with(name.as_str(), attribute);
    }
    Ok(own)
}

fn fields_of(fields: &StructValue) -> FlagValue {
    FlagValue::object(
        fields.fields.iter().map(|(key, value)| (key.as_str().into(), flag_value_of(value))).collect(),
    )
}

fn flag_value_of(value: &Value) -> FlagValue {
    match value {
        Value::Bool(value) => FlagValue::Bool(*value),
        Value::Int(value) => FlagValue::Int(*value),
        Value::Float(value) => FlagValue::Float(*value),
        Value::String(value) => FlagValue::from(value.as_str()),
        Value::Array(items) => FlagValue::List(items.iter().map(flag_value_of).collect()),
        Value::Struct(fields) => fields_of(fields),
    }
}

/// A value of ours as one of the SDK. `None`: null.
fn value_of(value: &FlagValue) -> Option<Value> {
    Some(match value {
        FlagValue::Null => return None,
        FlagValue::Bool(value) => Value::Bool(*value),
        FlagValue::Int(value) => Value::Int(*value),
        FlagValue::Float(value) => Value::Float(*value),
        FlagValue::Text(value) => Value::String(value.to_string()),
        FlagValue::List(items) => Value::Array(items.iter().filter_map(value_of).collect()),
        FlagValue::Object(fields) => {
            let fields = fields.iter().filter_map(|(key, value)| Some((key.to_string(), value_of(value)?)));
            Value::Struct(StructValue { fields: fields.collect() })
        }
    })
}

/// Reports an evaluation by the names of `OpenTelemetry`'s semantic conventions, and counts it.
#[cfg_attr(not(feature = "node"), expect(unused_variables, reason = "without a node nothing is told"))]
fn tell<T>(node: &str, flag: &str, context: &EvaluationContext, details: &Details<T>) {
    #[cfg(feature = "node")]
    {
        let reason = details.reason.name().to_ascii_lowercase();
        let error = details.error.as_ref();
        tracing::event!(
            name: "feature_flag.evaluation",
            tracing::Level::DEBUG,
            feature_flag.key = flag,
            feature_flag.result.variant = details.variant.as_deref(),
            feature_flag.result.reason = &*reason,
            feature_flag.provider.name = NAME,
            feature_flag.context.id = context.targeting_key.as_deref(),
            feature_flag.set.id = details.metadata.get("flagSetId").and_then(FlagValue::as_str),
            feature_flag.version = details.metadata.get("version").and_then(FlagValue::as_str),
            error.r#type = error.map(|error| error.code().to_ascii_lowercase()),
            error.message = error.map(ToString::to_string),
        );
    }
    #[cfg(feature = "metrics")]
    {
        let variant = details.variant.as_deref().unwrap_or_default().to_owned();
        let known = if matches!(details.error, Some(FlagError::NotFound { .. })) { "" } else { flag };
        let (flag, reason) = (known.to_owned(), details.reason.name().to_owned());
        let labels = [("node", node.to_owned()), ("flag", flag), ("variant", variant), ("reason", reason)];
        metrics::counter!("tidings_flag_evaluations_total", &labels).increment(1);
    }
}
