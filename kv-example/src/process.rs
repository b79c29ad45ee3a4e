//! What the process asks of the system for itself.

/// Keeps the memory of this process, which holds secrets and all values, out of core dumps and away from other processes
/// of the same user, and permits as many open files as the system grants. A system that does neither is no reason not
/// to start.
#[cfg(target_os = "linux")]
pub(crate) fn guard() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
    _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let files = getrlimit(Resource::Nofile);
    _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum });
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn guard() {}
