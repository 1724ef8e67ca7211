//! leakscope-testkit
