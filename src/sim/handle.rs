//! The handle to a simulation, and the lock around its world.
//!
//! A simulation has several handles: its [`Sim`], the nodes that user code keeps, and their watches. All of them lock
//! the [`World`] for one verb, or one step, at a time. Wakers are code of the user: the guard calls them once the world
//! is unlocked. A [`WorldGuard`] must never be held while another one is taken.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use super::tasks::SimTasks;
use super::{CONVERGENCE_MAX, SimNode, World};
use crate::config::Config;
use crate::replica::ReplicaEvent;

/// The world of a simulation, as its handles share it.
#[derive(Clone, Debug)]
pub(super) struct SharedWorld(Arc<Mutex<World>>);

impl SharedWorld {
    fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    /// Takes the lock. What the oracle finds panics under it, and those who catch the panic may look further.
    pub(super) fn lock(&self) -> WorldGuard<'_> {
        WorldGuard(Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// The locked world. It calls the wakers of watches that got something to read, after it has unlocked the world.
#[derive(Debug)]
pub(super) struct WorldGuard<'a>(Option<MutexGuard<'a, World>>);

impl Deref for WorldGuard<'_> {
    type Target = World;

    fn deref(&self) -> &World {
        self.0.as_ref().expect("it is locked until it is dropped")
    }
}

impl DerefMut for WorldGuard<'_> {
    fn deref_mut(&mut self) -> &mut World {
        self.0.as_mut().expect("it is locked until it is dropped")
    }
}

impl Drop for WorldGuard<'_> {
    fn drop(&mut self) {
        let woken = std::mem::take(&mut self.woken);
        self.0 = None;
        woken.into_iter().for_each(Waker::wake);
    }
}

/// A simulated cluster of real replicas in virtual time, with faulty links, crashes and an oracle. The same seed gives
/// the same run, bit for bit. What the oracle finds makes it panic; the payload of the panic is a
/// [`SimFault`](super::SimFault).
#[derive(Debug)]
pub struct Sim {
    world: SharedWorld,
    /// Never locked: the mutex makes `Sim` [`Sync`], which tasks by themselves need not be.
    tasks: Mutex<SimTasks>,
}

impl Sim {
    /// An empty cluster. All randomness comes from the seed.
    pub fn new(seed: u64) -> Self {
        Self { world: SharedWorld::new(World::new(seed)), tasks: Mutex::default() }
    }

    pub(super) fn world(&self) -> WorldGuard<'_> {
        self.world.lock()
    }

    /// Sets the configuration of the nodes that are added after this.
    #[must_use]
    pub fn config(self, config: Config) -> Self {
        self.world().config = config;
        self
    }

    /// Loses this share, 0 to 1, of all datagrams, and delays streams as if packets had been lost.
    #[must_use]
    pub fn loss(self, loss: f64) -> Self {
        self.world().loss = loss;
        self
    }

    /// For this share, 0 to 1, of its inputs a node's outputs are carried out later, so that other inputs come in
    /// between.
    #[must_use]
    pub fn processing_delay(self, share: f64) -> Self {
        self.world().processing_delay = share;
        self
    }

    /// The mean one-way delay of a link.
    #[must_use]
    pub fn delay(self, delay: Duration) -> Self {
        self.world().delay = delay;
        self
    }

    /// The bytes per second that the streams of a link carry in each direction. Unlimited without this.
    #[must_use]
    pub fn rate(self, bytes: u64) -> Self {
        self.world().rate = Some(bytes.max(1));
        self
    }

    /// Runs without the oracle, for simulations with many keys.
    #[must_use]
    pub fn without_checks(self) -> Self {
        self.world().checks = false;
        self
    }

    /// Adds nodes without a disk. They are all connected with each other, unless [`Sim::seeds`] was called before.
    #[must_use]
    pub fn nodes(self, count: usize) -> Self {
        let mut world = self.world();
        (0..count).for_each(|_| world.add(false));
        drop(world);
        self
    }

    /// Adds nodes with a disk.
    #[must_use]
    pub fn nodes_with_disk(self, count: usize) -> Self {
        let mut world = self.world();
        (0..count).for_each(|_| world.add(true));
        drop(world);
        self
    }

    /// Gives a check of values to all nodes that start after this, as `Builder::validate` does.
    #[must_use]
    pub fn validate<E: std::fmt::Display>(
        self,
        prefix: impl Into<String>,
        check: impl Fn(&str, &[u8]) -> Result<(), E> + Send + Sync + 'static,
    ) -> Self {
        self.world().validators.add(prefix.into(), check);
        self
    }

    /// Breaks one rule in all nodes that are added after this.
    #[cfg(feature = "__controls")]
    #[doc(hidden)]
    #[must_use]
    pub fn broken(self, control: Option<crate::controls::Control>) -> Self {
        self.world().controls.broken = control;
        self
    }

    /// Virtual time since the start.
    pub fn now(&self) -> Duration {
        self.world().now
    }

    /// The number of nodes, including crashed ones.
    pub fn len(&self) -> usize {
        self.world().nodes.len()
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.world().nodes.is_empty()
    }

    /// A fingerprint of everything that happened so far. It is equal for equal seeds.
    pub fn trace(&self) -> u64 {
        self.world().trace
    }

    /// The bytes that all nodes have sent.
    pub fn bytes_sent(&self) -> u64 {
        self.world().bytes
    }

    /// The number of links that nodes broke because a repair over them made no progress.
    pub fn timeouts(&self) -> u64 {
        self.world().timeouts
    }

    /// The events that nodes reported since the last call, each with the index of its node.
    pub fn events(&mut self) -> Vec<(usize, ReplicaEvent)> {
        std::mem::take(&mut self.world().events)
    }

    /// Whether a node runs.
    pub fn is_up(&self, i: usize) -> bool {
        self.world().is_up(i)
    }

    /// A handle to one node, with the verbs of `Node`. It can be kept, also across restarts of the node.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn node(&self, i: usize) -> SimNode {
        SimNode::new(&self.world, i)
    }

    /// Runs user code as a task in virtual time. A task takes no virtual time: after each step all tasks that were woken
    /// are polled until they wait for something. It belongs to no node, so a crash does not end it, but ends its watches.
    /// It is dropped with the simulation.
    ///
    /// The first poll and every later one happens in the methods that let virtual time pass. A task must not wait for
    /// anything outside of the simulation, or the same seed may give another run; and one that wakes itself again and
    /// again keeps virtual time from passing.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidings::{WatchEvent, sim::Sim};
    ///
    /// let mut sim = Sim::new(1).nodes(2).loss(0.1);
    /// let node = sim.node(1);
    /// let mut watch = node.watch("in/");
    /// sim.spawn(async move {
    ///     while let Some(event) = watch.next().await {
    ///         if let WatchEvent::Put(entry) = event {
    ///             let copy = entry.key().replace("in/", "out/");
    ///             node.put(copy, entry.value()).expect("the node accepts writes");
    ///         }
    ///     }
    /// });
    /// sim.node(0).put("in/k", "v")?;
    /// sim.run_for(Duration::from_secs(1));
    /// assert_eq!(sim.node(0).get("out/k").unwrap().value(), b"v");
    /// # Ok::<(), tidings::WriteError>(())
    /// ```
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks().spawn(task);
    }

    fn tasks(&mut self) -> &mut SimTasks {
        self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_tasks(&mut self) {
        let world = self.world.clone();
        self.tasks().run(|| std::mem::take(&mut world.lock().spawned));
    }

    /// Lets virtual time pass.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now() + time;
        self.run_tasks();
        while self.world().step(end) {
            self.run_tasks();
        }
        self.world().now = end;
    }

    /// Runs until all live nodes hold the same and have merged the same, and checks them all.
    ///
    /// # Panics
    /// If that takes longer than ten virtual minutes, or the oracle finds a fault, or a task panics.
    pub fn assert_converged(&mut self) {
        let end = self.now() + CONVERGENCE_MAX;
        self.run_tasks();
        loop {
            let Some(wait) = self.world().converges_by(end) else { break };
            self.run_for(wait);
        }
        self.world().check_all();
    }

    /// Runs until the clock has passed every write that a wrong clock stamped ahead, and demands convergence again:
    /// claims of such writes are sent only then.
    ///
    /// # Panics
    /// As [`Sim::assert_converged`].
    #[cfg(feature = "__controls")]
    #[doc(hidden)]
    pub fn assert_converged_in_time(&mut self) {
        let Some(wait) = self.world().wait_of_stamps_ahead() else { return };
        self.run_for(wait);
        self.assert_converged();
    }

    /// Whether all live nodes hold the same and have merged the same, and no repair is running. Clocks beyond the
    /// vector may remain for ever: of a run that ended between sending a write and claiming it.
    pub fn is_converged(&self) -> bool {
        self.world().is_converged()
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // Tasks hold the world, which holds those that were never polled.
        let spawned = std::mem::take(&mut self.world().spawned);
        drop(spawned);
    }
}
