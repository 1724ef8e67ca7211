//! Loss kinds.
