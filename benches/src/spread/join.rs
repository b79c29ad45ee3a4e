pub(super) fn join() {}
