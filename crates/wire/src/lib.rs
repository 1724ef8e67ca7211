//! leakscope-wire
