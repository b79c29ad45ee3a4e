//! How typed maps keep values as bytes.

use std::error::Error;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A serde format in which a [`Map`](crate::Map) keeps its values. All nodes must use the same one.
///
/// ```
/// use tidings::map::Codec;
/// use serde::{Serialize, de::DeserializeOwned};
/// type BoxedError = Box<dyn std::error::Error + Send + Sync>;
///
/// /// JSON with line breaks, for people who read the store.
/// struct Pretty;
///
/// impl Codec for Pretty {
///     fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, BoxedError> {
///         Ok(serde_json::to_vec_pretty(value)?)
///     }
///
///     fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BoxedError> {
///         Ok(serde_json::from_slice(bytes)?)
///     }
/// }
///
/// let sim = tidings::sim::Sim::new(1).nodes(1);
/// let lists = sim.node(0).map::<Vec<u32>>("lists/").with_codec::<Pretty>();
/// lists.put("one", &vec![1])?;
/// assert_eq!(sim.node(0).get("lists/one").unwrap().value(), b"[\n  1\n]");
/// # Ok::<(), tidings::Error>(())
/// ```
pub trait Codec: 'static {
    /// Writes a value as bytes.
    ///
    /// # Errors
    /// If the format cannot express the value.
    fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>>;

    /// Reads a value from bytes, which may come from any node.
    ///
    /// # Errors
    /// If the bytes are not a value of this type.
    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Box<dyn Error + Send + Sync>>;
}

/// Values as JSON, without line breaks.
#[derive(Clone, Copy, Debug)]
pub struct Json;

impl Codec for Json {
    fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        Ok(serde_json::to_vec(value)?)
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Box<dyn Error + Send + Sync>> {
        Ok(serde_json::from_slice(bytes)?)
    }
}
