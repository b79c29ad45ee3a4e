//! What a program understands beyond its wire version, so that messages can grow within a version.

/// What the program at the other end of a link understands beyond its wire version.
///
/// Each side states its abilities in its greeting. A program from before the first of them states nothing and has
/// [none](Self::NONE). What needs an ability is sent to no peer without it, so programs with and without it form one
/// cluster. Bits of later programs are kept and ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities(u64);

/// A tail may name the large rows that travel beside it (`LARGE_ROW` items).
const LARGE_ROW_NAMES: u64 = 1;
/// The program follows shared settings that are changed at run time, and reads lease times in the messages of voters.
const SHARED_SETTINGS: u64 = 2;
/// The program says when it has caught up (`CaughtUp`).
const SAYS_CAUGHT_UP: u64 = 4;

impl Abilities {
    /// Nothing beyond the wire version.
    pub const NONE: Self = Self(0);
    /// All abilities of this program.
    pub const OURS: Self = Self(LARGE_ROW_NAMES | SHARED_SETTINGS | SAYS_CAUGHT_UP);

    #[cfg(feature = "node")]
    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    #[cfg(feature = "node")]
    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    pub(crate) fn reads_large_row_names(self) -> bool {
        self.0 & LARGE_ROW_NAMES != 0
    }

    pub(crate) fn says_caught_up(self) -> bool {
        self.0 & SAYS_CAUGHT_UP != 0
    }

    pub(crate) fn follows_settings(self) -> bool {
        self.0 & SHARED_SETTINGS != 0
    }
}
