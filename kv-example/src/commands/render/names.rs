//! Which file a key is, and which keys cannot be files.

use std::collections::BTreeMap;

use tidings::map::SCHEMA_SUFFIX;

use crate::table;

/// The longest name of a file that systems permit.
const NAME_BYTES_MAX: usize = 255;

/// The values by their place below the directory; and what is left out, with the reason.
#[derive(Debug, Default)]
pub(super) struct Named<'a> {
    pub(super) files: BTreeMap<&'a str, &'a [u8]>,
    pub(super) left_out: Vec<String>,
}

pub(super) fn named<'a>(prefix: &str, keys: &'a BTreeMap<String, Vec<u8>>) -> Named<'a> {
    let mut named = Named::default();
    for (key, value) in keys.iter().filter(|(key, _)| !key.ends_with(SCHEMA_SUFFIX)) {
        let path = key.strip_prefix(prefix).unwrap_or(key);
        match path.split('/').find_map(fault) {
            None => _ = named.files.insert(path, value),
            Some(fault) => named.left_out.push(format!("\"{}\": {fault}", table::clean(key))),
        }
    }
    let paths: Vec<&str> = named.files.keys().copied().collect();
    let parents = |path: &'a str| path.match_indices('/').map(move |(at, _)| (&path[..at], path));
    let directories: BTreeMap<&str, &str> = paths.iter().flat_map(|path| parents(path)).collect();
    for path in paths {
        if let Some(within) = directories.get(path) {
            named.files.remove(path);
            let [path, within] = [path, within].map(table::clean);
            named
                .left_out
                .push(format!("\"{prefix}{path}\": it is also the directory of \"{prefix}{within}\""));
        }
    }
    named
}

/// Why a part of a key is no name of a file.
fn fault(part: &str) -> Option<&'static str> {
    if part.is_empty() {
        Some("a part of it is empty, or it begins or ends with /")
    } else if part == "." || part.starts_with("..") {
        Some("a part of it is \".\", or begins with \"..\"")
    } else if part.contains('\0') {
        Some("it has a NUL in it")
    } else if part.len() > NAME_BYTES_MAX {
        Some("a part of it is longer than 255 bytes")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_cannot_be_files_are_left_out_by_name() {
        let long = "n".repeat(256);
        let good = ["a", "a.b", "a-b/c", ".hidden"].map(|key| format!("p/{key}"));
        let bad = [
            "",
            "/etc/passwd",
            "../up",
            "x/../../up",
            "x/./y",
            "x//y",
            "x/",
            "nul\0",
            "..data",
            "b/...x",
            &long,
        ];
        let bad = bad.map(|key| format!("p/{key}"));
        let keys = good.iter().chain(&bad).map(|key| (key.clone(), Vec::new())).collect();
        let named = named("p/", &keys);
        assert_eq!(named.files.into_keys().collect::<Vec<_>>(), [".hidden", "a", "a-b/c", "a.b"]);
        assert_eq!(named.left_out.len(), bad.len(), "{:?}", named.left_out);
    }

    #[test]
    fn key_that_is_also_a_directory_is_left_out() {
        let keys = ["a", "a.b", "a/b", "a/b/c", "ab", "s$schema", "$schema", "z"];
        let keys = keys.map(|key| (key.to_owned(), Vec::new())).into();
        let named = named("", &keys);
        assert_eq!(named.files.into_keys().collect::<Vec<_>>(), ["a.b", "a/b/c", "ab", "z"]);
        assert_eq!(named.left_out.len(), 2);
        assert!(
            named.left_out[0].contains("\"a\"") && named.left_out[0].contains("\"a/b"),
            "{:?}",
            named.left_out
        );
    }
}
