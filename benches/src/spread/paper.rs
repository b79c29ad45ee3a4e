pub(super) fn paper() {}
