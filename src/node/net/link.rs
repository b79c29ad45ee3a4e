//! One link: an encrypted connection with a greeting, two ordered streams per direction, and datagrams.
//!
//! A connection becomes a link only when its greeting was answered: with TLS 1.3 the dialling side learns only then
//! whether the other side accepted its certificate.
//!
//! Each lane is one stream, and the order of its frames carries claims. So a lane must never skip bytes: when a lane
//! breaks, the whole link is closed. What is read and not merged yet is bounded per lane, what is queued for sending by
//! the replica's window.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::timeout;

use crate::id::LinkId;
use crate::membership::Member;
use crate::node::net::congestion::close;
use crate::node::net::greeting::{
    GREETING_BYTES_MAX, Greeting, GreetingAnswer, GreetingSettings, Later, decode_greeting, encode_greeting,
};
use crate::node::net::peers::{
    DialRequest, DialledBy, LinkEnd, LinkVerdict, NodeEvent, NodeIdentity, PeerRefusal, refusal_of,
};
use crate::node::net::round_trip::{FIT_BYTES, SendWindow, get_acquainted};
use crate::node::net::security::Security;
use crate::node::net::sender::{
    CLOSE_BROKEN, CLOSE_DUPLICATE, CLOSE_REFUSED, CLOSE_SECURITY, Ending, LaneBytes, LaneSender, LinkEvent,
    LinkSender,
};
use crate::node::runtime::shared::{Shared, wall};
use crate::replica::{Input, Lane, WINDOW_BYTES};
use crate::wire::{Abilities, WIRE_VERSION, WireError};

/// Timeout of a greeting and its answer.
const GREETING_TIME_MAX: Duration = Duration::from_secs(5);
/// How long the present holder of a name has to acknowledge a packet before a newcomer gets the name.
const HOLDER_TIME_MAX: Duration = Duration::from_millis(500);
/// The most bytes of one read from a stream.
const CHUNK_BYTES: usize = 16 << 10;
/// The most bytes of one write to a stream. They count as drained when the connection has taken them.
const STREAM_CHUNK_BYTES: usize = 32 << 10;
/// Bytes of one lane that are read and not handed to the replica yet. A busy peer delays the others by no more than the
/// time to merge these.
const AHEAD_BYTES: usize = 32 << 10;

/// Turns connections into links: what both sides of a greeting need.
#[derive(Debug)]
pub(in crate::node) struct Greeter {
    pub(in crate::node) shared: Arc<Shared>,
    pub(in crate::node) identity: NodeIdentity,
    pub(in crate::node) security: Security,
    /// To the driver.
    pub(in crate::node) events: mpsc::Sender<LinkEvent>,
    /// One new link at a time measures its round trip.
    pub(in crate::node) rtt_probes: Arc<Semaphore>,
}

impl Greeter {
    pub(in crate::node) fn greeting(&self) -> Greeting {
        let core = self.shared.lock_closed();
        let claim = core.as_ref().map(|core| core.replica.settings_claim());
        let settings = claim.map(|claim| GreetingSettings::new(claim.configured, claim.number));
        let beginning = claim.map(|claim| match claim.beginning {
            Some(settings) => GreetingSettings::new(settings, claim.number),
            None => GreetingSettings::new(claim.configured, 0),
        });
        let own = core.and_then(|core| core.replica.own_member().cloned());
        let (meta, meta_version) = own.map_or_else(Default::default, |own| (own.meta, own.meta_version));
        Greeting {
            cluster: self.identity.cluster.clone(),
            name: self.shared.name.clone(),
            run: self.shared.run,
            app_version: self.identity.app_version.clone(),
            wall_ms: wall().as_millis() as u64,
            advertised: self.identity.advertised,
            port: self.shared.addr.port(),
            meta,
            meta_version,
            settings: Later(settings),
            abilities: Later(Some(Abilities::OURS.bits())),
            beginning: Later(beginning),
        }
    }
}

/// Why a connection did not become a link.
#[derive(Debug)]
pub(in crate::node) enum NoLink {
    Refused {
        by_us: bool,
        refusal: PeerRefusal,
    },
    /// The address leads to this node itself.
    Itself,
    /// Another link to that node is kept instead.
    Duplicate,
    /// The connection could not be made; the text says why.
    Unreachable(String),
}

/// Why a connection that ended with this error did not become a link.
pub(in crate::node) fn no_link(security: &Security, error: &ConnectionError) -> NoLink {
    match security.refusal(error) {
        Some(tls) => {
            let by_us = matches!(error, ConnectionError::TransportError(_));
            NoLink::Refused { by_us, refusal: PeerRefusal::Tls(tls) }
        }
        None => NoLink::Unreachable(error.to_string()),
    }
}

fn refused_by_us(refusal: PeerRefusal) -> NoLink {
    NoLink::Refused { by_us: true, refusal }
}

/// The dialling side of a greeting: sends it, reads the answer, and judges the peer's own greeting inside a welcome.
pub(in crate::node) async fn greet(
    greeter: &Arc<Greeter>,
    connection: Connection,
    dialled: SocketAddr,
) -> Result<LinkId, NoLink> {
    // A peer that is shut out by name is not greeted: it would make a link, and lose it, at each attempt.
    if !Security::names(&connection).iter().any(|name| greeter.security.allows(name)) {
        close(&connection, CLOSE_REFUSED);
        return Err(refused_by_us(PeerRefusal::NotTheCertificates));
    }
    let own = greeter.greeting();
    let exchange = async {
        let opened = connection.open_bi().await;
        let (mut send, mut recv) = opened.map_err(|error| no_link(&greeter.security, &error))?;
        // If the write fails, reading the answer gives the reason.
        _ = send.write_all(&encode_greeting(&own)).await;
        _ = send.finish();
        read_message::<GreetingAnswer>(greeter, &connection, &mut recv).await
    };
    let answer = timeout(GREETING_TIME_MAX, exchange).await;
    let theirs = match answer.unwrap_or(Err(refused_by_us(PeerRefusal::Greeting)))? {
        GreetingAnswer::Welcome(theirs) => theirs,
        GreetingAnswer::Itself => return Err(NoLink::Itself),
        answer => return Err(NoLink::Refused { by_us: false, refusal: refusal_of(answer) }),
    };
    if let Some(answer) = judge(greeter, &connection, &theirs).await {
        close(&connection, CLOSE_REFUSED);
        return Err(refused_for(answer, &theirs));
    }
    let linked = make_link(greeter, connection, &theirs, DialledBy::Us);
    if let Some(mut core) = greeter.shared.lock() {
        core.peers.note_place(dialled, theirs.run);
    }
    linked
}

/// The accepting side of a greeting: reads it, judges it, and answers.
pub(in crate::node) async fn welcome(
    greeter: &Arc<Greeter>,
    connection: Connection,
) -> Result<LinkId, NoLink> {
    let exchange = async {
        let accepted = connection.accept_bi().await;
        let (send, mut recv) = accepted.map_err(|error| no_link(&greeter.security, &error))?;
        Ok::<_, NoLink>((send, read_message::<Greeting>(greeter, &connection, &mut recv).await))
    };
    let late = Err(refused_by_us(PeerRefusal::Greeting));
    let exchanged = timeout(GREETING_TIME_MAX, exchange).await.unwrap_or(late);
    let (mut send, greeting) = exchanged.inspect_err(|_| close(&connection, CLOSE_REFUSED))?;
    let theirs = match greeting {
        Ok(theirs) => theirs,
        Err(refused) => {
            match refused {
                // The version is all that nodes of different versions understand of each other.
                NoLink::Refused { refusal: PeerRefusal::WireVersion { .. }, .. } => {
                    answer_and_close(&connection, &mut send, &[WIRE_VERSION]).await;
                }
                _ => close(&connection, CLOSE_REFUSED),
            }
            return Err(refused);
        }
    };
    let is_full = greeter.shared.lock().is_some_and(|core| core.peers.is_full_for(&theirs.name));
    let verdict =
        if is_full { Some(GreetingAnswer::Full) } else { judge(greeter, &connection, &theirs).await };
    let answer = verdict.clone().unwrap_or_else(|| GreetingAnswer::Welcome(greeter.greeting()));
    let answer = encode_greeting(&answer);
    let Some(verdict) = verdict else {
        _ = send.write_all(&answer).await;
        _ = send.finish();
        return make_link(greeter, connection, &theirs, DialledBy::Peer);
    };
    answer_and_close(&connection, &mut send, &answer).await;
    Err(refused_for(verdict, &theirs))
}

/// Ends a connection with an answer that is no welcome.
async fn answer_and_close(connection: &Connection, send: &mut SendStream, answer: &[u8]) {
    _ = send.write_all(answer).await;
    _ = send.finish();
    // The peer closes the connection when it has read the answer.
    _ = timeout(GREETING_TIME_MAX, connection.closed()).await;
    close(connection, CLOSE_REFUSED);
}

/// The refusal that is reported here after a peer got this answer. The answer contains this node's cluster or version;
/// the report contains the peer's.
fn refused_for(answer: GreetingAnswer, theirs: &Greeting) -> NoLink {
    let answer = match answer {
        GreetingAnswer::Itself => return NoLink::Itself,
        GreetingAnswer::Cluster(_) => GreetingAnswer::Cluster(theirs.cluster.clone()),
        GreetingAnswer::AppVersion(_) => GreetingAnswer::AppVersion(theirs.app_version.clone()),
        answer => answer,
    };
    refused_by_us(refusal_of(answer))
}

async fn read_message<T: bincode::Decode<()>>(
    greeter: &Greeter,
    connection: &Connection,
    recv: &mut RecvStream,
) -> Result<T, NoLink> {
    match recv.read_to_end(GREETING_BYTES_MAX).await {
        Ok(bytes) => decode_greeting(&bytes).map_err(|error| {
            refused_by_us(match error {
                WireError::Version(theirs) => PeerRefusal::WireVersion { theirs, ours: WIRE_VERSION },
                _ => PeerRefusal::Greeting,
            })
        }),
        Err(_) => Err(match connection.close_reason() {
            Some(reason) => no_link(&greeter.security, &reason),
            None => refused_by_us(PeerRefusal::Greeting),
        }),
    }
}

/// Judges whether the sender of a greeting may become a peer. `None`: yes; otherwise the answer that says why not.
async fn judge(greeter: &Greeter, connection: &Connection, theirs: &Greeting) -> Option<GreetingAnswer> {
    let (shared, identity) = (&greeter.shared, &greeter.identity);
    if theirs.run == shared.run {
        return Some(GreetingAnswer::Itself);
    }
    if theirs.cluster != identity.cluster {
        return Some(GreetingAnswer::Cluster(identity.cluster.clone()));
    }
    if let Some(limit) = member_of(connection, theirs).over_limit() {
        return Some(GreetingAnswer::OverLimit(limit));
    }
    if !Security::names(connection).contains(&theirs.name) || !greeter.security.allows(&theirs.name) {
        return Some(GreetingAnswer::NotTheCertificates);
    }
    if shared.lock().is_some_and(|core| core.replica.is_of_other(theirs.run, &theirs.name)) {
        return Some(GreetingAnswer::RunTaken);
    }
    // The application's check is the user's code. If it panics, the peer is refused.
    let accepts = AssertUnwindSafe(|| (identity.accepts_version)(&theirs.app_version));
    if !catch_unwind(accepts).unwrap_or(false) {
        return Some(GreetingAnswer::AppVersion(identity.app_version.clone()));
    }
    if let Some(answer) = judge_settings(shared, theirs) {
        return Some(answer);
    }
    let apart = wall().abs_diff(Duration::from_millis(theirs.wall_ms));
    if shared.lock().is_some_and(|core| apart > core.replica.config().clock_skew_max) {
        return Some(GreetingAnswer::Clock(apart.as_millis() as u64));
    }
    // A living member got its name while that was free, possibly on the other side of a partition: it is not refused
    // now.
    let is_same = |member: &Member| member.run == theirs.run && member.name == theirs.name;
    let is_member = shared
        .lock()
        .is_some_and(|core| core.replica.members().any(|member| is_same(member) && member.state.is_alive()));
    if !is_member && (theirs.name == shared.name || holder_lives(shared, theirs, connection).await) {
        return Some(GreetingAnswer::NameTaken);
    }
    None
}

/// The answer to a newcomer that is configured with other shared settings than those of the cluster. The settings of a
/// node that does not state any are not known.
fn judge_settings(shared: &Shared, theirs: &Greeting) -> Option<GreetingAnswer> {
    let claim = theirs.claim()?;
    let differ = shared.lock()?.replica.judge_settings(claim).err()?;
    let [theirs, ours] = [differ.theirs, differ.ours].map(|settings| GreetingSettings::new(settings, 0));
    Some(if differ.is_beginning {
        GreetingAnswer::Beginning { theirs, ours }
    } else {
        GreetingAnswer::Settings { theirs, ours }
    })
}

/// Whether another run with the newcomer's name answers within [`HOLDER_TIME_MAX`]. If it does not, its link is closed.
async fn holder_lives(shared: &Shared, theirs: &Greeting, newcomer: &Connection) -> bool {
    let holder = || {
        let core = shared.lock()?;
        let id = core.peers.name_holder(&theirs.name, theirs.run)?;
        core.senders.get(&id).map(|wire| wire.connection().clone())
    };
    if holder().is_none() {
        let addr = reachable_at(newcomer, theirs);
        let old = shared.lock().and_then(|core| core.replica.living_namesake(theirs.run, &theirs.name));
        // If the holder had the newcomer's address, its process has been replaced: one address has one process.
        if let Some(old) = old.filter(|old| old.addr != addr) {
            shared.request_dial(DialRequest::Member(old));
            let is_over = |shared: &Shared| (shared.is_closed() || holder().is_some()).then_some(());
            _ = timeout(HOLDER_TIME_MAX, shared.wait_for(is_over)).await;
        }
    }
    let Some(connection) = holder() else { return false };
    let heard = || connection.stats().udp_rx.datagrams;
    let before = heard();
    // Empty datagrams are not handed to the replica, but the transport of a live node acknowledges them.
    _ = connection.send_datagram(Bytes::new());
    let answered = async {
        while heard() == before && connection.close_reason().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let lives = timeout(HOLDER_TIME_MAX, answered).await.is_ok() && connection.close_reason().is_none();
    if !lives {
        close(&connection, CLOSE_DUPLICATE);
    }
    lives
}

/// The address at which others can reach the sender of a greeting.
fn reachable_at(connection: &Connection, theirs: &Greeting) -> SocketAddr {
    theirs.advertised.unwrap_or_else(|| SocketAddr::new(seen_at(connection).ip(), theirs.port))
}

/// The address that a peer's packets come from. A node dials from the port on which it listens.
fn seen_at(connection: &Connection) -> SocketAddr {
    let seen = connection.remote_address();
    SocketAddr::new(seen.ip().to_canonical(), seen.port())
}

/// The sender of a greeting as a member.
fn member_of(connection: &Connection, theirs: &Greeting) -> Member {
    let mut member = Member::new(theirs.name.clone(), theirs.run, reachable_at(connection, theirs));
    member.app_version.clone_from(&theirs.app_version);
    member.meta.clone_from(&theirs.meta);
    member.meta_version = theirs.meta_version;
    member
}

/// Makes a link of a connection whose greeting was accepted on both sides, unless a better one to the same run exists.
fn make_link(
    greeter: &Arc<Greeter>,
    connection: Connection,
    theirs: &Greeting,
    dialled: DialledBy,
) -> Result<LinkId, NoLink> {
    let shared = &greeter.shared;
    let addr = reachable_at(&connection, theirs);
    let Some(mut core) = shared.lock() else { return Err(NoLink::Duplicate) };
    // Another connection may have proven the run since the greeting was judged.
    if core.replica.is_of_other(theirs.run, &theirs.name) {
        close(&connection, CLOSE_REFUSED);
        return Err(refused_by_us(PeerRefusal::RunTaken));
    }
    let id = core.next_link;
    core.next_link = LinkId::new(id.number() + 1);
    let LinkVerdict::Stays(replaced) = core.peers.add_link(id, shared.run, theirs, addr, dialled) else {
        close(&connection, CLOSE_DUPLICATE);
        return Err(NoLink::Duplicate);
    };
    core.peers.note_place(seen_at(&connection), theirs.run);
    let now = shared.now();
    let mut readers = None;
    if let Some((old, name, addr)) = replaced {
        if let Some(wire) = core.senders.remove(&old) {
            wire.close(CLOSE_DUPLICATE);
        }
        core.replica.handle(now, Input::LinkDown(old));
        readers = Some(shared.add_event(NodeEvent::LinkEnded { peer: name, addr, end: LinkEnd::Replaced }));
    }
    let window = Arc::new(SendWindow::new(connection.clone()));
    let lanes = [Lane::Live, Lane::Bulk].map(|lane| {
        let (frames, queue) = mpsc::unbounded_channel();
        let flow = Arc::new(LaneBytes::default());
        tokio::spawn(write((id, lane), window.clone(), queue, flow.clone(), shared.clone()));
        LaneSender { frames, flow }
    });
    core.senders.insert(id, LinkSender::new(connection.clone(), lanes));
    core.replica.handle(now, Input::LinkUp(id, theirs.abilities()));
    let member = member_of(&connection, theirs);
    let packet_bytes_max = connection.max_datagram_size().unwrap_or_default();
    core.replica.handle(now, Input::LinkIdentified(id, &member, packet_bytes_max));
    let made = shared.add_event(NodeEvent::LinkMade { peer: theirs.name.clone(), addr });
    drop(core);
    [Some(made), readers].into_iter().flatten().for_each(|readers| readers.notify_waiters());
    // The security may have changed since the handshake. From here on `Network::follow_security` finds this link.
    let link = (id, theirs.name.clone(), connection.clone());
    if !greeter.security.no_longer_accepted(&greeter.identity.cluster, vec![link]).is_empty() {
        close(&connection, CLOSE_SECURITY);
    }
    tokio::spawn(get_acquainted(connection.clone(), greeter.rtt_probes.clone()));
    tokio::spawn(read(id, connection, greeter.events.clone()));
    shared.wake_driver.notify_one();
    shared.progress.notify_waiters();
    Ok(id)
}

/// Writes the frames of one lane, and counts the bytes that the connection has taken.
async fn write(
    (id, lane): (LinkId, Lane),
    window: Arc<SendWindow>,
    mut frames: UnboundedReceiver<Vec<u8>>,
    flow: Arc<LaneBytes>,
    shared: Arc<Shared>,
) {
    let Ok(mut stream) = window.connection.open_uni().await else { return };
    // Live writes have priority over repair.
    _ = stream.set_priority(i32::from(lane == Lane::Live));
    if stream.write_all(&[lane as u8]).await.is_err() {
        return;
    }
    let mut since_fit = 0;
    while let Some(frame) = frames.recv().await {
        let mut frame = Bytes::from(frame);
        // A long frame counts chunk by chunk: over a slow link the whole frame may take longer than the timeouts.
        while !frame.is_empty() {
            let part = frame.split_to(frame.len().min(STREAM_CHUNK_BYTES));
            let bytes = part.len();
            since_fit += bytes;
            if since_fit >= FIT_BYTES {
                window.fit();
                since_fit = 0;
            }
            if stream.write_chunk(part).await.is_err() {
                return;
            }
            let drained = flow.drained.fetch_add(bytes, Ordering::Relaxed) + bytes;
            if drained == bytes {
                shared.drained().push(id);
            }
            // The sum is what the replica believes to be in flight. Below its window it is not waiting for room.
            if flow.queued.fetch_sub(bytes, Ordering::Relaxed) - bytes + drained >= WINDOW_BYTES {
                shared.wake_driver.notify_one();
            }
        }
    }
}

/// Reads the streams and datagrams of a connection until it ends, then reports that the link is down.
async fn read(id: LinkId, connection: Connection, events: mpsc::Sender<LinkEvent>) {
    let mut lanes = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_uni() => match stream {
                // The transport permits only two streams at a time.
                Ok(stream) => _ = lanes.spawn(read_lane(id, stream, events.clone())),
                Err(_) => break,
            },
            datagram = connection.read_datagram() => match datagram {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => if events.send(LinkEvent::Datagram(id, bytes)).await.is_err() { break },
                Err(_) => break,
            },
            Some(end) = lanes.join_next() => {
                // When a lane breaks, the link is closed, because a stream must not continue behind a gap. There are
                // two exceptions: if the peer has closed the connection, its close code must not be overwritten; and if
                // this node ends, it sends its own close code.
                if !matches!(end, Ok(LaneEnd::Unheard)) && connection.close_reason().is_none() {
                    close(&connection, CLOSE_BROKEN);
                }
            }
        }
    }
    let ending = match connection.close_reason() {
        Some(ConnectionError::ApplicationClosed(close)) => {
            Ending::ByPeer(u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX))
        }
        Some(ConnectionError::LocallyClosed) => Ending::ByUs,
        Some(error) => Ending::Lost(error.to_string()),
        None => Ending::Lost("the connection ended".to_owned()),
    };
    _ = events.send(LinkEvent::Down(id, ending)).await;
}

/// Why a lane is not read any more.
enum LaneEnd {
    /// The stream ended, which lanes never do, or its first byte names no lane.
    Broken,
    /// This node ends: the driver no longer receives events.
    Unheard,
}

/// Reads one lane: its first byte, then chunks of frames.
async fn read_lane(id: LinkId, mut stream: RecvStream, events: mpsc::Sender<LinkEvent>) -> LaneEnd {
    let mut tag = [0];
    if stream.read_exact(&mut tag).await.is_err() {
        return LaneEnd::Broken;
    }
    let lane = match tag[0] {
        0 => Lane::Live,
        1 => Lane::Bulk,
        _ => return LaneEnd::Broken,
    };
    let ahead = Arc::new(Semaphore::new(AHEAD_BYTES));
    while let Ok(Some(chunk)) = stream.read_chunk(CHUNK_BYTES, true).await {
        let places = u32::try_from(chunk.bytes.len()).expect("a chunk is small");
        let place = ahead.clone().acquire_many_owned(places).await.expect("it is never closed");
        if events.send(LinkEvent::Stream(id, lane, chunk.bytes, place)).await.is_err() {
            return LaneEnd::Unheard;
        }
    }
    LaneEnd::Broken
}
