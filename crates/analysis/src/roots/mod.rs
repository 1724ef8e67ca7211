//! Roots.
