//! (see the crate page)
