//! Judging application mappings.
