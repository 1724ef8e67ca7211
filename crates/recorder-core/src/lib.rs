//! leakscope-recorder-core
