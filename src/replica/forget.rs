//! Members that somebody asked to forget.
//!
//! The request is an entry of the store, under a key of the library itself: so it reaches every node, also one that is
//! cut off now, as any write does. It names the runs that were gone when it was made, and expires when they would have
//! been forgotten anyway. Every node forgets a named run in each sync interval in which that run is gone. A run that was
//! only cut off deletes the request that names it: otherwise its next short absence would be its end.

use std::collections::BTreeSet;

use super::{PutOptions, Replica};
use crate::controls::Control;
use crate::error::ForgetError;
use crate::id::RunId;
use crate::store::key::{self, readable_key};
use crate::time::{Stamp, Time};

/// The common beginning of the keys; the run follows, as 16 hexadecimal digits.
const PREFIX: &str = "forgotten/";

fn request_key(run: RunId) -> Vec<u8> {
    key::reserved(&format!("{PREFIX}{run:016x}"))
}

impl Replica {
    /// Forgets the members of this name on all nodes. They must be gone. Returns the stamp of the last request that was
    /// written.
    ///
    /// # Errors
    /// See [`ForgetError`]; nothing is written then.
    pub fn forget(&mut self, now: Time, name: &str) -> Result<Stamp, ForgetError> {
        self.check_writable(now)?;
        if self.own_member().is_some_and(|own| own.name == name) {
            return Err(ForgetError::NotGone { name: name.to_owned() });
        }
        let gone =
            self.members.as_ref().map_or_else(|| Some(Vec::new()), |members| members.gone_of_name(name));
        let gone = gone.ok_or_else(|| ForgetError::NotGone { name: name.to_owned() })?;
        let lifetime = PutOptions::new().ttl(self.config.forget_after).lifetime(now, self.store.first_run);
        let keys = gone.into_iter().map(request_key);
        let stamps: Vec<Stamp> =
            keys.map(|stored| self.write_put(now, &stored, name.as_bytes(), lifetime)).collect();
        self.forget_members(now);
        stamps.last().copied().ok_or_else(|| ForgetError::Unknown { name: name.to_owned() })
    }

    /// Forgets the members whose time has come, and those that somebody asked to forget.
    pub(super) fn forget_members(&mut self, now: Time) {
        let Some(members) = &mut self.members else { return };
        let prefix = key::reserved(PREFIX);
        let asked = self.store.with_prefix(&prefix).filter_map(|(dot_set, _)| {
            let run = u64::from_str_radix(&readable_key(dot_set.key())[PREFIX.len()..], 16);
            run.ok().map(RunId::new)
        });
        let mut asked: BTreeSet<RunId> = asked.collect();
        let own = members.own().run;
        let is_kept = [Control::ForgetRequestKept, Control::ForgetsLiving]
            .into_iter()
            .any(|control| self.store.controls.has(control));
        if asked.remove(&own) && !is_kept && self.check_writable(now).is_ok() {
            self.write_delete(now, &request_key(own));
        }
        let Some(members) = &mut self.members else { return };
        members.forget_due(now, &asked);
        self.end_away_runs(now, &asked);
    }
}
