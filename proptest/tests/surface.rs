//! The public surface of the crate, read from its sources and compared with `docs/surface.txt`, so that it changes only
//! on purpose. `TIDINGS_SURFACE=write cargo test -p tidings-proptest --test surface` writes the page anew.
//!
//! The listing has every name that a user can reach with its public fields, variants, methods and trait
//! implementations, those of all features together. What is hidden from the documentation is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use quote::ToTokens;
use syn::{Attribute, Fields, ImplItem, Item, TraitItem, UseTree, Visibility};

/// The most names in the crate root. Section 10 of the design asks for about 50.
const ROOT_NAMES_MAX: usize = 60;

/// The public items of the crate, by module path: the root is empty.
type Surface = BTreeMap<String, BTreeSet<String>>;

fn read(file: &Path) -> syn::File {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Items with those of the modules among them, outside of tests.
fn flattened(items: Vec<Item>) -> Vec<Item> {
    let within = |item| match item {
        Item::Mod(module) if module.content.is_some() && is_shown(&module.attrs, None) => {
            flattened(module.content.expect("just looked at").1)
        }
        item => vec![item],
    };
    items.into_iter().flat_map(within).collect()
}

/// All items of the files below a folder, outside of tests.
fn items_below(folder: &Path) -> Vec<Item> {
    let mut items = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder exists") {
        let path: PathBuf = entry.expect("the folder can be read").path();
        if path.is_dir() {
            items.extend(items_below(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            items.extend(flattened(read(&path).items));
        }
    }
    items
}

/// Whether an attribute hides its item from users: from the documentation, or in all builds but tests.
fn hides(attribute: &Attribute) -> bool {
    let text = attribute.to_token_stream().to_string();
    text.contains("doc (hidden)") || text == "# [cfg (test)]" || text.contains("\"__")
}

fn is_shown(attributes: &[Attribute], visibility: Option<&Visibility>) -> bool {
    visibility.is_none_or(|visibility| matches!(visibility, Visibility::Public(_)))
        && !attributes.iter().any(hides)
}

/// The derived traits of an item; other attributes are no part of the surface.
fn keep_derives(attributes: &mut Vec<Attribute>) {
    attributes.retain(|attribute| {
        ["derive", "non_exhaustive", "must_use"].iter().any(|kept| attribute.path().is_ident(kept))
    });
}

fn keep_public_fields(fields: &mut Fields) {
    let named = match fields {
        Fields::Named(fields) => &mut fields.named,
        Fields::Unnamed(fields) => &mut fields.unnamed,
        Fields::Unit => return,
    };
    let kept = std::mem::take(named).into_iter().filter(|field| is_shown(&field.attrs, Some(&field.vis)));
    *named = kept.collect();
    named.iter_mut().for_each(|field| field.attrs.clear());
}

/// An item as the listing shows it: without documentation, private fields and bodies. `None`: it is not shown.
fn shown(mut item: Item) -> Option<Item> {
    match &mut item {
        Item::Struct(item) => {
            keep_derives(&mut item.attrs);
            keep_public_fields(&mut item.fields);
        }
        Item::Enum(item) => {
            keep_derives(&mut item.attrs);
            for variant in &mut item.variants {
                variant.attrs.clear();
                variant.fields.iter_mut().for_each(|field| field.attrs.clear());
            }
        }
        Item::Trait(item) => {
            keep_derives(&mut item.attrs);
            for method in &mut item.items {
                if let TraitItem::Fn(method) = method {
                    method.attrs.clear();
                    method.default = None;
                }
            }
        }
        Item::Const(item) => item.attrs.clear(),
        Item::Type(item) => item.attrs.clear(),
        Item::Fn(item) => {
            item.attrs.clear();
            item.block.stmts.clear();
        }
        Item::Impl(item) => {
            item.attrs.clear();
            let is_of_trait = item.trait_.is_some();
            item.items.retain(|part| match part {
                ImplItem::Fn(method) => !is_of_trait && is_shown(&method.attrs, Some(&method.vis)),
                ImplItem::Const(part) => !is_of_trait && is_shown(&part.attrs, Some(&part.vis)),
                ImplItem::Type(_) => true,
                _ => false,
            });
            for part in &mut item.items {
                match part {
                    ImplItem::Fn(method) => {
                        keep_derives(&mut method.attrs);
                        method.block.stmts.clear();
                    }
                    ImplItem::Const(part) => part.attrs.clear(),
                    _ => {}
                }
            }
            if item.items.is_empty() && !is_of_trait {
                return None;
            }
        }
        _ => return None,
    }
    Some(item)
}

fn name_of(item: &Item) -> Option<String> {
    let (name, attributes, visibility) = match item {
        Item::Struct(item) => (&item.ident, &item.attrs, &item.vis),
        Item::Enum(item) => (&item.ident, &item.attrs, &item.vis),
        Item::Trait(item) => (&item.ident, &item.attrs, &item.vis),
        Item::Const(item) => (&item.ident, &item.attrs, &item.vis),
        Item::Type(item) => (&item.ident, &item.attrs, &item.vis),
        Item::Fn(item) => (&item.sig.ident, &item.attrs, &item.vis),
        _ => return None,
    };
    is_shown(attributes, Some(visibility)).then(|| name.to_string())
}

/// The type that an implementation is for.
fn implementor(item: &Item) -> Option<String> {
    let Item::Impl(item) = item else { return None };
    let syn::Type::Path(path) = &*item.self_ty else { return None };
    path.path.segments.last().filter(|_| is_shown(&item.attrs, None)).map(|name| name.ident.to_string())
}

fn text_of(item: Item) -> String {
    let file = syn::File { shebang: None, attrs: Vec::new(), items: vec![item] };
    prettyplease::unparse(&file).replace(" {}", ";")
}

fn names_of(tree: &UseTree, names: &mut BTreeSet<String>) {
    match tree {
        UseTree::Path(path) => names_of(&path.tree, names),
        UseTree::Name(name) => _ = names.insert(name.ident.to_string()),
        UseTree::Group(group) => group.items.iter().for_each(|tree| names_of(tree, names)),
        UseTree::Rename(_) | UseTree::Glob(_) => panic!("the root re-exports each name under its own"),
    }
}

/// The names that a module makes public: those that it re-exports or declares, and those of its public modules.
fn exported(path: &str, sources: &Path, items: &[Item], surface: &mut Surface) {
    for item in items {
        match item {
            Item::Use(item) if is_shown(&item.attrs, Some(&item.vis)) => {
                names_of(&item.tree, surface.entry(path.to_owned()).or_default());
            }
            Item::Mod(item) if is_shown(&item.attrs, Some(&item.vis)) => {
                let within = format!("{path}{}::", item.ident);
                if let Some((_, items)) = &item.content {
                    exported(&within, sources, items, surface);
                } else {
                    let file = read(&sources.join(format!("{}.rs", item.ident)));
                    exported(&within, sources, &file.items, surface);
                }
            }
            item => surface.entry(path.to_owned()).or_default().extend(name_of(item)),
        }
    }
}

/// What the listing says of each name. Ids are declared by one macro and have one description.
fn descriptions(items: Vec<Item>) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for item in items {
        if let Item::Macro(item) = &item
            && item.mac.path.is_ident("id")
        {
            let tokens = item.mac.tokens.to_string();
            let name = tokens.split_whitespace().last().expect("an id has a name").to_owned();
            found.entry(name).or_default().push("id! declares it\n".to_owned());
        } else if let Some(name) = name_of(&item).or_else(|| implementor(&item))
            && let Some(item) = shown(item)
        {
            let text = text_of(item);
            found.entry(name).or_default().push(text);
        }
    }
    found
}

fn listing(sources: &Path) -> (String, usize) {
    let (mut surface, mut text) = (Surface::new(), String::new());
    exported("", sources, &read(&sources.join("lib.rs")).items, &mut surface);
    let described = descriptions(items_below(sources));
    for (path, names) in surface.iter().filter(|(_, names)| !names.is_empty()) {
        _ = write!(text, "# tidings::{path}\n\n");
        for name in names {
            let lines = described.get(name).unwrap_or_else(|| panic!("{name} is exported and not declared"));
            let mut lines = lines.clone();
            lines[1..].sort();
            _ = write!(text, "## {name}\n\n{}\n", lines.concat());
        }
    }
    (text, surface[""].len())
}

#[test]
fn public_surface_changes_only_on_purpose() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (text, names) = listing(&root.join("src"));
    let page = root.join("docs/surface.txt");
    if std::env::var("TIDINGS_SURFACE").is_ok_and(|mode| mode == "write") {
        fs::write(&page, &text).expect("the page can be written");
    }
    let known = fs::read_to_string(&page).expect("the page exists");
    let differs = known.lines().zip(text.lines()).find(|(known, present)| known != present);
    assert!(
        known == text,
        "the public surface changed, first at {differs:?}; TIDINGS_SURFACE=write writes the page anew"
    );
    assert!(names <= ROOT_NAMES_MAX, "{names} names in the crate root");
}

#[test]
fn private_parts_are_not_listed_and_public_ones_are() {
    let source = "
        /// Text.
        #[derive(Clone)]
        pub struct Shown { pub field: u8, hidden: u8 }
        pub(crate) struct Hidden;
        impl Shown {
            /// Text.
            pub fn method(&self) -> u8 { self.hidden }
            fn private(&self) {}
            #[doc(hidden)]
            pub fn for_tests(&self) {}
        }
        impl std::fmt::Display for Shown { fn fmt(&self) {} }
        #[cfg(test)]
        mod tests { pub struct InTests; }
    ";
    let described = descriptions(syn::parse_file(source).expect("it is Rust").items);
    let expected = "#[derive(Clone)]\npub struct Shown {\n    pub field: u8,\n}\nimpl Shown {\n    \
                    pub fn method(&self) -> u8;\n}\nimpl std::fmt::Display for Shown;\n";
    assert_eq!(described.keys().collect::<Vec<_>>(), ["Shown"]);
    assert_eq!(described["Shown"].concat(), expected);
}
