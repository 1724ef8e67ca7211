//! Carries the preload object inside the program, so that leakscope is one
//! file.
//!
//! What it never does: load or run the object. Begin with [`object`].
#![forbid(unsafe_code)]

/// The bytes of the ELF shared object that `leakscope run` loads into a
/// process.
pub fn object() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/libleakscope.so"))
}
