//! leakscope-session
