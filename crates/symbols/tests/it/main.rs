//! Real programs, compiled in every way that matters, run, and asked where
//! they were. The answers are checked against marks in their source.

mod fixture;
mod flavours;
mod hostile;
mod modules;
mod separate;
mod server;
