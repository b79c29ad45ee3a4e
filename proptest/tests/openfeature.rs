//! The provider for `OpenFeature`'s SDK: values, contexts that the SDK merges, hooks, errors, events, and what is told of
//! each evaluation.

use std::sync::{Arc, Mutex};
use std::thread;

use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use open_feature::provider::{FeatureProvider, ProviderStatus};
use open_feature::{
    EvaluationContext, EvaluationContextFieldValue, EvaluationDetails, EvaluationError, EvaluationErrorCode,
    EvaluationReason, Hook, HookContext, HookHints, OpenFeature, StructValue, Value, async_trait,
};
use serde_json::{Value as Json, json};
use tidings::flags::{Flags, FlagsEvent, FlagsProvider};
use tidings::sim::{Sim, SimNode};
use tidings_proptest::{LogEvents, ms};

fn put(sim: &mut Sim, flag: &str, definition: &Json) {
    sim.node(0).put(format!("flags/default/{flag}"), definition.to_string()).unwrap();
    sim.run_for(ms(1));
}

fn flag(variants: &Json, targeting: &Json) -> Json {
    json!({"state": "ENABLED", "variants": variants, "defaultVariant": "a", "targeting": targeting})
}

/// A simulation of one node with flags of each type.
fn started() -> (Sim, Flags<SimNode>) {
    let mut sim = Sim::new(1).nodes(1);
    let flags = Flags::new(&sim.node(0), "flags/");
    let by_plan = json!({"if": [{"==": [{"var": "plan"}, "premium"]}, "b"]});
    put(&mut sim, "bool", &flag(&json!({"a": false, "b": true}), &by_plan));
    put(&mut sim, "int", &flag(&json!({"a": 1, "b": 2}), &by_plan));
    put(&mut sim, "float", &flag(&json!({"a": 0.5, "b": 2}), &by_plan));
    put(&mut sim, "text", &flag(&json!({"a": "x", "b": "y"}), &json!({"if": [{"var": "user.name"}, "b"]})));
    put(&mut sim, "object", &flag(&json!({"a": {"n": 1, "none": null, "list": [true, null]}}), &Json::Null));
    put(&mut sim, "off", &json!({"state": "DISABLED", "variants": {"a": true}}));
    put(&mut sim, "bad", &json!([]));
    (sim, flags)
}

/// Adds an attribute before each evaluation, and notes what it sees.
struct Premium(Arc<Mutex<Vec<String>>>);

#[async_trait]
impl Hook for Premium {
    async fn before<'a>(
        &self,
        context: &HookContext<'a>,
        _hints: Option<&'a HookHints>,
    ) -> Result<Option<EvaluationContext>, EvaluationError> {
        self.0.lock().unwrap().push(format!("before {}", context.flag_key));
        Ok(Some(EvaluationContext::default().with_custom_field("plan", "premium")))
    }

    async fn after<'a>(
        &self,
        _context: &HookContext<'a>,
        details: &EvaluationDetails<Value>,
        _hints: Option<&'a HookHints>,
    ) -> Result<(), EvaluationError> {
        self.0.lock().unwrap().push(format!("after {:?}", details.variant));
        Ok(())
    }

    async fn error<'a>(
        &self,
        _context: &HookContext<'a>,
        error: &EvaluationError,
        _hints: Option<&'a HookHints>,
    ) {
        self.0.lock().unwrap().push(format!("error {}", error.code));
    }

    async fn finally<'a>(
        &self,
        _context: &HookContext<'a>,
        _details: &EvaluationDetails<Value>,
        _hints: Option<&'a HookHints>,
    ) {
        self.0.lock().unwrap().push("finally".to_owned());
    }
}

#[tokio::test]
async fn sdk_gives_values_merges_contexts_and_runs_hooks() {
    let (_sim, flags) = started();
    let mut api = OpenFeature::default();
    api.set_evaluation_context(EvaluationContext::default().with_custom_field("plan", "premium")).await;
    api.set_provider(FlagsProvider::new(flags)).await;
    assert_eq!(api.provider_metadata().await.name, "tidings");
    let mut client = api.create_client();
    assert_eq!(client.get_bool_value("bool", None, None).await, Ok(true));
    assert_eq!(client.get_int_value("int", None, None).await, Ok(2));
    assert_eq!(client.get_float_value("float", None, None).await, Ok(2.0));
    let basic = EvaluationContext::default().with_custom_field("plan", "basic");
    assert_eq!(client.get_bool_value("bool", Some(&basic), None).await, Ok(false));
    client.set_evaluation_context(basic);
    assert_eq!(client.get_int_value("int", None, None).await, Ok(1));
    let name = StructValue { fields: [("name".to_owned(), Value::String("ann".to_owned()))].into() };
    let user =
        EvaluationContext::default().with_custom_field("user", EvaluationContextFieldValue::new_struct(name));
    assert_eq!(client.get_string_value("text", Some(&user), None).await, Ok("y".to_owned()));
    let object: StructValue = client.get_struct_value("object", None, None).await.unwrap();
    assert_eq!(object.fields["n"], Value::Int(1));
    assert_eq!(object.fields["list"], Value::Array(vec![Value::Bool(true)]));
    assert!(!object.fields.contains_key("none"));

    let seen = Arc::default();
    let hooked = api.create_client().with_hook(Premium(Arc::clone(&seen)));
    let details = hooked.get_bool_details("bool", None, None).await.unwrap();
    assert_eq!((details.value, details.reason), (true, Some(EvaluationReason::TargetingMatch)));
    _ = hooked.get_bool_value("none", None, None).await;
    let expected =
        ["before bool", "after Some(\"b\")", "finally", "before none", "error FLAG_NOT_FOUND", "finally"];
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[tokio::test]
async fn errors_have_the_codes_of_the_sdk() {
    let (_sim, flags) = started();
    let mut api = OpenFeature::default();
    api.set_provider(FlagsProvider::new(flags)).await;
    let client = api.create_client();
    let code = |result: Result<bool, EvaluationError>| result.unwrap_err().code;
    assert_eq!(code(client.get_bool_value("none", None, None).await), EvaluationErrorCode::FlagNotFound);
    assert_eq!(code(client.get_bool_value("int", None, None).await), EvaluationErrorCode::TypeMismatch);
    assert_eq!(code(client.get_bool_value("bad", None, None).await), EvaluationErrorCode::ParseError);
    let disabled = EvaluationErrorCode::General("DISABLED".to_owned());
    assert_eq!(code(client.get_bool_value("off", None, None).await), disabled);
    let opaque =
        EvaluationContext::default().with_custom_field("x", EvaluationContextFieldValue::new_struct(5_u8));
    let refused = client.get_bool_value("bool", Some(&opaque), None).await.unwrap_err();
    assert_eq!(refused.code, EvaluationErrorCode::InvalidContext);
    assert!(refused.message.unwrap().contains("\"x\""));
}

#[test]
fn provider_tells_its_state_and_what_changed() {
    let mut sim = Sim::new(1).nodes(2);
    sim.partition(&[0], &[1]);
    let provider = FlagsProvider::new(Flags::new(&sim.node(0), "flags/"));
    let seen: Arc<Mutex<Vec<FlagsEvent>>> = Arc::default();
    let (mut events, list) = (provider.events(), seen.clone());
    sim.spawn(async move {
        while let Some(event) = events.next().await {
            list.lock().unwrap().push(event);
        }
    });
    sim.run_for(ms(1));
    assert_eq!(provider.status(), ProviderStatus::STALE);
    sim.heal();
    sim.run_for(ms(10_000));
    assert_eq!(provider.status(), ProviderStatus::Ready);
    put(&mut sim, "a", &flag(&json!({"a": 1}), &Json::Null));
    sim.crash(0);
    sim.run_for(ms(1));
    assert_eq!(provider.status(), ProviderStatus::Error);
    let changed = FlagsEvent::Changed(vec!["a".into()]);
    assert_eq!(*seen.lock().unwrap(), [FlagsEvent::Stale, FlagsEvent::Ready, changed, FlagsEvent::Closed]);
}

#[test]
fn evaluations_are_told_and_counted() {
    let (mut sim, flags) = started();
    sim.node(0).put("flags/default/$metadata", r#"{"flagSetId": "mine", "version": "7"}"#).unwrap();
    sim.run_for(ms(1));
    let provider = FlagsProvider::new(flags);
    let context = EvaluationContext::default().with_targeting_key("ann").with_custom_field("plan", "premium");
    let events = LogEvents::keep(|metadata| metadata.name() == "feature_flag.evaluation");
    let recorder = DebuggingRecorder::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            _ = provider.resolve_bool_value("bool", &context).await;
            _ = provider.resolve_bool_value("bool", &context).await;
            _ = provider.resolve_bool_value("int", &context).await;
            _ = provider.resolve_bool_value("unheard-of", &context).await;
        });
    });
    let kept = events.of(|event| event.thread == thread::current().id());
    assert_eq!(kept.len(), 4);
    let expected = [
        ("feature_flag.context.id", "ann"),
        ("feature_flag.key", "bool"),
        ("feature_flag.provider.name", "tidings"),
        ("feature_flag.result.reason", "targeting_match"),
        ("feature_flag.result.variant", "b"),
        ("feature_flag.set.id", "mine"),
        ("feature_flag.version", "7"),
    ];
    assert_eq!(kept[0].fields, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert_eq!(kept[2].fields["error.type"], "type_mismatch");
    assert!(kept[2].fields["error.message"].contains("\"int\" has an integer where a boolean was asked for"));
    let counted = recorder.snapshotter().snapshot().into_vec();
    let count = |labels: [&str; 4]| {
        counted.iter().find_map(|(key, _, _, value)| {
            let own: Vec<_> = key.key().labels().map(metrics::Label::value).collect();
            (own == labels && key.key().name() == "tidings_flag_evaluations_total").then(|| match value {
                DebugValue::Counter(count) => *count,
                other => panic!("{other:?}"),
            })
        })
    };
    assert_eq!(count(["n0", "bool", "b", "TARGETING_MATCH"]), Some(2));
    assert_eq!(count(["n0", "int", "", "ERROR"]), Some(1));
    assert_eq!(count(["n0", "", "", "ERROR"]), Some(1));
}
