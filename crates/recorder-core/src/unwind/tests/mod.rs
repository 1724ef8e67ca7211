//! The unwinder on real code: each capture of a C fixture is compared with a
//! walk from scratch and with libgcc's unwinder.
#![allow(unsafe_code)]

#[cfg(not(miri))]
mod bench;
#[cfg(not(miri))]
mod live;
mod tables;
#[cfg(not(miri))]
mod target;
