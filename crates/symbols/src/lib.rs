//! leakscope-symbols
