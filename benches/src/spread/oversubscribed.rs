//! Threads that only compute, so that a cluster in this process has to share the cores with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, available_parallelism, spawn};
use std::time::{Duration, Instant};

/// How many there are for each core.
const THREADS_PER_CORE: usize = 2;
/// They end after this even if nobody ends them.
const LIFETIME_MAX: Duration = Duration::from_secs(300);

/// Twice as many busy threads as cores, until this is dropped.
pub(super) struct BusyThreads {
    halt: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl BusyThreads {
    pub(super) fn start() -> Self {
        let halt: Arc<AtomicBool> = Arc::default();
        let deadline = Instant::now() + LIFETIME_MAX;
        let count = THREADS_PER_CORE * available_parallelism().map_or(1, usize::from);
        let threads = (0..count).map(|_| {
            let halt = halt.clone();
            spawn(move || compute(&halt, deadline))
        });
        Self { threads: threads.collect(), halt }
    }
}

impl Drop for BusyThreads {
    fn drop(&mut self) {
        self.halt.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            _ = thread.join();
        }
    }
}

fn compute(halt: &AtomicBool, deadline: Instant) {
    /// Between two looks at the clock.
    const STEPS: u64 = 100_000;
    let mut number = 1_u64;
    while !halt.load(Ordering::Relaxed) && Instant::now() < deadline {
        for _ in 0..STEPS {
            number = std::hint::black_box(number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17));
        }
    }
}
