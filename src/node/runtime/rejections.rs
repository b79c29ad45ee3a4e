//! What the live values and flags of a node do not apply now, for its status.
//!
//! Each live value replaces its own part and no other, so that several of one name add up, and takes it back when it
//! ends. The number of rejections of a live value is bounded where they are made.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::error::Rejected;

/// What is not applied now, by the names of the live values.
#[derive(Debug, Default)]
pub(in crate::node) struct Rejections(Mutex<BTreeMap<String, Vec<Rejected>>>);

impl Rejections {
    /// Replaces what one live value of this name did not apply.
    pub(in crate::node) fn replace(&self, live: &str, before: &[Rejected], now: &[Rejected]) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = all.entry(live.to_owned()).or_default();
        for gone in before {
            if let Some(at) = held.iter().position(|rejected| rejected == gone) {
                held.remove(at);
            }
        }
        held.extend_from_slice(now);
        if held.is_empty() {
            all.remove(live);
        }
    }

    pub(in crate::node) fn all(&self) -> BTreeMap<String, Vec<Rejected>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
