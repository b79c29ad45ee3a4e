pub(super) fn overload() {}
