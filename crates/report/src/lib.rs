//! leakscope-report
