//! leakscope-analysis
