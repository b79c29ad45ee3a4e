//! Sets of flags as other programs ask for them: how they name a set, and what is known of the state of one.
//!
//! A state is told from others by a digest, which is equal on all nodes that have the same definitions in force: that
//! of the set as a file for programs that evaluate it themselves, and that of everything that answers follow from, for
//! those that ask for answers. Flags that no file can hold are in the latter alone. Both are computed once for each
//! state, not for each request.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use axum::http::HeaderMap;
use futures_util::stream::{self, Stream, StreamExt};
use ring::digest::SHA256;
use serde_json::{Map, Value};
use tidings::flags::{FlagsEvents, Snapshot};
use tidings::live::LiveState;
use tokio::sync::OwnedSemaphorePermit;

use super::App;

/// The header, and the metadata of gRPC, that names the set.
pub(super) const SELECTOR: &str = "flagd-selector";
/// The set that is meant where none is named.
pub(super) const DEFAULT_SET: &str = "default";
/// The field of a selector that names a set.
const SET_FIELD: &str = "flagSetId";
/// Sets whose states are kept. With more of them, states are computed anew.
const SETS_KEPT_MAX: usize = 256;
/// Sets whose states are computed at the same time. A set has to wait for another one that has the same turn.
const TURNS: usize = 16;

/// A client that follows a set hears of it at most once in this time. What changes in between is one change.
const STATE_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The set that a selector names: `flagSetId=NAME`, or the name alone. An empty one names none.
pub(super) fn named(selector: &str) -> Result<Option<&str>, String> {
    match selector.trim().split_once('=') {
        None => Ok(Some(selector.trim()).filter(|name| !name.is_empty())),
        Some((SET_FIELD, name)) => Ok(Some(name).filter(|name| !name.is_empty())),
        Some((field, _)) => Err(format!(
            "the selector names the field \"{}\", and a set of flags is chosen by {SET_FIELD}=NAME",
            field.escape_default()
        )),
    }
}

/// The set that a header or, without one, another place names.
pub(super) fn asked<'a>(headers: &'a HeaderMap, otherwise: Option<&'a str>) -> Result<&'a str, String> {
    let header = headers.get(SELECTOR).map(|value| value.to_str().map_err(|_| "the selector is not ASCII"));
    let header = header.transpose()?.map(named).transpose()?.flatten();
    let otherwise = otherwise.map(named).transpose()?.flatten();
    Ok(header.or(otherwise).unwrap_or(DEFAULT_SET))
}

/// A set that has no flags.
const NO_FLAGS: &str = r#"{"flags":{}}"#;

/// A definition, or a question, up to this size does not take long, unless the rule repeats parts of itself.
pub(super) const LIGHT_BYTES_MAX: usize = 2 << 10;
/// What repeats parts of a rule: operators over lists, and rules that flags share.
const REPEATING: [&str; 7] =
    [r#""map""#, r#""filter""#, r#""reduce""#, r#""all""#, r#""some""#, r#""none""#, r#""$ref""#];

/// A set as it is now.
pub(super) struct SetState {
    /// Differs from that of every other state in this process, also where the files are equal: a malformed definition
    /// is in no file, and clients that ask for all flags hear of it. `None`: the file has no flags.
    pub(super) number: Option<u64>,
    /// The whole set as JSON, in the format of flagd's files.
    pub(super) file: Arc<str>,
    /// The digest of the file, in hexadecimal digits.
    pub(super) file_digest: String,
    /// The digest of the file and of the flags that are not in it.
    pub(super) digest: String,
    /// What the set says of itself.
    pub(super) metadata: Option<Value>,
    /// Whether a rule may ask for the time: its evaluations can change while the set does not.
    pub(super) may_read_time: bool,
    /// Flags whose evaluation may take long.
    heavy: BTreeSet<String>,
}

impl SetState {
    pub(super) fn new(snapshot: &Snapshot, file: Arc<str>) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = (*file != *NO_FLAGS).then(|| NUMBERS.fetch_add(1, Ordering::Relaxed));
        let read = serde_json::from_str::<Map<String, Value>>(&file);
        // The library bounds the depth of definitions, so that the file can be read. If it could not be, all flags of
        // the set would count as heavy.
        let unread = read.is_err().then(|| snapshot.keys()).into_iter().flatten();
        let fields = read.unwrap_or_default();
        let metadata = fields.get("metadata").cloned();
        let definitions = fields.get("flags").and_then(Value::as_object).into_iter().flatten();
        let definitions = definitions.map(|(flag, definition)| (&**flag, definition.to_string()));
        let may_read_time = snapshot.may_read_time();
        let file_digest = hex(digest(file.as_bytes()));
        let left_out = snapshot.left_out();
        let whole = if left_out.is_empty() {
            file_digest.clone()
        } else {
            let left_out: BTreeMap<&str, &String> =
                left_out.iter().map(|(flag, text)| (&**flag, text)).collect();
            let left_out = serde_json::to_string(&left_out).expect("it consists of texts");
            hex(digest(format!("{file_digest}{left_out}").as_bytes()))
        };
        let left_out = left_out.iter().map(|(flag, text)| (&**flag, text.clone()));
        let heavy = definitions.chain(left_out).filter(|(_, definition)| is_heavy(definition));
        let heavy = heavy.map(|(flag, _)| flag.to_owned());
        let heavy = heavy.chain(unread.map(|flag| flag.to_string())).collect();
        Self { number, file_digest, digest: whole, file, metadata, may_read_time, heavy }
    }

    /// Whether an evaluation of a flag may take so long that others would wait for it.
    pub(super) fn may_take_long(&self, flag: &str) -> bool {
        self.heavy.contains(flag)
    }
}

/// Definitions are written as JSON without escapes that they can do without.
fn is_heavy(definition: &str) -> bool {
    definition.len() > LIGHT_BYTES_MAX || REPEATING.iter().any(|name| definition.contains(name))
}

/// The SHA-256 of some bytes.
pub(super) type Digest = [u8; 32];

pub(super) fn digest(bytes: &[u8]) -> Digest {
    ring::digest::digest(&SHA256, bytes).as_ref().try_into().expect("it has 32 bytes")
}

pub(super) fn hex(digest: Digest) -> String {
    let mut digits = String::with_capacity(2 * digest.len());
    digest.iter().for_each(|byte| write!(digits, "{byte:02x}").expect("a text takes everything"));
    digits
}

/// The states of the sets that somebody has asked for.
///
/// To compute a state takes time in proportion to its set, and so does the text of the set, which the library makes
/// when it is first asked for. One request does both while other tasks go on; those for the same set wait, without a
/// thread. No lock is held meanwhile, so that what is known is told at once.
pub(crate) struct SetStates {
    known: Mutex<BTreeMap<String, KnownState>>,
    /// Of those who compute states, by the names of their sets.
    turns: [tokio::sync::Mutex<()>; TURNS],
    publications: Arc<Publications>,
    /// Wakes [`Publications`].
    events: Mutex<Option<FlagsEvents>>,
}

#[derive(Clone)]
struct KnownState {
    state: Arc<SetState>,
    /// As many publications there had been. As long as there are no more, the text of the present set is made.
    publications: u64,
}

/// Counts how often flags were published, of whatever set, as the waker of events of them. It decides where a state is
/// looked for, never which one counts: that is said by the text of the set.
#[derive(Default)]
struct Publications(AtomicU64);

impl Wake for Publications {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

impl std::fmt::Debug for SetStates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SetStates").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SetStates {
    /// `events` are those of the flags that snapshots are taken of, of any set.
    pub(super) fn new(events: Option<FlagsEvents>) -> Self {
        Self {
            known: Mutex::default(),
            turns: Default::default(),
            publications: Arc::default(),
            events: Mutex::new(events),
        }
    }

    /// A set as it is now, with its state. `take` gives a snapshot of it.
    pub(super) async fn now(&self, set: &str, take: impl Fn() -> Snapshot) -> (Snapshot, Arc<SetState>) {
        if let Some(known) = self.known(set, &take) {
            return known;
        }
        self.follow();
        let _turn = self.turn(set).lock().await;
        // The task that had the turn before may have computed it.
        if let Some(known) = self.known(set, &take) {
            return known;
        }
        tokio::task::block_in_place(|| {
            // Before the snapshot is taken, so that no publication after it counts as one before.
            let publications = self.publications.0.load(Ordering::Acquire);
            let snapshot = take();
            let state = self.computed(set, &snapshot, publications);
            (snapshot, state)
        })
    }

    /// The same if nothing was published since the state was computed.
    fn known(&self, set: &str, take: impl Fn() -> Snapshot) -> Option<(Snapshot, Arc<SetState>)> {
        let publications = self.publications.0.load(Ordering::Acquire);
        let known = lock(&self.known).get(set).filter(|known| known.publications == publications).cloned()?;
        let snapshot = take();
        Arc::ptr_eq(&known.state.file, &snapshot.to_json()).then_some((snapshot, known.state))
    }

    fn computed(&self, set: &str, snapshot: &Snapshot, publications: u64) -> Arc<SetState> {
        let file = snapshot.to_json();
        let known = lock(&self.known).get(set).map(|known| known.state.clone());
        let same = known.filter(|state| Arc::ptr_eq(&state.file, &file));
        let state = same.unwrap_or_else(|| Arc::new(SetState::new(snapshot, file)));
        let mut known = lock(&self.known);
        if *state.file == *NO_FLAGS {
            // Sets that do not exist take no place.
            known.remove(set);
        } else {
            if known.len() >= SETS_KEPT_MAX && !known.contains_key(set) {
                known.clear();
            }
            known.insert(set.to_owned(), KnownState { state: state.clone(), publications });
        }
        state
    }

    fn turn(&self, set: &str) -> &tokio::sync::Mutex<()> {
        let sum = set.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        &self.turns[sum % TURNS]
    }

    /// Counts the next publication. What the event is does not matter.
    fn follow(&self) {
        let waker = Waker::from(self.publications.clone());
        if let Some(events) = &mut *lock(&self.events) {
            _ = events.poll_next_unpin(&mut Context::from_waker(&waker));
        }
    }
}

/// The states of a set: first the present one, unless its digest is `seen`, and then each whose digest differs from the
/// one before; `digest` is one of the two. There is no queue: a slow reader misses states, and never the last one.
/// `permit` is held as long.
pub(super) fn followed(
    app: Arc<App>,
    set: String,
    seen: Option<String>,
    digest: fn(&SetState) -> &String,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Arc<SetState>> + Send {
    // Before the first look, so that no change after it is missed.
    let changes = app.flags.of_set(&set).events();
    stream::unfold(
        (app, set, changes, seen, permit),
        move |(app, set, mut changes, seen, permit)| async move {
            if seen.is_some() {
                tokio::time::sleep(STATE_INTERVAL_MIN).await;
            }
            loop {
                let state = app.set_state(&set).await;
                if seen.as_ref() != Some(digest(&state)) && !is_unknown(&app, &state) {
                    let seen = Some(digest(&state).clone());
                    return Some((state, (app, set, changes, seen, permit)));
                }
                changes.next().await?;
            }
        },
    )
}

impl App {
    /// A set as it is now, with its state.
    pub(super) async fn set_now(&self, set: &str) -> (Snapshot, Arc<SetState>) {
        self.ofrep.states.now(set, || self.flags.snapshot().of_set(set)).await
    }

    pub(super) async fn set_state(&self, set: &str) -> Arc<SetState> {
        self.set_now(set).await.1
    }
}

/// Whether this node knows nothing of a set yet: it has not caught up with a peer or with a batch that is arriving, and
/// what it has shows no flag of the set. A client that is told so keeps what it has.
pub(super) fn is_unknown(app: &App, state: &SetState) -> bool {
    *state.file == *NO_FLAGS && app.flags.state() == LiveState::Stale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_name_a_set_or_are_refused() {
        for (selector, set) in [
            ("", None),
            (" ", None),
            ("flagSetId=", None),
            ("mobile", Some("mobile")),
            ("flagSetId=mobile", Some("mobile")),
            ("flagSetId=a=b", Some("a=b")),
        ] {
            assert_eq!(named(selector), Ok(set), "{selector}");
        }
        assert!(named("source=a.json").is_err());
        let headers = HeaderMap::from_iter([(SELECTOR.parse().unwrap(), "flagSetId=a".parse().unwrap())]);
        assert_eq!(asked(&headers, Some("b")), Ok("a"));
        assert_eq!(asked(&HeaderMap::new(), Some("b")), Ok("b"));
        assert_eq!(asked(&HeaderMap::new(), None), Ok("default"));
    }

    #[test]
    fn definition_that_no_file_holds_can_read_the_time() {
        use tidings::flags::{Context, Flags};
        let mut sim = tidings::sim::Sim::new(1).nodes(1);
        let node = sim.node(0);
        let flags = Flags::new(&node, "flags/");
        let flag = r#"{"state":"ENABLED","variants":{"on":true},"targeting":{"if":[{"$ref":"late"},"on"]}}"#;
        let late = r#"{"late":{">":[{"var":"$flagd.timestamp"},5]}}"#;
        let mut state_after = |key: &str, value: Option<&str>| {
            match value {
                Some(value) => _ = node.put(format!("flags/default/{key}"), value.as_bytes()).unwrap(),
                None => _ = node.delete(format!("flags/default/{key}")).unwrap(),
            }
            sim.run_for(Duration::from_millis(10));
            let snapshot = flags.snapshot();
            SetState::new(&snapshot, snapshot.to_json())
        };
        state_after("$evaluators", Some(late));
        assert!(state_after("timed", Some(flag)).may_read_time);
        let unfit = state_after("$evaluators", None);
        assert!(!unfit.file.contains("timed"), "{}", unfit.file);
        assert!(flags.bool("timed", false, &Context::anonymous()), "its last good definition is in force");
        assert!(unfit.may_read_time);
        let plain = flag.replace(r#"{"$ref":"late"}"#, "true");
        assert!(!state_after("timed", Some(&plain)).may_read_time, "the control");
    }

    #[test]
    fn digest_covers_flags_that_no_file_holds() {
        let of = |flags: &str| {
            let (snapshot, _) = Snapshot::from_json(&format!(r#"{{"flags":{{{flags}}}}}"#)).unwrap();
            SetState::new(&snapshot, snapshot.to_json())
        };
        let good = r#""a":{"state":"ENABLED","variants":{"on":1}}"#;
        let (without, with) = (of(good), of(&format!(r#"{good},"bad":{{"state":"NEITHER"}}"#)));
        assert_eq!(without.file_digest, with.file_digest);
        assert_ne!(without.digest, with.digest);
        assert_ne!(with.digest, of(&format!(r#"{good},"bad":7"#)).digest, "what is wrong is part of answers");
        assert_eq!(with.digest, of(&format!(r#"{good},"bad":{{"state":"NEITHER"}}"#)).digest, "the control");
        assert_ne!(of(r#""bad":7"#).digest, of("").digest, "also where the file is empty");
    }

    #[test]
    fn deepest_definition_has_a_state_and_a_deeper_file_as_well() {
        use tidings::flags::DEFINITION_DEPTH_MAX;
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let flag = |depth| format!(r#"{{"state":"ENABLED","variants":{{"on":{}}}}}"#, nested(depth - 2));
        let (deepest, deeper) = (flag(DEFINITION_DEPTH_MAX), flag(DEFINITION_DEPTH_MAX + 1));
        let file = format!(r#"{{"flags":{{"deepest":{deepest},"deeper":{deeper}}}}}"#);
        let (snapshot, rejected) = Snapshot::from_json(&file).unwrap();
        let state = SetState::new(&snapshot, snapshot.to_json());
        assert!(state.file.contains("deepest") && !state.file.contains("deeper"), "{}", state.file);
        assert_eq!(rejected.len(), 1);
        assert!(!state.may_take_long("deepest"));
        // The library makes no such file.
        let state = SetState::new(&snapshot, nested(1_000).into());
        assert!(state.may_take_long("deepest"), "a set that cannot be read is heavy");
    }

    #[test]
    fn rules_that_may_take_long_are_known() {
        let of = |rule: &str| {
            let flag = format!(
                r#"{{"state":"ENABLED","variants":{{"on":true}},"targeting":{{"if":[{rule},"on"]}}}}"#
            );
            let file = format!(r#"{{"flags":{{"f":{flag},"bad":7}},"$evaluators":{{"r":true}}}}"#);
            let (snapshot, _) = Snapshot::from_json(&file).unwrap();
            SetState::new(&snapshot, snapshot.to_json())
        };
        let long = format!(r#"{{"in":[{{"var":"a"}},["{}"]]}}"#, "x".repeat(LIGHT_BYTES_MAX));
        for heavy in [r#"{"some":[{"var":"a"},true]}"#, r#"{"\u0024ref":"r"}"#, &long] {
            assert!(of(heavy).may_take_long("f"), "{heavy}");
        }
        let light = of(r#"{"in":[{"var":"country"},["de","at"]]}"#);
        assert!(!["f", "bad", "unheard-of"].into_iter().any(|flag| light.may_take_long(flag)));
    }

    fn set_of(value: &str) -> Snapshot {
        let flag = format!(r#"{{"state":"ENABLED","variants":{{"on":{value}}}}}"#);
        Snapshot::from_json(&format!(r#"{{"flags":{{"f":{flag}}}}}"#)).unwrap().0
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn state_of_a_set_is_computed_once_and_when_it_changes() {
        let states = SetStates::new(None);
        let (before, after) = (set_of("1"), set_of("2"));
        let first = states.now("default", || before.clone()).await.1;
        assert!(Arc::ptr_eq(&first, &states.now("default", || before.clone()).await.1));
        let (snapshot, second) = states.now("default", || after.clone()).await;
        assert_ne!(first.digest, second.digest);
        assert!(Arc::ptr_eq(&snapshot.to_json(), &second.file), "both are of one instant");
        let again = set_of("1");
        let again = states.now("default", || again.clone()).await.1;
        assert_eq!(first.digest, again.digest, "it depends on the definitions alone");
        // Names that nobody has given to a set take no place.
        for at in 0..SETS_KEPT_MAX {
            let name = at.to_string();
            states.now(&name, || before.of_set(&name)).await;
        }
        assert_eq!(lock(&states.known).len(), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn state_is_told_while_that_of_another_set_is_computed() {
        let states = Arc::new(SetStates::new(None));
        let (known, new) = (set_of("1"), set_of("2"));
        states.now("known", || known.clone()).await;
        let turn = states.turn("new").lock().await;
        let waits = tokio::spawn({
            let states = states.clone();
            async move { states.now("new", || new.clone()).await.1 }
        });
        let told = tokio::time::timeout(Duration::from_secs(60), states.now("known", || known.clone())).await;
        assert!(told.is_ok() && !waits.is_finished());
        drop(turn);
        assert!(waits.await.unwrap().file.contains('2'));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn state_is_looked_for_again_after_each_publication() {
        let security = tidings::Security::secret(&tidings::Security::generate_secret()).unwrap();
        let node = tidings::Node::builder("a").listen(([127, 0, 0, 1], 0).into()).security(security);
        let node = node.start().await.unwrap();
        let app = App::new(&node, "c", "flags/", None, 1).await;
        let flag = r#"{"state":"ENABLED","variants":{"on":1}}"#;
        // How many publications had been counted when the state with this text was computed, and no more were.
        let counted = async |text: &str| {
            for _ in 0..1_000 {
                let (snapshot, state) = app.set_now("default").await;
                assert!(Arc::ptr_eq(&snapshot.to_json(), &state.file));
                let states = &app.ofrep.states;
                let known = lock(&states.known).get("default").map(|known| known.publications);
                let now = states.publications.0.load(Ordering::Acquire);
                if state.file.contains(text) && known == Some(now) {
                    return now;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("{text} is not in the set");
        };
        let mut before = 0;
        for at in 0..3 {
            let name = format!("flag-{at}");
            node.put(format!("flags/default/{name}"), flag).unwrap();
            let with_flag = counted(&name).await;
            assert!(at == 0 || with_flag > before, "{with_flag}");
            // Metadata alone makes no event of a flag.
            node.put("flags/default/$metadata", format!(r#"{{"version":"v{at}"}}"#)).unwrap();
            before = counted(&format!("v{at}")).await;
            assert!(before > with_flag, "{before}");
        }
        node.shutdown().await;
    }
}
