//! What the process asks of the system for itself.

/// Keeps the memory of this process, which holds secrets and all values, out of core dumps and away from other processes
/// of the same user, and permits as many open files as the system grants. A system that does neither is no reason not
/// to start. What it writes from now on is for its user alone: the files of the disk engine have the modes that the mask
/// leaves.
#[cfg(target_os = "linux")]
pub(crate) fn guard() {
    use rustix::fs::Mode;
    use rustix::process::{
        DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit, umask,
    };
    _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    umask(Mode::RWXG | Mode::RWXO);
    let files = getrlimit(Resource::Nofile);
    _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum });
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn guard() {}
