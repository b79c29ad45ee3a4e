//! Flags for programs in other languages, by the Remote Evaluation Protocol of `OpenFeature` (OFREP) 0.3.0: one flag, all
//! flags of a set, and a stream of events that say when to ask for them again.
//!
//! What a client has of all flags is told by an `ETag`: the digest of the answer, which is equal on all nodes that hold
//! the same definitions, and different for each user who gets other values. A client that has the present one gets 304,
//! without an evaluation if the same question was answered before: the digests of answers are kept by the state of the
//! set *and* the question, which is compared as a whole. They must never be kept by the state alone: one user's flags
//! would be taken for another's.
//!
//! The browser's `EventSource` can send no header, so the address of the stream holds a ticket instead of a token
//! ([`Guard::ticket`]). The stream tells that something has changed, and nothing of the flags.

mod answer;
mod cors;

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt};
use moka::sync::Cache;
use serde::Deserialize;
use serde_json::json;
use tidings::flags::{CONTEXT_BYTES_MAX, Context, FlagValue, Flags, Snapshot};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::flag_sets::{self, LIGHT_BYTES_MAX, SetState, SetStates};
use super::watch::HEARTBEAT_INTERVAL;
use super::{App, AppState, At};
use crate::span;
use answer::Answer;
pub(super) use answer::Refusal;
pub(crate) use cors::Origins;

/// Below it everything is of the protocol, and nothing is written.
pub(super) const PATH: &str = "/ofrep/v1/";
/// The stream of events, which a ticket opens as well.
pub(super) const EVENTS_PATH: &str = "/ofrep/v1/events";

/// Digests of answers that are kept, each with the question that finds it.
const ETAGS_MAX: u64 = 65_536;
/// The greatest question that is kept as it is. Of a larger one the digest is kept.
const QUESTION_BYTES_KEPT_MAX: usize = 256;
/// How long the evaluation of a whole set may take. It is looked at between two flags.
const BULK_TIME_MAX: Duration = Duration::from_secs(2);
/// The size at which the answer of a whole set is given up.
const BULK_BYTES_MAX: usize = 16 << 20;
/// How long an evaluation waits for its turn. As many of whole sets are made at a time as there are processors, and as
/// many of single flags beside them, so that neither waits for the other. Light evaluations of single flags need no turn.
const TURN_TIME_MAX: Duration = Duration::from_secs(1);
/// For how long a page that nobody looks at keeps its stream, in seconds.
const INACTIVITY_DELAY_SECONDS: u32 = 120;

/// What the protocol needs beside the flags.
#[derive(Debug)]
pub(crate) struct Ofrep {
    pub(super) states: SetStates,
    /// By [`Question`].
    etags: Cache<Question, HeaderValue>,
    bulk_turns: Semaphore,
    single_turns: Semaphore,
}

impl Ofrep {
    pub(super) fn new(flags: &Flags) -> Self {
        let turns = || Semaphore::new(available_parallelism().map_or(1, usize::from));
        Self {
            // No set has this name: its events cost least.
            states: SetStates::new(Some(flags.of_set("").events())),
            etags: Cache::new(ETAGS_MAX),
            bulk_turns: turns(),
            single_turns: turns(),
        }
    }
}

pub(super) fn routes(origins: &Origins) -> Router<Arc<App>> {
    let routes = Router::new()
        .route("/ofrep/v1/evaluate/flags", post(bulk).options(preflight))
        .route("/ofrep/v1/evaluate/flags/{*key}", post(single).options(preflight))
        .route(EVENTS_PATH, get(events).options(preflight));
    match origins.layer() {
        Some(layer) => routes.layer(layer),
        None => routes,
    }
}

/// Answered by the layer where pages may ask. It has to be a route, because the layer is not around what answers methods
/// that a path does not take.
async fn preflight() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// What may stand in the address; what else stands there is for others.
#[derive(Deserialize)]
struct Which {
    set: Option<String>,
}

/// A set as it is now, unless this node cannot know it yet.
struct Asked<'a> {
    set: &'a str,
    snapshot: Snapshot,
    state: Arc<SetState>,
    now: SystemTime,
}

impl<'a> Asked<'a> {
    async fn new(app: &App, headers: &'a HeaderMap, which: &'a Which) -> Result<Self, Refusal> {
        let set = flag_sets::asked(headers, which.set.as_deref()).map_err(Refusal::selector)?;
        let (snapshot, state) = app.set_now(set).await;
        if flag_sets::is_unknown(app, &state) {
            return Err(Refusal::not_ready());
        }
        let now = SystemTime::now();
        Ok(Self { set, snapshot: snapshot.at(now), state, now })
    }
}

/// The context of a question. A question without one is about nobody.
fn context(body: &[u8]) -> Result<Context<'static>, Refusal> {
    if body.is_empty() {
        return Ok(Context::anonymous());
    }
    let question: Result<FlagValue, _> = serde_json::from_slice(body);
    let question = question.map_err(|error| Refusal::context(format!("the body cannot be used: {error}")))?;
    let FlagValue::Object(_) = question else { return Err(Refusal::context("the body is no object")) };
    let fields = match question.field("context") {
        None | Some(FlagValue::Null) => return Ok(Context::anonymous()),
        Some(FlagValue::Object(fields)) => fields,
        Some(_) => return Err(Refusal::context("the context is no object")),
    };
    let mut context = Context::anonymous();
    for (name, value) in fields.iter() {
        match (&**name, value) {
            ("targetingKey", FlagValue::Null) => {}
            ("targetingKey", value) if value.as_str().is_none() => {
                return Err(Refusal::context("the targetingKey is no text"));
            }
            (name, value) => context = context.with(name.to_owned(), value.clone()),
        }
    }
    Ok(context)
}

fn which(uri: &Uri) -> Result<Which, Refusal> {
    let read = Query::try_from_uri(uri);
    read.map(|Query(which)| which).map_err(|error| Refusal::selector(error.body_text()))
}

/// The parts of a request. Layers and extractors that copy would cost each request a time.
async fn taken_apart(request: Request) -> Result<(Parts, Which, Bytes), Refusal> {
    let (head, body) = request.into_parts();
    let which = which(&head.uri)?;
    // Each byte of a context stands for at least one in the body, so that no context over the library's limit gets in.
    let body = axum::body::to_bytes(body, CONTEXT_BYTES_MAX).await;
    let large = |_| Refusal::context(format!("the body does not come, or is over {CONTEXT_BYTES_MAX} bytes"));
    Ok((head, which, body.map_err(large)?))
}

/// One flag.
async fn single(State(app): AppState, At(key): At<String>, request: Request) -> Response {
    let answer = async {
        let (head, which, body) = taken_apart(request).await?;
        let context = context(&body)?;
        let asked = Asked::new(&app, &head.headers, &which).await?;
        let evaluate = || asked.snapshot.details(&key, None::<FlagValue>, &context);
        if body.len() <= LIGHT_BYTES_MAX && !asked.state.may_take_long(&key) {
            return Ok(evaluate());
        }
        let _turn = turn(&app.ofrep.single_turns).await?;
        // It may take all steps that there are: other tasks go on meanwhile, which costs more than most evaluations.
        Ok(tokio::task::block_in_place(evaluate))
    };
    match answer.await {
        Ok(details) => Answer::new(&key, &details).into_response(),
        Err(refusal) => Refusal::of_flag(refusal, &key).into_response(),
    }
}

/// All flags of a set.
async fn bulk(State(app): AppState, request: Request) -> Result<Response, Refusal> {
    let (head, which, body) = taken_apart(request).await?;
    let asked = Asked::new(&app, &head.headers, &which).await?;
    let ticket = app.guard.ticket(asked.set);
    let question = question(&asked, ticket.as_deref(), &body);
    let known = head.headers.get(IF_NONE_MATCH);
    if let Some(etag) = known.and(question.as_ref()).and_then(|question| app.ofrep.etags.get(&**question))
        && is_known(known, &etag)
    {
        return Ok(unchanged(etag));
    }
    let stream = stream_path(asked.set, ticket.as_deref());
    let context = context(&body)?;
    let turn = turn(&app.ofrep.bulk_turns).await?;
    // Other tasks go on meanwhile.
    let (answer, etag) = tokio::task::block_in_place(|| {
        let answer = evaluate_all(&asked, &context, &stream)?;
        let etag = format!("\"{}\"", flag_sets::hex(flag_sets::digest(&answer)));
        Ok::<_, Refusal>((answer, HeaderValue::try_from(etag).expect("digits")))
    })?;
    drop(turn);
    if let Some(question) = question {
        app.ofrep.etags.insert(question, etag.clone());
    }
    if is_known(known, &etag) {
        return Ok(unchanged(etag));
    }
    let json = HeaderValue::from_static("application/json");
    Ok(([(CONTENT_TYPE, json), (ETAG, etag)], answer).into_response())
}

/// What the answer follows from, and nothing else does.
type Question = Box<[u8]>;

/// The state of the set, the second if a rule may read it, the ticket of the stream, and the question as it was sent: the
/// set is told by its state. `None`: the state has no number.
fn question(asked: &Asked<'_>, ticket: Option<&str>, body: &[u8]) -> Option<Question> {
    let seconds = if asked.state.may_read_time {
        asked.now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
    } else {
        0
    };
    let ticket = ticket.unwrap_or_default();
    // A ticket is text without blanks, so that two questions are never the same bytes.
    let mut whole =
        Vec::with_capacity(2 * size_of::<u64>() + ticket.len() + 1 + body.len().min(QUESTION_BYTES_KEPT_MAX));
    whole.extend_from_slice(&asked.state.number?.to_be_bytes());
    whole.extend_from_slice(&seconds.to_be_bytes());
    whole.extend_from_slice(ticket.as_bytes());
    if body.len() <= QUESTION_BYTES_KEPT_MAX {
        whole.push(b' ');
        whole.extend_from_slice(body);
    } else {
        whole.push(b'\n');
        whole.extend_from_slice(&flag_sets::digest(body));
    }
    Some(whole.into())
}

fn is_known(known: Option<&HeaderValue>, etag: &HeaderValue) -> bool {
    let (Some(Ok(known)), Ok(etag)) = (known.map(HeaderValue::to_str), etag.to_str()) else { return false };
    known.split(',').map(str::trim).any(|known| known == "*" || known.trim_start_matches("W/") == etag)
}

fn unchanged(etag: HeaderValue) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response.headers_mut().insert(ETAG, etag);
    response
}

async fn turn(turns: &Semaphore) -> Result<SemaphorePermit<'_>, Refusal> {
    let turn = tokio::time::timeout(TURN_TIME_MAX, turns.acquire()).await;
    turn.map_err(|_| Refusal::busy()).map(|turn| turn.expect("nobody closes it"))
}

/// The canonical answer: flags in the order of their names, fields in a fixed order, and no blanks.
fn evaluate_all(asked: &Asked<'_>, context: &Context<'_>, stream: &str) -> Result<Vec<u8>, Refusal> {
    let began = Instant::now();
    let mut answer = br#"{"flags":["#.to_vec();
    // It is no use of a flag that a client has asked for all of them.
    let snapshot = asked.snapshot.clone().uncounted();
    for (at, key) in snapshot.keys().iter().enumerate() {
        if began.elapsed() > BULK_TIME_MAX {
            return Err(Refusal::general(format!(
                "the evaluation takes longer than {}",
                span::show(BULK_TIME_MAX)
            )));
        }
        if answer.len() > BULK_BYTES_MAX {
            return Err(Refusal::general(format!("the answer is over the limit of {BULK_BYTES_MAX} bytes")));
        }
        if at > 0 {
            answer.push(b',');
        }
        let details = snapshot.details(key, None::<FlagValue>, context);
        serde_json::to_writer(&mut answer, &Answer::new(key, &details)).expect("memory takes everything");
    }
    let stream = json!([{
        "type": "sse", "endpoint": { "requestUri": stream }, "inactivityDelaySec": INACTIVITY_DELAY_SECONDS,
    }]);
    answer.extend_from_slice(format!(r#"],"eventStreams":{stream}"#).as_bytes());
    if let Some(metadata) = &asked.state.metadata {
        answer.extend_from_slice(format!(r#","metadata":{metadata}"#).as_bytes());
    }
    answer.push(b'}');
    Ok(answer)
}

/// The address of the stream of a set, without the node: the client asks the one it asks anyway.
fn stream_path(set: &str, ticket: Option<&str>) -> String {
    let mut path = format!("{EVENTS_PATH}?set=");
    for byte in set.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => path.push(byte.into()),
            _ => write!(path, "%{byte:02X}").expect("a text takes everything"),
        }
    }
    match ticket {
        Some(ticket) => path + "&ticket=" + ticket,
        None => path,
    }
}

/// Says when a set is another one than the client has last heard of: at once, unless it says what that was.
async fn events(
    State(app): AppState,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    let which = which(&uri)?;
    let set = flag_sets::asked(&headers, which.set.as_deref()).map_err(Refusal::selector)?;
    let permit = app.watcher()?;
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let told = flag_sets::followed(app, set.to_owned(), seen, |state| &state.digest, permit).map(|state| {
        let data = json!({ "type": "refetchEvaluation", "etag": state.digest });
        Ok(Event::default().id(&state.digest).data(data.to_string()))
    });
    Ok(Sse::new(told).keep_alive(KeepAlive::new().interval(HEARTBEAT_INTERVAL)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_the_same_only_as_a_whole() {
        let asked_at = |rule: &str, seconds: u64| {
            let flag = format!(r#"{{"state":"ENABLED","variants":{{"on":true}},"targeting":{rule}}}"#);
            let (snapshot, _) = Snapshot::from_json(&format!(r#"{{"flags":{{"f":{flag}}}}}"#)).unwrap();
            let state = Arc::new(SetState::new(&snapshot, snapshot.to_json()));
            let now = UNIX_EPOCH + Duration::from_secs(seconds);
            Asked { set: "default", snapshot, state, now }
        };
        let plain = asked_at("{}", 1);
        let large = "x".repeat(100_000);
        let bodies = ["", "a", "b", &large, &large[1..], " a", "\na"];
        let questions: Vec<_> = [None, Some("ticket"), Some("ticke")]
            .into_iter()
            .flat_map(|ticket| bodies.map(|body| question(&plain, ticket, body.as_bytes()).unwrap()))
            .collect();
        let different: std::collections::BTreeSet<_> = questions.iter().collect();
        assert_eq!(different.len(), questions.len());
        assert!(questions.iter().all(|question| question.len() <= QUESTION_BYTES_KEPT_MAX + 64));
        assert_eq!(question(&plain, None, b"a"), Some(questions[1].clone()), "the control");

        assert_ne!(question(&asked_at("{}", 1), None, b"a"), Some(questions[1].clone()), "another state");
        let mut timed = asked_at(r#"{"var": "$flagd.timestamp"}"#, 1);
        let first = question(&timed, None, b"a");
        timed.now += Duration::from_secs(1);
        assert_ne!(question(&timed, None, b"a"), first, "the rule may read the second");
        let mut later = plain;
        later.now += Duration::from_secs(1);
        assert_eq!(question(&later, None, b"a"), Some(questions[1].clone()), "and this one does not");
    }

    /// Whether a user would be told that another one's answer is unchanged, if answers were known by these questions.
    fn mixes_users(question_of: impl Fn(&Asked<'_>, Option<&str>, &[u8]) -> Option<Question>) -> bool {
        let flag = r#"{"state":"ENABLED","variants":{"on":true,"off":false},"defaultVariant":"off",
                       "targeting":{"if":[{"==":[{"var":"targetingKey"},"ann"]},"on"]}}"#;
        let (snapshot, _) = Snapshot::from_json(&format!(r#"{{"flags":{{"f":{flag}}}}}"#)).unwrap();
        let state = Arc::new(SetState::new(&snapshot, snapshot.to_json()));
        let asked = Asked { set: "default", snapshot, state, now: UNIX_EPOCH };
        let mut known = std::collections::BTreeMap::new();
        ["ann", "bob"].into_iter().any(|user| {
            let body = format!(r#"{{"context":{{"targetingKey":"{user}"}}}}"#);
            let context = context(body.as_bytes()).unwrap();
            let answer = evaluate_all(&asked, &context, "").unwrap();
            let of_question =
                known.entry(question_of(&asked, None, body.as_bytes())).or_insert(answer.clone());
            *of_question != answer
        })
    }

    #[test]
    fn answer_to_one_user_is_never_known_for_another() {
        assert!(!mixes_users(question));
        assert!(
            mixes_users(|asked, ticket, _| question(asked, ticket, b"")),
            "the control: without the body"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn evaluation_of_a_heavy_flag_waits_for_a_turn() {
        let security = tidings::Security::secret(&tidings::Security::generate_secret()).unwrap();
        let node = tidings::Node::builder("a").listen(([127, 0, 0, 1], 0).into()).security(security);
        let node = node.start().await.unwrap();
        let heavy =
            r#"{"state":"ENABLED","variants":{"on":1},"targeting":{"if":[{"some":[[1],true]},"on"]}}"#;
        node.put("flags/default/heavy", heavy).unwrap();
        node.put("flags/default/light", r#"{"state":"ENABLED","variants":{"on":1}}"#).unwrap();
        let app = Arc::new(App::new(&node, "c", "flags/", None, 1).await);
        let ask = async |flag: &str, blanks: usize| {
            let body = format!("{{}}{}", " ".repeat(blanks));
            let request = Request::post("/ofrep/v1/evaluate/flags/f").body(body.into()).unwrap();
            single(State(app.clone()), At(flag.to_owned()), request).await.status()
        };
        let turns = u32::try_from(available_parallelism().map_or(1, usize::from)).unwrap();
        let of_sets = app.ofrep.bulk_turns.acquire_many(turns).await.unwrap();
        assert_eq!(ask("heavy", 0).await, StatusCode::OK, "sets are evaluated, and it is answered");
        drop(of_sets);
        let of_flags = app.ofrep.single_turns.acquire_many(turns).await.unwrap();
        assert_eq!(ask("heavy", 0).await, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(ask("light", LIGHT_BYTES_MAX).await, StatusCode::TOO_MANY_REQUESTS, "a large question");
        assert_eq!(ask("light", 0).await, StatusCode::OK);
        drop(of_flags);
        assert_eq!(ask("heavy", LIGHT_BYTES_MAX).await, StatusCode::OK);
        node.shutdown().await;
    }
}
