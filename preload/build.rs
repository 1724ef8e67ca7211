//! Link settings of the preload object.
fn main() {
    for arg in [
        // Nothing but itself: no libc, no libgcc, no start files.
        "-nostdlib",
        "-nostartfiles",
        // Our own references to our own hooks stay ours.
        "-Wl,-Bsymbolic",
        // Never unloaded: hooks may be on any stack.
        "-Wl,-z,nodelete",
        "-Wl,-z,relro,-z,now",
        "-Wl,--hash-style=gnu",
        "-Wl,-soname,libleakscope.so",
    ] {
        println!("cargo:rustc-cdylib-link-arg={arg}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
