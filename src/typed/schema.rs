//! JSON Schemas that stand in the store beside the values that they describe.
//!
//! A schema is a value like any other, under a key of its own. It is for those who write values as JSON without the Rust
//! type at hand: people, scripts, a dashboard. The library puts schemas and checks nothing with them: it has the types.
//! The program `tidings` checks.

/// A key that ends like this holds a JSON Schema (draft 2020-12) of the values whose keys begin with what stands before
/// it: `limits/$schema` is for `limits/api`. Where several are, the one with the longest beginning counts. It is no value
/// itself: typed maps and live values do not see it, and no schema is for it.
pub const SCHEMA_SUFFIX: &str = "$schema";

/// The keyword with which a schema says that it is for one value whose fields stand under keys of their own, as those of
/// a [`Live`](crate::Live): with `"x-tidings-fields": true` in `app/$schema`, the value of `app/db/pool` has to satisfy
/// what the schema says of the field `pool` of the field `db`. Such a schema should require no field: each key gives a
/// part of the value.
pub const SCHEMA_OF_FIELDS: &str = "x-tidings-fields";

/// Whether a key holds a schema.
pub(crate) fn is_schema(key: &str) -> bool {
    key.ends_with(SCHEMA_SUFFIX)
}

#[cfg(feature = "schemars")]
pub(super) use of_types::{bytes, key, of_fields, of_values};

#[cfg(feature = "schemars")]
mod of_types {
    use schemars::generate::SchemaSettings;
    use schemars::transform::{RecursiveTransform, Transform, transform_subschemas};
    use schemars::{JsonSchema, Schema};
    use serde_json::Value;

    use super::{SCHEMA_OF_FIELDS, SCHEMA_SUFFIX};

    /// The schema that every value of a type satisfies.
    pub(in crate::typed) fn of_values<T: JsonSchema>() -> Schema {
        let settings = SchemaSettings::draft2020_12().with_transform(RecursiveTransform(state_range));
        settings.into_generator().into_root_schema_for::<T>()
    }

    /// States the range of an integer. Of the larger types there is only the format, which validators pass over.
    fn state_range(schema: &mut Schema) {
        let range: (Value, Value) = match schema.get("format").and_then(Value::as_str) {
            Some("int32") => (i32::MIN.into(), i32::MAX.into()),
            Some("uint32") => (0.into(), u32::MAX.into()),
            Some("int64" | "int") => (i64::MIN.into(), i64::MAX.into()),
            Some("uint64" | "uint") => (0.into(), u64::MAX.into()),
            _ => return,
        };
        let keywords = schema.ensure_object();
        keywords.entry("minimum").or_insert(range.0);
        keywords.entry("maximum").or_insert(range.1);
    }

    /// The schema that every part of a value of a type satisfies.
    pub(in crate::typed) fn of_fields<T: JsonSchema>() -> Schema {
        let mut schema = of_values::<T>();
        OfParts.transform(&mut schema);
        schema.insert(SCHEMA_OF_FIELDS.to_owned(), true.into());
        schema
    }

    /// The key of the schema of the values below a prefix.
    pub(in crate::typed) fn key(prefix: &str) -> String {
        format!("{prefix}{SCHEMA_SUFFIX}")
    }

    /// A schema as it stands in the store.
    pub(in crate::typed) fn bytes(schema: Schema) -> Vec<u8> {
        let mut schema = schema.to_value();
        // Another program may have been built with objects that keep their order: the bytes must be the same.
        schema.sort_all_objects();
        schema.to_string().into_bytes()
    }

    /// Takes from a schema what a part of a value need not satisfy: that fields are there, and that exactly one of
    /// several forms is meant, because a part may fit to several.
    struct OfParts;

    impl Transform for OfParts {
        fn transform(&mut self, schema: &mut Schema) {
            for keyword in ["required", "minProperties", "dependentRequired"] {
                schema.remove(keyword);
            }
            // Beside an `anyOf`, which derived schemas do not have, it is dropped: too little is refused, not too much.
            if let Some(forms) = schema.remove("oneOf")
                && schema.get("anyOf").is_none()
            {
                schema.insert("anyOf".to_owned(), forms);
            }
            transform_subschemas(self, schema);
        }
    }
}
