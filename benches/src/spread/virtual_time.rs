pub(super) fn sim() {}
