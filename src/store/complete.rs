//! Which keys are complete. A key is not complete while a batch of another node that changed it may still be arriving.

#[cfg(feature = "json")]
use crdts::CvRDT;

#[cfg(feature = "json")]
use super::entry::Entry;
use super::entry::Revision;
#[cfg(feature = "json")]
use super::key::readable_key;
use super::{Dot, DotSet, LocalStore};
use crate::controls::Control;
#[cfg(any(feature = "json", feature = "node"))]
use crate::id::RunId;
use crate::store::coverage::Clocks;
#[cfg(feature = "json")]
use crate::time::Time;

/// The most changes that are looked through for those below one prefix: bounds the work under the lock. Beyond it, all
/// keys below the prefix are read instead, and count as changed.
const CHANGES_MAX: usize = 4_096;

/// The keys below a prefix as they were at one instant, or those that have changed since an earlier one;
/// [`Store::scan_whole`](crate::Store::scan_whole) and [`Store::changes_whole`](crate::Store::changes_whole) give it.
#[cfg(feature = "json")]
#[derive(Clone, Debug)]
pub struct WholeLook {
    /// The entries, in the order of their keys.
    pub entries: Vec<Entry>,
    /// Keys that have changed and hold nothing now.
    pub gone: Vec<String>,
    /// The instant, for [`Store::changes_whole`](crate::Store::changes_whole).
    pub revision: Revision,
    /// `false` while a batch of another node that writes or deletes some of these keys may still be arriving.
    pub is_whole: bool,
    /// The origins of whose writes it has a part only.
    pub(crate) missing: Vec<MissingOrigin>,
}

#[cfg(feature = "json")]
impl WholeLook {
    pub(crate) fn new(
        entries: Vec<Entry>,
        gone: Vec<String>,
        revision: Revision,
        missing: Vec<MissingOrigin>,
    ) -> Self {
        Self { entries, gone, revision, is_whole: missing.is_empty(), missing }
    }
}

/// An origin of whose writes a look has a part only, and what is known of the rest.
#[cfg(any(feature = "json", feature = "node"))]
#[cfg_attr(not(feature = "json"), allow(dead_code, reason = "views alone ask for it"))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct MissingOrigin {
    pub(crate) origin: RunId,
    /// Up to where everything that it wrote has arrived below the prefix of the look.
    pub(crate) reached: u64,
    /// Pieces of large rows received so far over the links on which nothing else lacks for a claim of it.
    pub(crate) pieces: u64,
    pub(crate) rest: RestFrom,
}

/// What may bring the rest of what an origin wrote.
#[cfg(any(feature = "json", feature = "node"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestFrom {
    /// Nothing that this node knows of: the origin has ended or cannot be reached, and nobody is sending it.
    Nobody,
    /// The tail of the origin, which is believed alive, or that of a delegate.
    Tail,
    /// A repair that is running and ends with a claim of it.
    Repair,
}

impl LocalStore {
    /// Whether it is known that no key below a prefix has changed since `since`.
    pub(crate) fn is_unchanged(&self, prefix: &[u8], since: Revision) -> bool {
        if since.log != self.log.id || since.number < self.log.floor() {
            return false;
        }
        let mut rows = self.log.rows_after(since.number);
        let is_below = |(_, id)| self.row(id).dot_set.key().starts_with(prefix);
        !rows.by_ref().take(CHANGES_MAX).any(is_below) && rows.next().is_none()
    }
}

#[cfg_attr(not(feature = "json"), allow(dead_code, reason = "views alone ask for it"))]
impl LocalStore {
    /// What the vector does not cover of what is merged at this stored key; the key is complete if there is nothing. The
    /// vector covers what this replica wrote at once, and what another node wrote as soon as its claim has arrived. The
    /// claim comes behind everything that the node wrote up to there. So if one key of a batch is complete, the batch has
    /// arrived as a whole, or was overwritten.
    ///
    /// `claimed` counts beside the vector: claims that wait for nothing below the prefix that is looked at.
    pub(crate) fn missing(&self, stored_key: &[u8], claimed: &Clocks) -> Clocks {
        match self.dot_set(stored_key) {
            Some((dot_set, _)) => self.missing_in_row(dot_set, claimed),
            None => self.missing_of(stored_key, &[], claimed),
        }
    }

    /// The same of a key that is at hand with what it holds.
    pub(crate) fn missing_in_row(&self, dot_set: &DotSet, claimed: &Clocks) -> Clocks {
        self.missing_of(dot_set.key(), dot_set.dots(), claimed)
    }

    fn missing_of(&self, stored_key: &[u8], dots: &[Dot], claimed: &Clocks) -> Clocks {
        let (coverage, vector) = (&self.coverage, self.coverage.vector());
        // Nearly always, and no key need be looked at then.
        if coverage.is_vector_only() || self.controls.has(Control::PartIsWhole) {
            return Clocks::default();
        }
        let beyond = coverage.context(stored_key, self.hash_key.place(stored_key)).unwrap_or_default();
        let mut missing = vector.missing(&beyond);
        for stamp in dots.iter().map(Dot::stamp).filter(|stamp| !vector.covers(*stamp)) {
            missing.raise(stamp);
        }
        missing.beyond(claimed)
    }

    /// What has changed below a prefix since `since`. `None` if that is not known any more, or is too much for one look.
    /// `origins` tells what is known of the origins of what is missing.
    #[cfg(feature = "json")]
    pub(crate) fn changes_whole(
        &self,
        now: Time,
        prefix: &[u8],
        since: Revision,
        claimed: &Clocks,
        origins: impl FnOnce(&Clocks) -> Vec<MissingOrigin>,
    ) -> Option<WholeLook> {
        if since.log != self.log.id || since.number < self.log.floor() {
            return None;
        }
        let revision = Revision { log: self.log.id, number: self.log.head() };
        let (mut entries, mut gone, mut missing) = (Vec::new(), Vec::new(), Clocks::default());
        for (at, (number, id)) in self.log.rows_after(since.number).enumerate() {
            if at == CHANGES_MAX {
                return None;
            }
            let dot_set = &self.row(id).dot_set;
            if !dot_set.key().starts_with(prefix) {
                continue;
            }
            missing.merge(self.missing_in_row(dot_set, claimed));
            match self.entry(now, dot_set, number) {
                Some(entry) => entries.push(entry),
                None => gone.push(readable_key(dot_set.key()).to_owned()),
            }
        }
        entries.sort_by(|a, b| a.key().cmp(b.key()));
        Some(WholeLook::new(entries, gone, revision, origins(&missing)))
    }
}
