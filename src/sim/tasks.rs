//! User code in virtual time: the tasks that a simulation polls between its steps.
//!
//! A task runs while virtual time stands still: it is polled until it waits for something, and no step is made
//! meanwhile. All tasks that were woken are polled in the order of their numbers, so that the same seed gives the same
//! run. The world must never be locked while a task is polled or dropped, because tasks use handles that lock it.
//!
//! A handle to a node spawns a task by adding it to the [`SpawnedTasks`] of the world, from where it is taken before the
//! next poll. A task there holds the world that holds it, so the simulation must drop it at its end.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

type TaskFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Tasks that were spawned through a handle to a node and not polled yet.
#[derive(Default)]
pub(super) struct SpawnedTasks(Vec<TaskFuture>);

impl std::fmt::Debug for SpawnedTasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SpawnedTasks").field(&self.0.len()).finish()
    }
}

impl SpawnedTasks {
    pub(super) fn push(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.push(Box::pin(task));
    }
}

/// The tasks of a simulation.
#[derive(Default)]
pub(super) struct SimTasks {
    running: BTreeMap<usize, SimTask>,
    spawned: usize,
    /// The numbers of the tasks that were woken and not polled since.
    woken: Arc<Mutex<BTreeSet<usize>>>,
}

impl std::fmt::Debug for SimTasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimTasks").field("running", &self.running.len()).finish_non_exhaustive()
    }
}

struct SimTask {
    future: TaskFuture,
    waker: Waker,
}

/// Wakes one task.
struct TaskWaker {
    number: usize,
    woken: Arc<Mutex<BTreeSet<usize>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).insert(self.number);
    }
}

impl SimTasks {
    /// Adds a task, which is polled at the next [`SimTasks::run`].
    pub(super) fn spawn(&mut self, future: impl Future<Output = ()> + Send + 'static) {
        self.add(Box::pin(future));
    }

    fn add(&mut self, future: TaskFuture) {
        let (number, woken) = (self.spawned, self.woken.clone());
        self.spawned += 1;
        let waker = Waker::from(Arc::new(TaskWaker { number, woken }));
        waker.wake_by_ref();
        self.running.insert(number, SimTask { future, waker });
    }

    /// Polls the tasks that were woken, and those that they wake, until all of them wait.
    pub(super) fn run(&mut self, mut take_spawned: impl FnMut() -> SpawnedTasks) {
        loop {
            take_spawned().0.into_iter().for_each(|task| self.add(task));
            let woken = std::mem::take(&mut *self.woken.lock().unwrap_or_else(PoisonError::into_inner));
            if woken.is_empty() {
                return;
            }
            for number in woken {
                // A task that panics is not polled again.
                let Some(mut task) = self.running.remove(&number) else { continue };
                if task.future.as_mut().poll(&mut Context::from_waker(&task.waker)).is_pending() {
                    self.running.insert(number, task);
                }
            }
        }
    }
}
