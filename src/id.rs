//! The numbers that name something, each a type of its own, so that none can be taken for another.
//!
//! Runs are random 64-bit numbers: nothing may depend on their order except to break a tie. The further runs of a
//! process and the ids of its logs are computed from the run that its handshakes prove, so that no node can name those
//! of another. Links and leases are counted by the node that makes them, the sessions of a link by both of its ends.

use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use crate::form::{hex_digits, text_form};

/// Declares one kind of id: a number that can be made, shown, compared and used as a key, and nothing else.
macro_rules! id {
    ($(#[$doc:meta])* $visibility:vis $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $visibility struct $name(u64);

        impl $name {
            /// The id with this number.
            $visibility const fn new(number: u64) -> Self {
                Self(number)
            }

            /// The number that it was made of.
            $visibility const fn number(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

id! {
    /// One start of a process: a fresh random number. As the author of writes a run is called their *origin*.
    #[cfg_attr(feature = "node", derive(bincode::Encode, bincode::Decode))]
    pub RunId
}

text_form!(
    RunId,
    "a run: 16 hexadecimal digits",
    |text| hex_digits(text, 16).map(|number| Self(number as u64)),
    |run| format!("{run:016x}")
);

impl RunId {
    /// The run as which a process goes on after it has given up its claims this many times; 0: this run itself. All
    /// nodes compute the same, and it must never change.
    pub(crate) fn after(self, generation: u64) -> Self {
        let parts = [self.0.to_le_bytes(), generation.to_le_bytes()].concat();
        if generation == 0 { self } else { Self(derived(0x7469_6469_6e67_7333, &parts)) }
    }
}

id! {
    /// One change log. A run has one, and its id follows from the run.
    pub(crate) LogId
}

impl LogId {
    /// The id of a run's log. All nodes compute the same, and it must never change.
    pub(crate) fn of(run: RunId) -> Self {
        Self(derived(0x7469_6469_6e67_7334, &run.0.to_le_bytes()))
    }
}

/// A hash with fixed keys. Nobody can choose its result, except by trying out about as many inputs as there are ids.
fn derived(key: u64, bytes: &[u8]) -> u64 {
    SipHasher13::new_with_keys(key, 0).hash(bytes)
}

id! {
    #[derive(Serialize, Deserialize)]
    /// A link between two replicas. The driver of a replica names each of its links with a number that it uses for no
    /// other link, neither at the same time nor later.
    pub LinkId
}

id! {
    #[derive(Serialize, Deserialize)]
    /// A campaign for a lease on one node, and the lease that it wins.
    pub LeaseId
}

id! {
    /// A repair session of one link: its number, by which both sides count. It grows when a session ends or is
    /// deferred.
    pub(crate) SessionId
}

impl SessionId {
    pub(crate) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A row in the memory of one store: its index plus one, so that an optional id takes no more room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RowId(NonZeroU32);

impl RowId {
    /// The id of the first row of a slab.
    pub(crate) const FIRST: Self = Self(NonZeroU32::MIN);

    pub(crate) fn of_index(index: usize) -> Self {
        let number = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
        Self(number.expect("fewer than four thousand million keys"))
    }

    pub(crate) fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn derived_runs_and_logs_are_all_different() {
        let runs = (0..100).flat_map(|run| (0..100).map(move |generation| RunId(run).after(generation)));
        let logs = runs.clone().map(|run| LogId::of(run).0);
        let numbers: BTreeSet<u64> = runs.map(|run| run.0).chain(logs).collect();
        assert_eq!(numbers.len(), 20_000);
        assert_eq!(RunId(7).after(0), RunId(7));
    }

    #[test]
    fn derivation_is_the_same_in_every_version() {
        let (run, log) = (RunId(0x0123_4567_89ab_cdef).after(1), LogId::of(RunId(0x0123_4567_89ab_cdef)));
        assert_eq!((run.0, log.0), (8_468_130_653_835_918_050, 3_914_635_268_431_095_282));
    }
}
