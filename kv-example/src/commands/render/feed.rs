//! The keys below a prefix, or a set of flags, as a node tells them: over broken connections and restarts of the node.
//!
//! Keys are followed by whole batches. A node that refuses such a stream, because it serves as many as it may or is of
//! an older version, tells them key by key instead, until the next connection.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::client::{Client, Stream, Told, quoted};
use crate::commands::keys::value_of;
use crate::exit::{Exit, Failure};

/// Events that were not looked at yet.
const EVENTS_MAX: usize = 64;
/// Between two attempts to connect: doubled from the first to the second.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The key under which a set of flags is told, as a file.
pub(super) const FLAGS_FILE: &str = "flags.json";

/// What is followed.
pub(super) enum Source {
    /// The keys below a prefix.
    Keys(String),
    /// A set of flags: the definitions in force on the node.
    Flags(String),
}

impl Source {
    fn stream_path(&self) -> String {
        match self {
            Self::Keys(prefix) => format!("/v1/watch?prefix={}", quoted(prefix)),
            Self::Flags(set) => format!("/ofrep/v1/events?set={}", quoted(set)),
        }
    }

    /// The stream of whole batches, if there is one.
    fn whole_path(&self) -> Option<String> {
        match self {
            Self::Keys(prefix) => Some(format!("/v1/watch?prefix={}&whole=true", quoted(prefix))),
            Self::Flags(_) => None,
        }
    }

    /// What an event says of keys. That of a set says only that it has changed, so that the set is asked for: what comes
    /// is at least as new as the event.
    fn told(&self, client: &Client, event: Told) -> Result<Vec<Told>, Failure> {
        let Self::Flags(set) = self else { return Ok(vec![event]) };
        let file = client.get(&format!("/v1/flag-sets/{}/file", quoted(set)))?;
        if !file.is_found() {
            return Err(Failure::new(Exit::Failed, "the node is of a version that gives no sets as files"));
        }
        let data = json!({ "key": FLAGS_FILE, "value": String::from_utf8_lossy(&file.body) });
        Ok([("put", data), ("current", json!({}))].map(|(name, data)| event_of(name, data)).into())
    }
}

fn event_of(name: &str, data: Value) -> Told {
    Told { name: name.to_owned(), id: None, data }
}

/// What there is to know.
pub(super) enum Fed {
    Told(Told),
    /// The connection is gone, or cannot be made; it is tried again.
    Lost(String),
    /// It cannot be followed.
    Failed(Failure),
}

/// Reads the stream on a thread of its own, which ends with the process.
pub(super) struct Feed(mpsc::Receiver<Fed>);

impl Feed {
    pub(super) fn start(client: Client, source: Source, is_lasting: bool) -> Self {
        let (sender, fed) = mpsc::channel(EVENTS_MAX);
        std::thread::spawn(move || follow(&client, &source, is_lasting, &sender));
        Self(fed)
    }

    pub(super) async fn next(&mut self) -> Fed {
        let gone = || Fed::Failed(Failure::new(Exit::Failed, "the node is not followed any more"));
        self.0.recv().await.unwrap_or_else(gone)
    }
}

/// Follows until nobody listens, or it is of no use to try again.
fn follow(client: &Client, source: &Source, is_lasting: bool, sender: &mpsc::Sender<Fed>) {
    let mut at = Position::default();
    let (mut pause, mut has_connected) = (PAUSE_MIN, false);
    loop {
        let failure = match open(client, source, &mut at) {
            Ok(mut stream) => {
                (pause, has_connected) = (PAUSE_MIN, true);
                // Without a place to go on from, everything is told again.
                let begins = at.last().is_none().then(|| event_of("resync", Value::Null));
                at.is_whole &= begins.is_none();
                let events = std::iter::from_fn(|| stream.next()).map(|event| source.told(client, event));
                match pass_on(begins.map(|event| Ok(vec![event])).into_iter().chain(events), &mut at, sender)
                {
                    Ok(()) => return,
                    Err(failure) => failure,
                }
            }
            Err(failure) => failure,
        };
        let is_away = failure.is(Exit::Unreachable) || failure.is(Exit::TimedOut);
        let passes = is_away || (has_connected && failure.is(Exit::Refused));
        let news = if is_lasting && passes { Fed::Lost(failure.to_string()) } else { Fed::Failed(failure) };
        let is_over = matches!(news, Fed::Failed(_));
        if sender.blocking_send(news).is_err() || is_over {
            return;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Opens the stream of whole batches, from which `at` begins anew, or that of single keys, which goes on at `at`.
fn open(client: &Client, source: &Source, at: &mut Position) -> Result<Stream, Failure> {
    ready(client)?;
    if let Some(path) = source.whole_path() {
        match client.stream("GET", &path, None) {
            Ok(stream) => {
                *at = Position::default();
                return Ok(stream);
            }
            Err(failure) if failure.is_refusal("too_many_watchers") || failure.is_refusal("bad_request") => {}
            Err(failure) => return Err(failure),
        }
    }
    client.stream("GET", &source.stream_path(), at.last())
}

/// Passes events on until nobody listens, or the connection fails.
fn pass_on(
    events: impl Iterator<Item = Result<Vec<Told>, Failure>>,
    at: &mut Position,
    sender: &mpsc::Sender<Fed>,
) -> Result<(), Failure> {
    for told in events {
        for told in told? {
            at.pass(&told);
            if sender.blocking_send(Fed::Told(told)).is_err() {
                return Ok(());
            }
        }
    }
    Err(Failure::new(Exit::Unreachable, "the connection to the node is gone"))
}

/// A node that has just started may lack what its cluster holds: that must not be taken for deleted.
fn ready(client: &Client) -> Result<(), Failure> {
    client.ready().map_err(|failure| Failure::new(Exit::Unreachable, failure.to_string()))
}

/// How far the stream was read.
#[derive(Default)]
struct Position {
    last: Option<String>,
    /// Everything that there was at its beginning was told.
    is_whole: bool,
}

impl Position {
    fn pass(&mut self, told: &Told) {
        match told.name.as_str() {
            "resync" => *self = Self::default(),
            "current" => self.is_whole = true,
            _ => self.last = told.id.clone().or(self.last.take()),
        }
    }

    /// Where to go on. Half of what there was is no place for that.
    fn last(&self) -> Option<&str> {
        self.last.as_deref().filter(|_| self.is_whole)
    }
}

/// The keys and values as they are, and those that are being told anew, or are part of a batch of which more is to come.
#[derive(Default)]
pub(super) struct Keys {
    now: BTreeMap<String, Vec<u8>>,
    next: Option<BTreeMap<String, Vec<u8>>>,
}

impl Keys {
    /// Takes an event. Returns whether the keys have changed.
    pub(super) fn apply(&mut self, told: &Told) -> bool {
        let key = told.data["key"].as_str().unwrap_or_default();
        let into = self.next.as_mut().unwrap_or(&mut self.now);
        match told.name.as_str() {
            "put" => _ = into.insert(key.to_owned(), value_of(&told.data).unwrap_or_default()),
            "delete" | "expired" => _ = into.remove(key),
            "state" | "change" => return self.apply_whole(&told.data),
            "resync" => self.next = Some(BTreeMap::new()),
            "current" => match self.next.take() {
                Some(next) => self.now = next,
                None => return false,
            },
            _ => return false,
        }
        self.next.is_none()
    }

    /// Takes a part of a whole change. Returns whether it is the last one, with which all of them count.
    fn apply_whole(&mut self, part: &Value) -> bool {
        let is_last = part["more"] != true;
        if !is_last {
            self.next.get_or_insert_with(|| self.now.clone());
        }
        let into = self.next.as_mut().unwrap_or(&mut self.now);
        for entry in part["entries"].as_array().into_iter().flatten() {
            let key = entry["key"].as_str().unwrap_or_default();
            into.insert(key.to_owned(), value_of(entry).unwrap_or_default());
        }
        for key in part["gone"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            into.remove(key);
        }
        if is_last {
            self.now = self.next.take().unwrap_or_else(|| std::mem::take(&mut self.now));
        }
        is_last
    }

    pub(super) fn now(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(name: &str, key: &str) -> Told {
        Told { name: name.to_owned(), id: Some(key.to_owned()), data: json!({ "key": key, "value": key }) }
    }

    #[test]
    fn keys_that_are_told_anew_count_once_all_are_there() {
        let mut keys = Keys::default();
        let names = |keys: &Keys| keys.now().keys().cloned().collect::<Vec<_>>();
        assert!(
            !keys.apply(&event_of("resync", Value::Null))
                && !keys.apply(&told("put", "a"))
                && !keys.apply(&told("put", "b"))
        );
        assert!(names(&keys).is_empty());
        assert!(keys.apply(&told("current", "")));
        assert_eq!(names(&keys), ["a", "b"]);
        assert!(keys.apply(&told("delete", "a")) && keys.apply(&told("put", "c")));
        assert_eq!(names(&keys), ["b", "c"]);
        assert!(
            !keys.apply(&event_of("resync", Value::Null))
                && !keys.apply(&told("put", "d"))
                && !keys.apply(&told("delete", "d"))
        );
        assert_eq!(names(&keys), ["b", "c"], "the earlier ones count meanwhile");
        assert!(keys.apply(&told("current", "")) && names(&keys).is_empty());
        assert!(!keys.apply(&told("current", "")) && !keys.apply(&told("unknown", "")));
    }

    #[test]
    fn parts_of_a_batch_count_once_all_are_there() {
        let mut keys = Keys::default();
        let part = |name: &str, keys: &[&str], gone: &[&str], more: bool| {
            let entries: Vec<Value> = keys.iter().map(|key| json!({ "key": key, "value": key })).collect();
            event_of(name, json!({ "entries": entries, "gone": gone, "more": more }))
        };
        let names = |keys: &Keys| keys.now().keys().cloned().collect::<Vec<_>>();
        keys.apply(&event_of("resync", Value::Null));
        assert!(!keys.apply(&part("state", &["a"], &[], true)) && names(&keys).is_empty());
        assert!(keys.apply(&part("state", &["b"], &[], false)));
        assert_eq!(names(&keys), ["a", "b"]);
        assert!(!keys.apply(&part("change", &["c"], &[], true)));
        assert_eq!(names(&keys), ["a", "b"], "the rest is to come");
        assert!(keys.apply(&part("change", &[], &["a"], false)));
        assert_eq!(names(&keys), ["b", "c"]);
        assert!(!keys.apply(&event_of("waiting", json!({}))), "that is no change");
        assert!(keys.apply(&part("change", &["d"], &["b"], false)));
        assert_eq!(names(&keys), ["c", "d"]);
        // A connection that broke within a batch, and one that tells everything anew.
        keys.apply(&part("change", &["e"], &[], true));
        keys.apply(&event_of("resync", Value::Null));
        assert!(keys.apply(&part("state", &["d"], &[], false)));
        assert_eq!(names(&keys), ["d"]);
    }

    #[test]
    fn half_of_the_keys_is_no_place_to_go_on_from() {
        let mut at = Position::default();
        at.pass(&told("put", "1"));
        assert_eq!(at.last(), None);
        at.pass(&told("current", ""));
        assert_eq!(at.last(), Some("1"));
        at.pass(&told("delete", "2"));
        assert_eq!(at.last(), Some("2"));
        at.pass(&event_of("resync", Value::Null));
        at.pass(&told("put", "3"));
        assert_eq!(at.last(), None);
    }
}
