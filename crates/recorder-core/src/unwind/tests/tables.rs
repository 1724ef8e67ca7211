//! Hostile tables.
