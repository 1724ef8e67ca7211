//! leakscope-preload-embed
