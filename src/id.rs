//! The numbers that name something, each a type of its own, so that none can be taken for another.
//!
//! Runs and logs are random 64-bit numbers: nothing may depend on their order except to break a tie. Links and leases
//! are counted by whoever makes them, the sessions of a link by both of its ends.

use std::fmt;
use std::num::NonZeroU32;

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

id! {
    /// One change log: a fresh random number in every start, and whenever a replica begins its log anew.
    pub(crate) LogId
}

id! {
    /// A link between two replicas. Whoever drives a replica names each of its links with a number that it uses for no
    /// other link, neither at the same time nor later.
    pub LinkId
}

id! {
    /// A campaign for a lease on one node, and the lease that it wins.
    pub LeaseId
}

id! {
    /// A repair session of one link: its number, by which both sides count. It grows when a session ends or is deferred.
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
