//! What is not acceptable: it is named, the last good value stays, and nothing panics.

use std::error::Error as StdError;
use std::fs;

use serde::Deserialize;
use tidings::Live;
use tidings::live::{Layer, LiveError, LiveSource, LiveState};
use tidings::sim::Sim;
use tidings_proptest::{Folder, ms};

use crate::{Plain, shorts, started};

/// Reads a number from a file, and panics if it is too great.
struct File(std::path::PathBuf);

impl Layer for File {
    type Values = Plain;

    fn name(&self) -> String {
        "file".to_owned()
    }

    fn values(&self) -> Result<Plain, Box<dyn StdError + Send + Sync>> {
        let number: u32 = fs::read_to_string(&self.0)?.parse()?;
        assert!(number < 100, "{number} is too great");
        Ok([("n".to_owned(), number)].into())
    }
}

#[test]
fn layer_that_fails_is_named_and_the_last_good_value_stays() {
    let (mut sim, folder) = (Sim::new(1).nodes(1), Folder::new());
    let path = folder.at("n");
    fs::write(&path, "7").unwrap();
    let builder = || Live::<Plain>::builder(&sim.node(0), "p/").under(File(path.clone()));
    let (builder, another) = (builder(), builder());
    let live = started(builder, &mut sim).unwrap();
    for (wrong, text) in
        [("x", "invalid digit"), ("100", "it panicked: 100 is too great"), ("", "empty string")]
    {
        fs::write(&path, wrong).unwrap();
        live.reload();
        sim.run_for(ms(1));
        assert_eq!((live.load()["n"], live.state()), (7, LiveState::Rejected));
        assert_eq!(shorts(&live.rejected()), ["layer file []"]);
        assert!(live.rejected()[0].to_string().contains(text), "{}", live.rejected()[0]);
    }
    fs::remove_file(&path).unwrap();
    live.reload();
    sim.run_for(ms(1));
    assert!(live.rejected()[0].to_string().contains("No such file"), "{}", live.rejected()[0]);
    #[cfg(unix)]
    {
        // Links that lead in a circle.
        std::os::unix::fs::symlink(&path, folder.at("m")).unwrap();
        std::os::unix::fs::symlink(folder.at("m"), &path).unwrap();
        live.reload();
        sim.run_for(ms(1));
        assert!(live.rejected()[0].to_string().contains("symbolic links"), "{}", live.rejected()[0]);
        assert_eq!(live.load()["n"], 7);
        fs::remove_file(&path).unwrap();
    }
    let Err(LiveError::Rejected(rejected)) = started(another, &mut sim) else { panic!("there is no value") };
    assert_eq!(shorts(&rejected), ["layer file []"]);
    fs::write(&path, "8").unwrap();
    live.reload();
    sim.run_for(ms(1));
    assert_eq!((live.load()["n"], live.state(), live.rejected().len()), (8, LiveState::Current, 0));
}

/// A value whose decoding panics.
#[derive(Debug)]
struct Panics;

impl<'de> Deserialize<'de> for Panics {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        assert_ne!(u32::deserialize(deserializer)?, 13, "on purpose");
        Ok(Self)
    }
}

#[test]
fn user_code_that_panics_ends_nothing() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    node.put("n", "1").unwrap();
    let check = |_: &u32| -> Result<(), String> { panic!("on purpose") };
    let refused = started(Live::<u32>::builder(&node, "n").exact().validate(check), &mut sim);
    let live = started(Live::<Panics>::builder(&node, "n").exact(), &mut sim).unwrap();
    node.put("n", "13").unwrap();
    sim.run_for(ms(1));
    let rejected = shorts(&live.rejected());
    node.put("n", "2").unwrap();
    sim.run_for(ms(1));
    _ = std::panic::take_hook();
    assert!(refused.unwrap_err().to_string().contains("it panicked: on purpose"));
    assert_eq!((rejected, live.state()), (vec!["n by n0 []".to_owned()], LiveState::Current));
}

#[test]
fn one_key_holds_the_whole_value() {
    let mut sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    let missing = started(Live::<u32>::builder(&node, "n").exact(), &mut sim).unwrap_err();
    assert!(missing.to_string().contains("the key \"n\" holds no value"), "{missing}");
    node.put("n", "5").unwrap();
    node.put("n/other", "\"a key beside it\"").unwrap();
    let live = started(Live::<u32>::builder(&node, "n").exact(), &mut sim).unwrap();
    node.delete("n").unwrap();
    sim.run_for(ms(1));
    assert_eq!((*live.load(), live.state()), (5, LiveState::Rejected));
    node.put("n", "6").unwrap();
    sim.run_for(ms(1));
    assert_eq!((*live.load(), live.why("").len()), (6, 1));
}

#[test]
fn bad_keys_are_named_with_their_writer() {
    let mut sim = Sim::new(1).nodes(2);
    sim.run_for(ms(1_000));
    let live = started(Live::<Plain>::builder(&sim.node(0), "p/"), &mut sim).unwrap();
    let bad = sim.node(1);
    bad.batch()
        .put("p/a", "1")
        .put("p/b//c", "1")
        .put("p/", "1")
        .put("p/d", [0xff])
        .put("p/a/b", "2")
        .commit()
        .unwrap();
    sim.run_for(ms(1_000));
    let mut named = shorts(&live.rejected());
    named.sort();
    assert_eq!(named, ["p/ by n1 []", "p/a by n1 [a]", "p/b//c by n1 [b..c]", "p/d by n1 [d]"]);
    assert!(live.load().is_empty());
    let stamps = live.rejected().iter().all(|it| match &it.from {
        Some(LiveSource::Key { key, stamp, .. }) => bad.get(key).unwrap().stamp() == *stamp,
        _ => false,
    });
    assert!(stamps);
    ["p/a/b", "p/b//c", "p/", "p/d"].iter().for_each(|key| _ = bad.delete(key).unwrap());
    sim.run_for(ms(1_000));
    assert_eq!((live.load()["a"], live.rejected().len()), (1, 0));
}
