//! leakscope-proc
