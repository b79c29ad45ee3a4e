//! `/metrics`, in the text form that Prometheus reads.

use std::fmt::{Display, Write};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;

use super::{App, AppState, view};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(State(app): AppState) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text(&app))
}

/// Writes families one after another: its samples stand together, under one explanation.
struct Families(String);

impl Families {
    fn add<V: Display>(&mut self, name: &str, kind: &str, help: &str, samples: &[(String, V)]) {
        _ = writeln!(self.0, "# HELP tidings_{name} {help}\n# TYPE tidings_{name} {kind}");
        for (labels, value) in samples {
            _ = writeln!(self.0, "tidings_{name}{labels} {value}");
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.add(name, "gauge", help, &[(String::new(), value)]);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.add(name, "counter", help, &[(String::new(), value)]);
    }
}

fn text(app: &App) -> String {
    let status = app.node.status();
    let mut out = Families(String::with_capacity(4_096));
    let info = format!(
        "{{node=\"{}\",cluster=\"{}\",version=\"{}\",run=\"{}\"}}",
        escape(&status.name),
        escape(&app.cluster),
        env!("CARGO_PKG_VERSION"),
        view::run(status.run),
    );
    out.add("info", "gauge", "Who this is.", &[(info, 1)]);
    out.gauge("uptime_seconds", "Since the start of the process.", app.started.elapsed().as_secs_f64());
    out.gauge("ready", "1 once the first sync with the cluster is done.", u8::from(app.monitor.is_ready()));
    out.gauge("busy", "1 while writes are refused because the cluster is behind.", u8::from(status.is_busy));
    out.gauge("closed", "1 once the node is closed.", u8::from(status.is_closed));
    if let Some(store) = &status.store {
        out.gauge("entries", "Entries held, those of sets and counters included.", store.entries);
        out.gauge("bytes", "Bytes of their keys and values.", store.bytes);
        out.gauge("size_bytes", "The size of the store as its limit counts it.", store.size_bytes);
        out.gauge(
            "size_bytes_max",
            "The size above which writes that let it grow are refused.",
            store.size_bytes_max,
        );
        out.gauge("origins", "Process starts that ever wrote.", store.origins);
        out.gauge("contexts", "Contexts beyond the vector; 0 when all is quiet.", store.extra_contexts);
        out.gauge("removals", "Removals that the change log remembers.", store.removals);
        out.gauge("links", "Links to peers.", store.links);
        out.gauge("sync_sessions", "Repair sessions under way.", store.sessions);
        out.counter("sync_sent_bytes_total", "Bytes sent by repair.", store.traffic.bytes);
        out.counter("sync_sent_frames_total", "Frames sent by repair.", store.traffic.frames);
        out.gauge("disk_failed", "1 while the disk takes nothing.", u8::from(store.has_disk_failed));
        let is_off = u8::from(store.clock_off.is_some());
        out.gauge("clock_in_doubt", "1 while writes are refused because the wall clock is wrong.", is_off);
    }
    out.gauge(
        "http_streams",
        "Event streams being served.",
        app.watchers_max - app.watchers.available_permits(),
    );
    members(app, &mut out);
    let peers = |value: &dyn Fn(&tidings::PeerStatus) -> String| -> Vec<(String, String)> {
        let label = |peer: &tidings::PeerStatus| format!("{{peer=\"{}\"}}", escape(&peer.name));
        status.peers.iter().map(|peer| (label(peer), value(peer))).collect()
    };
    let rtts = peers(&|peer| peer.rtt.as_secs_f64().to_string());
    out.add("peer_rtt_seconds", "gauge", "The round trip to a linked peer.", &rtts);
    let changes = peers(&|peer| peer.lag_changes.to_string());
    out.add("peer_lag_changes", "gauge", "Changes not sent to a linked peer yet.", &changes);
    let bytes = peers(&|peer| peer.lag_bytes.to_string());
    out.add("peer_lag_bytes", "gauge", "About how many bytes they are.", &bytes);
    let sent = peers(&|peer| peer.sent_bytes.to_string());
    out.add("peer_link_sent_bytes", "gauge", "Sent to a peer since its link was made.", &sent);
    out.0
}

fn members(app: &App, out: &mut Families) {
    let members = app.node.members();
    let count = |state: &str| {
        let in_state = members.iter().filter(|member| member.state.to_string() == state).count();
        (format!("{{state=\"{state}\"}}"), in_state)
    };
    let states = ["alive", "suspect", "down", "left"].map(count);
    out.add("members", "gauge", "Known members by state, this node included.", &states);
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
