//! How entries and members look in JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tidings::{Entry, Member, RunId};

use super::App;

/// Milliseconds since 1970.
pub(crate) fn ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A run, as everywhere outside of Rust.
pub(crate) fn run(run: RunId) -> String {
    format!("{run:016x}")
}

/// An entry. A value that is text stands in `value`, any other in `value_base64`.
pub(super) fn entry(app: &App, entry: &Entry, has_value: bool) -> Value {
    let mut view = json!({
        "key": entry.key(),
        "bytes": entry.value().len(),
        "stamp": entry.stamp().to_string(),
        "revision": entry.revision(),
        "time_ms": entry.stamp().wall_ms(),
        "origin": run(entry.origin()),
        "writer": app.monitor.writer(entry.origin()),
        "writer_state": app.node.member_of(entry.stamp()).map(|member| member.state.to_string()),
        "expires_ms": entry.expires_at().map(ms),
        "ephemeral": entry.is_ephemeral(),
        "conflicts": entry.conflicts().count(),
    });
    if has_value {
        match std::str::from_utf8(entry.value()) {
            Ok(text) => view["value"] = text.into(),
            Err(_) => view["value_base64"] = BASE64_STANDARD.encode(entry.value()).into(),
        }
    }
    view
}

/// An entry with all that lost against it.
pub(super) fn entry_whole(app: &App, found: &Entry) -> Value {
    let mut view = entry(app, found, true);
    view["conflicts"] = found.conflicts().map(|loser| entry(app, &loser, true)).collect();
    view
}

pub(super) fn member(member: &Member, is_self: bool) -> Value {
    json!({
        "name": member.name,
        "run": run(member.run),
        "addr": member.addr,
        "state": member.state.to_string(),
        "since_ms": ms(member.since),
        "app_version": member.app_version,
        "meta": member.meta,
        "rtt_us": member.rtt.map(|rtt| rtt.as_micros() as u64),
        "self": is_self,
    })
}

/// Everybody, this node first.
pub(super) fn members(app: &App) -> Value {
    let own = app.node.status().run;
    app.node.members().iter().map(|known| member(known, known.run == own)).collect()
}
