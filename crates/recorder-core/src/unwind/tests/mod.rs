//! The unwinder on real code: each capture of a C fixture is compared with a
//! walk from scratch and with libgcc's unwinder.
#![allow(unsafe_code)]

mod bench;
mod live;
mod tables;
mod target;
