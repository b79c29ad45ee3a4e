//! The layers under and over the store.

use std::any::Any;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;
use serde_json::Value;

use crate::error::Cause;

/// A source of values beside the store, such as a file or the environment; [`LiveBuilder::under`](super::LiveBuilder::under)
/// and [`LiveBuilder::over`](super::LiveBuilder::over) take it. With the feature `figment` every `figment::Provider` that
/// can be sent between threads is one: `Toml::file(..)` is read again each time. A whole `Figment` has read its providers
/// when it was made. `Env` cannot be sent, so take `Figment::from(Env::prefixed(..))`.
///
/// ```
/// use std::collections::BTreeMap;
/// use tidings::live::Layer;
///
/// /// The environment variables that begin with a prefix; `APP_PORT` is the field `port`.
/// struct Variables(&'static str);
///
/// impl Layer for Variables {
///     type Values = BTreeMap<String, String>;
///
///     fn name(&self) -> String {
///         format!("environment {}", self.0)
///     }
///
///     fn values(&self) -> Result<Self::Values, Box<dyn std::error::Error + Send + Sync>> {
///         let field = |name: String| Some(name.strip_prefix(self.0)?.to_lowercase());
///         Ok(std::env::vars().filter_map(|(name, value)| Some((field(name)?, value))).collect())
///     }
/// }
/// ```
pub trait Layer: Send + Sync + 'static {
    /// The values: a struct or a map, whose fields may be structs and maps again.
    type Values: Serialize;

    /// What [`Live::why`](super::Live::why) and [`Rejected`](super::Rejected) call the layer.
    fn name(&self) -> String;

    /// Reads the values. It is called whenever the live value is made anew, and may block.
    ///
    /// # Errors
    /// If they cannot be read. The last good value stays in force then, as it does if this panics.
    fn values(&self) -> Result<Self::Values, Box<dyn Error + Send + Sync>>;
}

/// A layer of fixed values, for example of defaults.
///
/// ```
/// use tidings::live::{Layer, Values};
///
/// let defaults = Values::new("defaults", [("port", 80)].into_iter().collect::<std::collections::BTreeMap<_, _>>());
/// assert_eq!(defaults.name(), "defaults");
/// ```
#[derive(Clone, Debug)]
pub struct Values<V> {
    name: String,
    values: V,
}

impl<V: Serialize + Clone + Send + Sync + 'static> Values<V> {
    /// A layer of this name with these values.
    pub fn new(name: impl Into<String>, values: V) -> Self {
        Self { name: name.into(), values }
    }
}

impl<V: Serialize + Clone + Send + Sync + 'static> Layer for Values<V> {
    type Values = V;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn values(&self) -> Result<V, Box<dyn Error + Send + Sync>> {
        Ok(self.values.clone())
    }
}

/// What a layer gave: its name, and its values or why it has none.
pub(super) type LayerRead = (String, Result<Value, Cause>);

/// A layer of any kind.
pub(super) type AnyLayer = Box<dyn Fn() -> LayerRead + Send + Sync>;

/// Makes a layer readable without its type.
pub(super) fn any_layer(layer: impl Layer) -> AnyLayer {
    let name = layer.name();
    Box::new(move || {
        let values = guarded(|| Ok(serde_json::to_value(layer.values()?)?));
        (name.clone(), values.map_err(Cause::new))
    })
}

/// Calls code of the user, and makes an error of its panic.
pub(super) fn guarded<T>(
    call: impl FnOnce() -> Result<T, Box<dyn Error + Send + Sync>>,
) -> Result<T, Box<dyn Error + Send + Sync>> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(panic_text(&*panic).into()))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.map_or_else(|| "it panicked".to_owned(), |text| format!("it panicked: {text}"))
}
