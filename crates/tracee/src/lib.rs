//! leakscope-tracee
