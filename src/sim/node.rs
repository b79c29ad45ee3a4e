//! Simulated nodes: reads, writes, batches, sets, counters and watches, with the verbs of `Node`.

use std::collections::{BTreeMap, VecDeque};

use super::Sim;
use super::oracle::OracleEvent;
use crate::arrivals::Arrival;
use crate::error::WriteError;
use crate::membership::Member;
use crate::replica::{Batch, JoinProgress, PutOptions, Replica, Status};
use crate::store::OnlyIf;
use crate::store::entry::{self, Dot, Entry};
use crate::store::watch::{WatchEvent, WatchId, WatchOptions};
use crate::time::{Stamp, Time};

/// One node of a [`Sim`], with the verbs of `Node`.
#[derive(Debug)]
pub struct SimNode<'a> {
    pub(super) sim: &'a mut Sim,
    pub(super) i: usize,
}

impl<'a> SimNode<'a> {
    fn into_replica(self) -> (&'a mut Replica, Time) {
        let now = self.sim.time(self.i);
        (self.sim.nodes[self.i].replica.as_mut().expect("it is up"), now)
    }

    pub(super) fn replica(&mut self) -> (&mut Replica, Time) {
        let now = self.sim.time(self.i);
        (self.sim.nodes[self.i].replica.as_mut().expect("it is up"), now)
    }

    /// Does one write, records it for the oracle, and carries out the node's outputs.
    fn write(
        &mut self,
        key: &[u8],
        write: impl FnOnce(&mut Replica, Time) -> Result<Option<Stamp>, WriteError>,
    ) -> Result<Option<Stamp>, WriteError> {
        let (replica, now) = self.replica();
        let before =
            replica.store.dot_set(key).map(|(dot_set, _)| dot_set.dots().iter().map(Dot::stamp).collect());
        let stamp = write(replica, now)?;
        if let Some(stamp) = stamp {
            let dot_set = replica.store.dot_set(key).map(|(dot_set, _)| dot_set);
            let is_put = dot_set.is_some();
            let expires = dot_set.and_then(|dot_set| dot_set.dots().last()).and_then(Dot::expires);
            // If the writer's clock is ahead, the value has lived for the time asked for before its expiry has come.
            let true_ms = self.sim.wall_ms();
            let until_ms = expires.map(|ms| ms.get().min(true_ms + ms.get().saturating_sub(now.wall_ms())));
            let removed = before.unwrap_or_default();
            self.sim.record(self.i, key, OracleEvent { stamp, removed, is_put, until_ms, is_ahead: false });
        }
        self.sim.drain(self.i);
        Ok(stamp)
    }

    /// The median peer's lag, in bytes.
    pub fn median_lag(&mut self) -> u64 {
        self.replica().0.median_lag()
    }

    /// All members that this node knows, itself first. Empty unless the simulation has [`Sim::seeds`].
    pub fn members(&mut self) -> Vec<Member> {
        let (replica, _) = self.replica();
        replica.own_member().into_iter().chain(replica.members()).cloned().collect()
    }

    /// Changes this node's metadata. False, with nothing changed, if it exceeds a limit.
    pub fn set_meta(&mut self, meta: BTreeMap<String, String>) -> bool {
        let (replica, _) = self.replica();
        let told = replica.set_meta(meta);
        self.sim.drain(self.i);
        told
    }

    fn register(key: &str) -> Vec<u8> {
        let mut stored = Vec::new();
        entry::register_key(key, &mut stored);
        stored
    }

    /// Puts a value.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn put(&mut self, key: impl AsRef<str>, value: impl AsRef<[u8]>) -> Result<Stamp, WriteError> {
        self.put_with(key, value, PutOptions::new())
    }

    /// Puts a value under a condition or for a time.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn put_with(
        &mut self,
        key: impl AsRef<str>,
        value: impl AsRef<[u8]>,
        options: PutOptions,
    ) -> Result<Stamp, WriteError> {
        let (key, value) = (key.as_ref(), value.as_ref());
        let stamp = self.write(&Self::register(key), |replica, now| {
            replica.put_with(now, key, value, &options).map(Some)
        })?;
        Ok(stamp.expect("a put has a stamp"))
    }

    /// Deletes a key. `None` if the key holds nothing on this node.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn delete(&mut self, key: impl AsRef<str>) -> Result<Option<Stamp>, WriteError> {
        let key = key.as_ref();
        self.write(&Self::register(key), |replica, now| replica.delete(now, key))
    }

    /// Deletes a key under a condition, which is compared with what this node holds.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn delete_if(&mut self, key: impl AsRef<str>, only_if: OnlyIf) -> Result<Option<Stamp>, WriteError> {
        let key = key.as_ref();
        self.write(&Self::register(key), |replica, now| replica.delete_if(now, key, only_if))
    }

    /// The value of a key.
    pub fn get(&mut self, key: impl AsRef<str>) -> Option<Entry> {
        let (replica, now) = self.replica();
        replica.get(now, key.as_ref())
    }

    /// All entries whose keys begin with this prefix, in key order.
    pub fn scan(&mut self, prefix: impl AsRef<str>) -> Vec<Entry> {
        let (replica, now) = self.replica();
        replica.scan(now, prefix.as_ref())
    }

    /// The number of entries held, including those of sets and counters.
    pub fn len(&mut self) -> usize {
        self.replica().0.len()
    }

    /// Whether the node holds no entries.
    pub fn is_empty(&mut self) -> bool {
        self.len() == 0
    }

    /// Several writes, to be applied in one step by [`SimBatch::commit`].
    pub fn batch(&mut self) -> SimBatch<'_> {
        SimBatch { node: SimNode { sim: self.sim, i: self.i }, batch: Batch::new() }
    }

    /// A set.
    pub fn set(&mut self, name: impl Into<String>) -> SimSet<'_> {
        SimSet { node: SimNode { sim: self.sim, i: self.i }, name: name.into() }
    }

    /// A counter.
    pub fn counter(&mut self, name: impl Into<String>) -> SimCounter<'_> {
        SimCounter { node: SimNode { sim: self.sim, i: self.i }, name: name.into() }
    }

    /// Watches all keys that begin with this prefix. The watch ends when the node stops.
    pub fn watch(&mut self, prefix: impl AsRef<str>) -> SimWatch {
        self.watch_with(prefix, WatchOptions::new())
    }

    /// Watches with options: one key alone, from an earlier position on, or changes only.
    pub fn watch_with(&mut self, prefix: impl AsRef<str>, options: WatchOptions) -> SimWatch {
        SimWatch::new(self, Self::register(prefix.as_ref()), options)
    }

    /// The node's progress in catching up with the others.
    pub fn joining(&mut self) -> JoinProgress {
        let progress = self.replica().0.join_progress();
        let donor = self.replica().0.donor().and_then(|link| self.sim.other_end(link, self.i));
        JoinProgress { donor: progress.donor.or(donor.map(|i| self.sim.name(i))), ..progress }
    }

    /// How long the writes of others take to arrive here.
    pub fn arrivals(&mut self) -> Vec<Arrival> {
        let now = self.sim.time(self.i);
        let node = &self.sim.nodes[self.i];
        node.replica.as_ref().map_or_else(Vec::new, |replica| node.arrivals.figures(now, replica))
    }

    /// A summary of what the node holds and has merged.
    pub fn status(&mut self) -> Status {
        self.replica().0.status()
    }
}

/// Several writes on one node of a [`Sim`].
#[derive(Debug)]
pub struct SimBatch<'a> {
    node: SimNode<'a>,
    batch: Batch,
}

impl SimBatch<'_> {
    /// Adds a put.
    #[must_use]
    pub fn put(mut self, key: impl AsRef<str>, value: impl AsRef<[u8]>) -> Self {
        self.batch = self.batch.put(key, value);
        self
    }

    /// Adds a delete.
    #[must_use]
    pub fn delete(mut self, key: impl AsRef<str>) -> Self {
        self.batch = self.batch.delete(key);
        self
    }

    /// Applies all writes in one step, or none if one is refused.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn commit(mut self) -> Result<(), WriteError> {
        let (replica, now) = self.node.replica();
        let mut dot_set: BTreeMap<String, Vec<Stamp>> = BTreeMap::new();
        for key in self.batch.keys() {
            let before = replica.store.dot_set(&SimNode::register(key));
            let stamps = before.map(|(before, _)| before.dots().iter().map(Dot::stamp).collect());
            dot_set.insert(key.to_owned(), stamps.unwrap_or_default());
        }
        let stamps = replica.commit(now, &self.batch)?;
        for ((key, is_put), stamp) in self.batch.writes().zip(stamps) {
            let Some(stamp) = stamp else { continue };
            let now_held = if is_put { vec![stamp] } else { Vec::new() };
            let before = dot_set.insert(key.to_owned(), now_held).unwrap_or_default();
            let event = OracleEvent { stamp, removed: before, is_put, until_ms: None, is_ahead: false };
            self.node.sim.record(self.node.i, &SimNode::register(key), event);
        }
        self.node.sim.drain(self.node.i);
        Ok(())
    }
}

/// A set on one node of a [`Sim`].
#[derive(Debug)]
pub struct SimSet<'a> {
    node: SimNode<'a>,
    name: String,
}

impl SimSet<'_> {
    fn key(&self, element: &str) -> Vec<u8> {
        let mut stored = Vec::new();
        entry::set_prefix(&self.name, &mut stored);
        stored.extend_from_slice(element.as_bytes());
        stored
    }

    /// Adds an element.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn add(&mut self, element: impl AsRef<str>) -> Result<Stamp, WriteError> {
        let (name, element) = (self.name.clone(), element.as_ref());
        let stamp = self
            .node
            .write(&self.key(element), |replica, now| replica.set_add(now, &name, element).map(Some))?;
        Ok(stamp.expect("an add has a stamp"))
    }

    /// Removes an element, as far as this node has seen it added. `None` if the element is not in the set here.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn remove(&mut self, element: impl AsRef<str>) -> Result<Option<Stamp>, WriteError> {
        let (name, element) = (self.name.clone(), element.as_ref());
        self.node.write(&self.key(element), |replica, now| replica.set_remove(now, &name, element))
    }

    /// Watches the elements.
    pub fn watch(&mut self) -> SimWatch {
        self.watch_with(WatchOptions::new())
    }

    /// Watches the elements with options. [`WatchOptions::exact`] has no effect: a watch of a set has all elements.
    pub fn watch_with(&mut self, options: WatchOptions) -> SimWatch {
        let prefix = self.key("");
        SimWatch::new(&mut self.node, prefix, options.inexact())
    }

    /// Whether an element is in the set.
    pub fn contains(&mut self, element: impl AsRef<str>) -> bool {
        self.node.replica().0.set_contains(&self.name, element.as_ref())
    }

    /// The elements, in order.
    pub fn iter(&mut self) -> impl Iterator<Item = String> {
        self.node.replica().0.set_iter(&self.name).collect::<Vec<_>>().into_iter()
    }

    /// The number of elements.
    pub fn len(&mut self) -> usize {
        self.iter().count()
    }

    /// Whether the set is empty.
    pub fn is_empty(&mut self) -> bool {
        self.len() == 0
    }
}

/// A counter on one node of a [`Sim`].
#[derive(Debug)]
pub struct SimCounter<'a> {
    node: SimNode<'a>,
    name: String,
}

impl SimCounter<'_> {
    /// Adds to the counter.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn add(&mut self, by: i64) -> Result<Stamp, WriteError> {
        let name = self.name.clone();
        let mut key = Vec::new();
        entry::counter_prefix(&name, &mut key);
        key.extend_from_slice(&self.node.replica().0.store.run.number().to_be_bytes());
        let stamp = self.node.write(&key, |replica, now| replica.counter_add(now, &name, by).map(Some))?;
        Ok(stamp.expect("a step has a stamp"))
    }

    /// Its value.
    pub fn value(&mut self) -> i64 {
        self.node.replica().0.counter_value(&self.name)
    }
}

/// A watch on one node of a [`Sim`]. As a watch of `Node` it begins when it is made, not at the first `next`.
#[derive(Debug)]
pub struct SimWatch {
    i: usize,
    starts: u64,
    id: WatchId,
    events: VecDeque<WatchEvent>,
}

impl SimWatch {
    fn new(node: &mut SimNode<'_>, prefix: Vec<u8>, options: WatchOptions) -> Self {
        let id = node.replica().0.watch(prefix, options);
        let starts = node.sim.nodes[node.i].starts;
        Self { i: node.i, starts, id, events: VecDeque::new() }
    }

    /// Whether the watch has ended because its node has stopped since.
    pub fn is_over(&self, sim: &Sim) -> bool {
        sim.nodes[self.i].starts != self.starts || !sim.is_up(self.i)
    }

    /// Ends the watch. A watch that is only dropped lasts until its node stops.
    pub fn close(self, sim: &mut Sim) {
        if !self.is_over(sim) {
            SimNode { sim, i: self.i }.into_replica().0.unwatch(self.id);
        }
    }

    /// The next event, if there is one by now. Always `None` once the node has stopped.
    pub fn next(&mut self, sim: &mut Sim) -> Option<WatchEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if self.is_over(sim) {
                return None;
            }
            let (replica, now) = SimNode { sim, i: self.i }.into_replica();
            let (events, is_done) = replica.watched(now, self.id);
            self.events.extend(events);
            if is_done && self.events.is_empty() {
                return None;
            }
        }
    }
}
